# SPDX-License-Identifier: Apache-2.0
"""Which running pipeline a command is about: those behind a front, or the one whose head runs on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zpptool.errors import ExitCode, ZppError, usage_error


def refuse_two_pipelines(url: str | None, run_dir: Path | None) -> None:
    """Refuse an address of a front beside a head's directory.

    Raises:
        ZppError: (USAGE) both are given.
    """
    if url is not None and run_dir is not None:
        raise usage_error("--url and --run-dir name two pipelines", "Give one of them.")


def front_status(url: str, api_key: str | None, *, required: bool) -> dict[str, Any] | None:
    """The status that a front reports; None if there is no front and a head runs on this machine instead.

    Args:
        url: of the front.
        api_key: for the front; None for none.
        required: whether only a front will do, because its address was given.

    Raises:
        ZppError: (ADDRESS) there is no front, and it is required or no head runs here; or the front's own refusal.
    """
    import httpx

    from zpptool.admin.status_client import find_status_paths
    from zpptool.serve.status_view import fetch_status

    try:
        with httpx.Client(trust_env=False) as client:
            status = fetch_status(client, url, api_key)
    except ZppError as fault:
        if required or fault.exit_code is not ExitCode.ADDRESS or not find_status_paths():
            raise
        return None
    status.pop("schema_version", None)
    return status
