# SPDX-License-Identifier: Apache-2.0
"""`zpptool status`: how a pipeline fares, stage by stage and link by link, as a front or a head here tells."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zpptool.cli.options import JsonOption
from zpptool.cli.top import DEFAULT_URL, KeyOption, show_front
from zpptool.console import Console, human_bytes
from zpptool.errors import ExitCode, ZppError, usage_error

if TYPE_CHECKING:
    from zpptool.pipeline.ring.status import RingStatus, StageStatus


def status(
    url: Annotated[str | None, typer.Option("--url", metavar="URL", help="A front's address.")] = None,
    api_key: KeyOption = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            "--run-dir",
            metavar="DIR",
            help="The private directory of stage 0, or the status socket in it; found out if there is one pipeline.",
        ),
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", metavar="S", min=0, help="Seconds to wait.")] = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Show every stage and link of the pipelines behind a front, or of the one whose head runs on this machine.

    Without --url and --run-dir: of the front that `zpptool serve` starts by default, else of the head on this machine.

    Exit code 0: it is whole. 6: it is not, and the output says why. 5: nobody answers there.
    """
    if url is not None and run_dir is not None:
        raise usage_error("--url and --run-dir name two pipelines", "Give one of them.")
    told = _front_status(url or DEFAULT_URL, api_key, needed=url is not None) if run_dir is None else None
    if told is None:
        _head_status(run_dir, timeout, as_json)
        return
    Console(as_json=as_json).result(told, lambda out: show_front(out, told))
    if not told["ready"]:
        raise typer.Exit(ExitCode.STAGE)


def _front_status(url: str, api_key: str | None, *, needed: bool) -> dict[str, Any] | None:
    """What the front tells; None where there is no front, and it is not needed as there is a head on this machine."""
    import httpx

    from zpptool.pipeline.ring.status import find_status_paths
    from zpptool.serve.watch import fetch_status

    try:
        with httpx.Client(trust_env=False) as client:
            told = fetch_status(client, url, api_key)
    except ZppError as fault:
        if needed or fault.exit_code is not ExitCode.ADDRESS or not find_status_paths():
            raise
        return None
    told.pop("schema_version", None)
    return told


def _head_status(run_dir: Path | None, timeout: float, as_json: bool) -> None:
    import msgspec

    from zpptool.pipeline.ring.status import read_status, the_status_path

    told = read_status(the_status_path(run_dir), timeout)
    Console(as_json=as_json).result(msgspec.to_builtins(told), lambda out: _show(out, told))
    if told.fault:
        raise typer.Exit(ExitCode.STAGE)


def _show(out: Console, told: RingStatus) -> None:
    out.line(f"run {told.run_id}, epoch {told.epoch}: {told.phase}{': ' + told.fault if told.fault else ''}")
    places = (told.head, *told.stages)
    out.table(
        "",
        ("stage", "phase", "layers", "host", "pid", "epoch", "memory", "steps", "still", "heard"),
        [_stage_row(place) for place in places],
        right=("pid", "epoch", "memory", "steps", "still", "heard"),
    )
    out.table(
        "",
        ("link", "state", "endpoint", "epoch", "rtt", "queue", "sent", "received", "refused", "last error"),
        [_link_row(place) for place in places if place.link is not None],
        right=("epoch", "rtt", "queue", "sent", "received", "refused"),
    )


def _name(place: StageStatus) -> str:
    return "head" if place.stage < 0 else f"stage {place.stage}"


def _stage_row(place: StageStatus) -> tuple[object, ...]:
    return (
        _name(place),
        place.phase,
        "-".join(map(str, place.layers)) if place.layers else "-",
        place.host or "-",
        place.pid or "-",
        place.epoch,
        human_bytes(place.memory_bytes) if place.memory_bytes else "-",
        place.steps,
        f"{place.beat_age_s:.1f} s",
        f"{place.heard_age_s:.1f} s ago",
    )


def _link_row(place: StageStatus) -> tuple[object, ...]:
    link = place.link
    assert link is not None
    return (
        f"{_name(place)} -> {link.peer}",
        link.state,
        link.endpoint,
        link.epoch,
        "-" if link.rtt_ms is None else f"{link.rtt_ms:.2f} ms",
        link.queue,
        f"{link.messages_sent} ({human_bytes(link.bytes_sent)})",
        f"{link.messages_received} ({human_bytes(link.bytes_received)})",
        link.refused,
        link.last_error or "-",
    )
