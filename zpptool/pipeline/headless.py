# SPDX-License-Identifier: Apache-2.0
"""Where a headless stage 0 hears a head that it was not started with: a script's `zpptool.LLM`.

Nothing is guessed twice: script and stage 0 come to the same endpoint from the return link that both know.
"""

from __future__ import annotations

from zpptool.errors import address_error
from zpptool.pipeline.resolve import host_port
from zpptool.ports import DEFAULT_HOST


def head_endpoint(return_link: str, given: str | None = None) -> str:
    """The endpoint that the head binds and stage 0 connects to.

    Args:
        return_link: what the head connects to, `tcp://HOST:PORT`.
        given: `HOST:PORT` where the user says so; otherwise the port after the return port, on this machine.

    Raises:
        ZppError: (ADDRESS) it is no address, or nothing follows from the return link.
    """
    if given is not None:
        return f"tcp://{host_port(given)}"
    _, _, port = return_link.removeprefix("tcp://").rpartition(":")
    if not return_link.startswith("tcp://") or not port.isdecimal() or int(port) >= 65535:
        raise address_error(f"no port for the head follows from the return link {return_link}", "Give --head-addr.")
    return f"tcp://{DEFAULT_HOST}:{int(port) + 1}"
