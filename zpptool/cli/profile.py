# SPDX-License-Identifier: Apache-2.0
"""`zpptool profile`: what this device takes for a model; with --links, what the links to another host take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zpptool.cli.options import (
    DeviceOption,
    DtypeOption,
    EngineOption,
    InsecureOption,
    JsonOption,
    KeysOption,
    LogDirOption,
    ModelOption,
    QuietOption,
    RevisionOption,
    StartTimeoutOption,
    TensorParallelOption,
    TokenOption,
    VllmConfigOption,
    WireCodecOption,
    model_and_ranges,
    on_command_line,
)
from zpptool.config.engine_kind import Engine
from zpptool.console import Console, human_bytes
from zpptool.errors import usage_error
from zpptool.wire.compression.adaptive import WireCodec

if TYPE_CHECKING:
    from zpptool.planner.device_profile import DeviceProfile, LinksFile, TimeGrid

OF_LINKS = ("listen", "peer", "respond", "keys", "insecure", "wire_codec")
"""Parameters that apply with --links only."""
OF_DEVICES = (
    "engine", "device", "kind", "dtype", "tensor_parallel_size", "seconds", "start_timeout", "log_dir", "revision"
)  # fmt: skip
"""Parameters that apply without --links only."""


def profile(
    ctx: typer.Context,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", help="A full checkpoint, or org/name.")
    ] = None,
    model: ModelOption = None,
    revision: RevisionOption = None,
    token: TokenOption = None,
    vllm_config: VllmConfigOption = None,
    engine: EngineOption = Engine.VLLM,
    device: DeviceOption = "auto",
    kind: Annotated[
        str | None,
        typer.Option("--kind", metavar="NAME", help="The name of this kind of device; its own name if not given."),
    ] = None,
    dtype: DtypeOption = "auto",
    tensor_parallel_size: TensorParallelOption = "1",
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="S", min=1, help="How long to measure, after everything is loaded.")
    ] = 100.0,
    links: Annotated[
        bool, typer.Option("--links", help="Measure the links to another host instead, in both directions.")
    ] = False,
    listen: Annotated[
        str | None, typer.Option("--listen", metavar="HOST:PORT", help="With --links: this host's address.")
    ] = None,
    peer: Annotated[
        str | None, typer.Option("--peer", metavar="HOST:PORT", help="With --links: the other host's --listen.")
    ] = None,
    respond: Annotated[
        bool, typer.Option("--respond", help="With --links, on one of the two hosts: answer, and write nothing.")
    ] = False,
    keys: KeysOption = None,
    insecure: InsecureOption = False,
    wire_codec: WireCodecOption = WireCodec.NONE,
    start_timeout: StartTimeoutOption = 600.0,
    log_dir: LogDirOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the measured numbers here, as YAML.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace FILE if it exists. Links are added to a file of links in any case.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure what one kind of device takes for a model: times of layers, memory, loading; for zpptool plan.

    Parts of the model are loaded by the engine's own stage workers, and take turns. A number that two profiles of the
    same device would not agree on within 5 % is marked as unstable. What follows -- goes to the engine: give what the
    stages will be given.

    With --links, run it on two hosts, on one of them with --respond. The keys are those of a pipeline of two stages:
    stage 1 responds.
    """
    console = Console(as_json=as_json, quiet=quiet or as_json)
    misplaced = [name for name in (OF_DEVICES if links else OF_LINKS) if on_command_line(ctx, name)]
    if misplaced:
        flag = misplaced[0].replace("_", "-")
        raise usage_error(f"--{flag} {'does not apply' if links else 'applies'} with --links{'' if links else ' only'}")
    if links and (model or arguments):
        raise usage_error("links are measured without a model", "Leave MODEL out, or --links.")
    if links:
        _profile_links(console, listen, peer, keys, wire_codec, output, respond=respond, insecure=insecure)
        return
    from zpptool.config.engine_flags import check_engine_args
    from zpptool.config.tensor_parallel import tensor_parallel_sizes
    from zpptool.engines.registry import check_engine
    from zpptool.profiling.device import ProfileOptions, profile_device
    from zpptool.profiling.output import refuse_unwritable, write_whole
    from zpptool.sources.located import whole_model
    from zpptool.sources.names import ModelName

    text, _ranges = model_and_ranges(ctx, model, arguments, None)
    if output is not None:
        refuse_unwritable(output, force=force)
    check_engine_args(engine, ctx.obj or ())
    check_engine(engine)
    sizes = tensor_parallel_sizes(tensor_parallel_size, engine)
    if len(sizes) > 1:
        raise usage_error("one kind of device is measured at a time", "Give one --tensor-parallel-size.")
    options = ProfileOptions(
        directory=whole_model(ModelName(text, revision, token), console).directory,
        name=text,
        engine=engine,
        device=device,
        kind=kind or "",
        dtype=dtype,
        engine_args=tuple(ctx.obj or ()),
        tensor_parallel_size=sizes[0],
        seconds=seconds,
        timeout_s=start_timeout,
        log_dir=log_dir,
    )
    made = profile_device(options, console.note)
    if output is not None:
        write_whole(output, made.to_yaml())
    console.result(_payload(made, output), lambda out: _show(out, made, output))


def _profile_links(
    console: Console,
    listen: str | None,
    peer: str | None,
    keys: Path | None,
    codec: WireCodec,
    output: Path | None,
    *,
    respond: bool,
    insecure: bool,
) -> None:
    from zpptool.config.stage_links import host_port
    from zpptool.planner.device_profile import read_links
    from zpptool.profiling.link_ends import LinkEnd
    from zpptool.profiling.links import measure_links, with_links
    from zpptool.profiling.output import refuse_unwritable, write_whole
    from zpptool.wire.security.key_files import key_path, read_key_file

    if listen is None or peer is None:
        raise usage_error(
            "--links needs --listen and --peer", "For example --listen 10.0.0.1:15600 --peer 10.0.0.2:15600."
        )
    if respond and output is not None:
        raise usage_error("the host that responds writes nothing", "Give -o FILE on the other host.")
    own, other = host_port(listen), host_port(peer)
    if output is not None:
        refuse_unwritable(output, force=True)
    known = read_links(output) if output is not None and output.exists() else ()
    key_file = read_key_file(key_path(keys, int(respond))) if keys is not None else None
    with LinkEnd(
        f"tcp://{own}", f"tcp://{other}", responds=respond, keys=key_file, insecure=insecure, codec=codec
    ) as end:
        if respond:
            console.note(f"responding at {own} to {other}")
            count = end.respond()
            console.result({"messages": count}, lambda out: out.line(f"answered {count} messages of {other}"))
            return
        measured = measure_links(end, _host(own), _host(other), console.note)
    file = with_links(known, measured)
    if output is not None:
        write_whole(output, file.to_yaml())
    payload = {"file": str(output) if output else None, "links": _plain(measured)}
    console.result(payload, lambda out: _show_links(out, file, output))


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _plain(value: object) -> object:
    import msgspec

    return msgspec.to_builtins(value)


def _payload(made: DeviceProfile, output: Path | None) -> dict[str, object]:
    return {"file": str(output) if output else None, "profile": _plain(made)}


def _show(out: Console, made: DeviceProfile, output: Path | None) -> None:
    rows = []
    grids = {**made.layers, "step": made.step, "embedding": made.embedding, "lm_head": made.lm_head}
    for name, grid in {**grids, "sampler": made.sampler}.items():
        rows += _rows(name, grid)
    out.table(
        f"{made.model.name} on {made.device}, {made.engine}",
        ("of", "step", "tokens", "sequences", "context", "time", ""),
        rows,
        right=("tokens", "sequences", "context", "time"),
    )
    for sample in made.workspace:
        tokens = sample.max_num_batched_tokens
        out.line(f"memory besides weights and cache, {tokens} tokens a step: {human_bytes(sample.bytes)}")
    if made.load is not None:
        out.line(f"weights are read at {human_bytes(round(made.load.bytes_per_second))}/s")
    if made.kv is not None:
        for kind, size in made.kv.bytes_per_token.items():
            out.line(f"cache of a layer of type {kind}: {human_bytes(size)} for each token")
        for kind, size in made.kv.bytes_per_sequence.items():
            out.line(f"state of a layer of type {kind}: {human_bytes(size)} for each sequence")
    out.line(f"wrote {output}" if output else "nothing is written: give -o FILE")


def _rows(name: str, grid: TimeGrid) -> list[tuple[object, ...]]:
    return [
        (
            name, phase, sample.tokens, sample.sequences, sample.context, f"{sample.seconds * 1e3:.3f} ms",
            "" if sample.stable else "unstable",
        )
        for phase, samples in (("prefill", grid.prefill), ("decode", grid.decode))
        for sample in samples
    ]  # fmt: skip


def _show_links(out: Console, file: LinksFile, output: Path | None) -> None:
    rows = [
        (link.origin, link.target, f"{link.round_trip_seconds * 1e6:.0f} us", human_bytes(rate.bytes),
         f"{human_bytes(round(rate.bytes_per_second))}/s")
        for link in file.links
        for rate in link.rates
    ]  # fmt: skip
    out.table("", ("from", "to", "round trip", "messages of", "throughput"), rows, right=("round trip", "throughput"))
    out.line(f"wrote {output}" if output else "nothing is written: give -o FILE")
