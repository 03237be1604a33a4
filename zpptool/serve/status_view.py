# SPDX-License-Identifier: Apache-2.0
"""A front's `/pipeline/status`, fetched and formatted for `zpptool status` and `zpptool top`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from zpptool.console import human_bytes
from zpptool.errors import ZppError, address_error
from zpptool.net.addresses import without_credentials

TIMEOUT_S = 10.0
STAGE_COLUMNS = (
    "pipeline", "stage", "phase", "layers", "host", "pid", "generation", "memory", "busy", "rtt", "requests",
)  # fmt: skip
LINK_COLUMNS = ("pipeline", "link", "state", "epoch", "rtt", "queue", "sent", "received", "refused", "last error")
RIGHT = (
    "stage", "pid", "generation", "epoch", "memory", "busy", "rtt", "requests", "queue", "sent", "received", "refused",
)  # fmt: skip

WELL = frozenset({"ready", "computing", "connected"})
"""Phases and states that need no attention."""


def fetch_status(client: httpx.Client, url: str, key: str | None) -> dict[str, Any]:
    """Fetch the status of a front.

    Args:
        client: for the request.
        url: of the front.
        key: the API key, or None.

    Raises:
        ZppError: (ADDRESS) no server answers there, or not with a status; (FAILURE) the API key is missing or wrong.
    """
    shown = without_credentials(url)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        response = client.get(f"{url.rstrip('/')}/pipeline/status", headers=headers, timeout=TIMEOUT_S)
        status = response.json() if response.status_code == httpx.codes.OK else None
    except httpx.InvalidURL:  # its message may hold a part of a password
        raise address_error(f"{shown} is not a valid URL", "Name the front to ask with --url.") from None
    except (httpx.HTTPError, ValueError) as cause:
        raise address_error(f"no front answers at {shown}: {cause}", "Name the one to ask with --url.") from cause
    if response.status_code == httpx.codes.UNAUTHORIZED:
        raise ZppError(f"the front at {shown} requires an API key", "Give it with --api-key, or as ZPP_API_KEY.")
    if not isinstance(status, dict) or "stages" not in status:
        raise address_error(
            f"{shown} answers /pipeline/status with {response.status_code}, not with a status",
            "That is not a front of zpptool serve; a head's own API has no status.",
        )
    return status


def summary(status: Mapping[str, Any]) -> str:
    """One line: model, phase, tokens per second, and requests."""
    requests = status["requests"]
    spares = sum(replica.get("spares", 0) for replica in status["replicas"])
    rate = f", {status['tokens_per_s']:.1f} tokens/s" if status["tokens_per_s"] is not None else ""
    return (
        f"{status['model'] or 'no model yet'}: {status['phase']}{rate}, {requests['in_flight']} requests under way,"
        f" {requests['waiting']} waiting, {requests['answered']} answered, {requests['failed']} failed"
        f"{f', {spares} spare processes ready' if spares else ''}"
    )


def stage_rows(status: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row a stage, with the cells of `STAGE_COLUMNS`."""
    return [
        (
            str(stage["replica"]),
            str(stage["stage"]),
            str(stage["phase"]),
            "-".join(map(str, stage["layers"] or ())),
            str(stage["host"]),
            _or_dash(stage["pid"]),
            str(stage.get("generation", stage["epoch"])),  # a front of an earlier version has only the epoch
            human_bytes(stage["memory"]) if stage["memory"] is not None else "-",
            "-" if stage.get("busy") is None else f"{stage['busy']:.0%}",
            _milliseconds(stage["rtt_ms"]),
            str(stage["requests"]),
        )
        for stage in status["stages"]
    ]


def link_rows(status: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row a known link, with the cells of `LINK_COLUMNS`: for each pipeline the head's, then its stages'."""
    rows = []
    for replica in status["replicas"]:
        stages = [stage for stage in status["stages"] if stage["replica"] == replica["replica"]]
        senders = [("head", replica["head"] or {}), *((f"stage {stage['stage']}", stage) for stage in stages)]
        rows += [_link_row(replica["replica"], name, own["link"]) for name, own in senders if own.get("link")]
    return rows


def _link_row(pipeline: str, sender: str, link: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        pipeline,
        f"{sender} -> {link['peer']}",
        link["state"],
        str(link["epoch"]),
        _milliseconds(link["rtt_ms"]),
        str(link["queue"]),
        f"{link['messages_sent']} ({human_bytes(link['bytes_sent'])})",
        f"{link['messages_received']} ({human_bytes(link['bytes_received'])})",
        str(link["refused"]),
        link["last_error"] or "-",
    )


def reasons(status: Mapping[str, Any]) -> list[str]:
    """One line a pipeline that is not ready, with the reason."""
    return [
        f"{replica['replica']}: {replica['phase']}: {replica['why']}"
        for replica in status["replicas"]
        if not replica["ready"] and replica["why"]
    ]


def batch_lines(status: Mapping[str, Any]) -> list[str]:
    """One line a batch that is not over."""
    return [
        f"{batch['id']}: {batch['status']}, {batch['done']} of {batch['total']} lines done, {batch['failed']} failed"
        for batch in status.get("batches", ())  # a front of an earlier version has none
    ]


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} ms"


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)
