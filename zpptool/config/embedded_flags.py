# SPDX-License-Identifier: Apache-2.0
"""The arguments of the embedded engine, which stand after `--` as vLLM's do."""

from __future__ import annotations

from collections.abc import Sequence

from zpptool.errors import usage_error

MEDIA_DOMAINS = "--allowed-media-domains"
"""vLLM's name for the hosts from which images of requests are fetched."""


def allowed_media_domains(words: Sequence[str]) -> tuple[str, ...]:
    """The hosts from which the embedded engine fetches the images that requests name by URL; none by default.

    Raises:
        ZppError: (USAGE) there are other arguments, or the flag has no host.
    """
    domains: list[str] = []
    left = list(words)
    while left and left[0].partition("=")[0] == MEDIA_DOMAINS:
        _, given, value = left.pop(0).partition("=")
        values = [value] if given else []
        while not given and left and not left[0].startswith("-"):
            values.append(left.pop(0))
        if not all(values) or not values:
            raise usage_error(f"{MEDIA_DOMAINS} needs the name of a host")
        domains += [value.lower() for value in values]
    if left:
        raise usage_error(
            f"the transformers engine takes no arguments of its own: {' '.join(left)}",
            f"Leave them out ({MEDIA_DOMAINS} is the only one), or --engine vllm.",
        )
    return tuple(domains)
