# SPDX-License-Identifier: Apache-2.0
"""`zpptool plan`: partition, addresses and weights of a pipeline in one file, and what to run on each host."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from zpptool.cli.options import (
    ApiPortOption,
    BasePortOption,
    DtypeOption,
    EngineOption,
    HostsOption,
    JsonOption,
    ModelOption,
    NumStagesOption,
    RangesOption,
    RevisionOption,
    TensorParallelOption,
    TokenOption,
    VllmConfigOption,
    WireCodecOption,
    comma_separated,
    model_and_ranges,
)
from zpptool.cli.plan_devices import plan_on_devices, show_report, with_limits
from zpptool.config.endpoints import DEFAULT_API_PORT, DEFAULT_BASE_PORT
from zpptool.config.engine_kind import Engine
from zpptool.config.plan import PipelinePlan, make_plan
from zpptool.config.runs_on import AUTO, StageWishes
from zpptool.console import Console, human_bytes
from zpptool.deploy.shell_commands import host_commands
from zpptool.errors import ZppError, invalid_error, usage_error
from zpptool.wire.compression.adaptive import WireCodec


def plan(
    ctx: typer.Context,
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL", help="A full checkpoint, or org/name.")
    ] = None,
    model: ModelOption = None,
    revision: RevisionOption = None,
    token: TokenOption = None,
    vllm_config: VllmConfigOption = None,
    num_stages: NumStagesOption = None,
    ranges: RangesOption = None,
    base_port: BasePortOption = DEFAULT_BASE_PORT,
    api_port: ApiPortOption = DEFAULT_API_PORT,
    hosts: HostsOption = None,
    engine: EngineOption = Engine.VLLM,
    dtype: DtypeOption = "auto",
    wire_codec: WireCodecOption = WireCodec.NONE,
    tensor_parallel_size: TensorParallelOption = "1",
    device: Annotated[
        str,
        typer.Option("--device", metavar="DEVICE", help="cpu or cuda, one for all stages or one a stage: cuda,cpu."),
    ] = AUTO,
    image: Annotated[
        str | None, typer.Option("--image", metavar="IMAGE", help="The container image, or one a stage: A,B.")
    ] = None,
    memory_gib: Annotated[
        str | None, typer.Option("--memory-gib", metavar="N", help="Host memory of a deployed stage, or one a stage.")
    ] = None,
    cpus: Annotated[
        str | None, typer.Option("--cpus", metavar="N", help="Processors of a deployed stage, or one a stage.")
    ] = None,
    invite: Annotated[
        bool,
        typer.Option(
            "--invite",
            envvar="ZPP_PLAN_INVITE",  # ZPP_INVITE is a token, for run-stage
            show_envvar=False,
            help="Print one token a stage, with which it joins: run-stage --invite.",
        ),
    ] = False,
    invite_dir: Annotated[
        Path | None,
        typer.Option("--invite-dir", metavar="DIR", help="Save these tokens in DIR, with mode 0600, and print none."),
    ] = None,
    invite_hours: Annotated[
        float, typer.Option("--invite-hours", metavar="H", min=0.01, max=24 * 365, help="Hours until they expire.")
    ] = 24.0,
    invite_port: Annotated[
        int | None,
        typer.Option(
            "--invite-port",
            metavar="PORT",
            help="Where stages join, on stage 0's host; the base port + N + 2 by default.",
        ),
    ] = None,
    devices: Annotated[
        Path | None,
        typer.Option(
            "--devices", metavar="FILE", help="Choose hosts and layers for these devices (YAML, docs/planning.md)."
        ),
    ] = None,
    in_force: Annotated[
        Path | None,
        typer.Option("--in-force", metavar="PLAN", help="The plan that runs now: of equal plans, move the least."),
    ] = None,
    pipeline: Annotated[
        int,
        typer.Option("--pipeline", metavar="K", min=1, help="Which one, where --devices leads to several pipelines."),
    ] = 1,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the plan here, as YAML.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Plan a pipeline: which layers on which host, who binds what, how much weight. Reads headers only.

    What to run and what to open on each host is printed: run the command lines unchanged, in the file's directory.
    Sizes, devices, images and resources may differ from stage to stage (2,1,2); the dtype is the same everywhere.
    With --invite each host needs its command line only: plan and keys follow over the network.
    What follows -- goes to the engine. With --devices the hosts and the layers are chosen so that the slowest stage or
    link is as fast as possible, --num-stages is the most stages, and the reasons are printed.
    """
    from zpptool.checkpoint.model_config import read_config
    from zpptool.sources.names import ModelName
    from zpptool.sources.opened import open_model

    text, range_words = model_and_ranges(ctx, model, arguments, ranges)
    if devices is not None and (range_words or hosts or tensor_parallel_size != "1"):
        raise usage_error(
            "--devices chooses layers, hosts and sizes",
            "Leave out --ranges, --hosts and --tensor-parallel-size, or --devices.",
        )
    if in_force is not None and devices is None:
        raise usage_error("--in-force is for --devices", "Give --devices FILE too.")
    engine_args = tuple(ctx.obj or ())
    chosen = None
    with open_model(ModelName(text, revision, token)) as opened:
        if devices is not None:
            chosen = plan_on_devices(
                opened.directory,
                devices,
                engine=engine,
                dtype=dtype,
                most_stages=num_stages,
                in_force=in_force,
                number=pipeline,
            )
            engine_args = with_limits(engine_args, chosen.limits)
            num_stages, range_words, tensor_parallel_size = None, chosen.ranges, chosen.sizes
        made = make_plan(
            opened.directory,
            source=opened.source,
            num_stages=num_stages,
            ranges=range_words or None,
            base_port=base_port,
            api_port=api_port,
            hosts=chosen.hosts if chosen else comma_separated(hosts),
            engine=engine,
            dtype=dtype,
            engine_args=engine_args,
            wire_codec=wire_codec,
            wishes=_wishes(engine, tensor_parallel_size, device, image, memory_gib, cpus),
            invite_port=_port(invite or invite_dir is not None, invite_port, base_port, num_stages or len(range_words)),
        )
        config = read_config(opened.directory)
    if output is not None:
        if output.exists() and not force:
            raise invalid_error(f"{output} exists already", "Choose another name, or give --force.")
        try:
            output.write_text(made.to_yaml())
        except OSError as cause:
            raise ZppError(f"{output} cannot be written: {cause.strerror}", "Choose another -o FILE.") from cause
    invites = _invites(made, invite_hours, invite_dir, force)
    payload = _payload(made, config, output, invites)
    if chosen is not None:
        payload["planner"] = chosen.report
    Console(as_json=as_json).result(payload, lambda out: _show(out, made, payload, output))


def _port(wanted: bool, given: int | None, base_port: int, num_stages: int) -> int | None:
    """The port for invites; None for a plan without."""
    if not wanted:
        if given is not None:
            raise usage_error("--invite-port is for a plan with invites", "Give --invite too.")
        return None
    if num_stages < 2:
        raise usage_error("a pipeline of one stage has no other stage to invite", "Leave out --invite.")
    return base_port + num_stages + 2 if given is None else given


def _invites(made: PipelinePlan, hours: float, directory: Path | None, force: bool) -> list[str]:
    """What `run-stage --invite` gets for each stage: its token, or the file in which it is saved; empty for none."""
    import time

    from zpptool.invites.invite import make_invites
    from zpptool.invites.saved import save_invites

    if made.invite_address is None:
        return []
    invites = make_invites(made, made.invite_address, int(time.time() + hours * 3600))
    if directory is None:
        return [invite.to_text() for invite in invites]
    return list(map(str, save_invites(invites, directory, force=force)))


def _wishes(
    engine: Engine, sizes: str, device: str, image: str | None, memory_gib: str | None, cpus: str | None
) -> StageWishes:
    from zpptool.config.runs_on import whole_numbers
    from zpptool.config.tensor_parallel import tensor_parallel_sizes
    from zpptool.deploy.quoting import check_image

    images = comma_separated(image)
    for name in images:
        check_image(name)
    return StageWishes(
        tensor_parallel_sizes=tensor_parallel_sizes(sizes, engine),
        devices=comma_separated(device) or (AUTO,),
        images=images or ("",),
        memory_gib=whole_numbers("--memory-gib", memory_gib),
        cpus=whole_numbers("--cpus", cpus),
    )


def _payload(made: PipelinePlan, config: dict[str, Any], output: Path | None, invites: Sequence[str]) -> dict[str, Any]:
    from zpptool.config.memory_budget import kv_bytes_per_token

    return {
        "model": made.model,
        "model_digest": made.model_digest,
        "digest": made.digest,
        "num_layers": made.num_layers,
        "engine": made.engine,
        "file": str(output) if output else None,
        "stages": [
            {
                "stage": place.stage,
                "host": place.host,
                "layers": [own.start, own.end],
                "weight_bytes": place.weight_bytes,
                "kv_bytes_per_token": kv_bytes_per_token(config, own),
                "bind": place.bind,
                "connect": place.connect,
                "tensor_parallel_size": place.tensor_parallel_size,
                "device": place.runs_on.device,
                "image": place.runs_on.image or None,
                "memory_gib": place.runs_on.memory_gib or None,
                "cpus": place.runs_on.cpus or None,
            }
            for place, own in zip(made.stages, made.partition, strict=True)
        ],
        "hosts": [
            {
                "host": machine.host,
                "commands": list(machine.commands),
                "open": [{"port": rule.port, "peer": rule.peer} for rule in machine.rules],
            }
            for machine in host_commands(made, output or Path("zpp.yaml"), invites)
        ],
        "invites": list(invites),
    }


def _show(out: Console, made: PipelinePlan, payload: dict[str, Any], output: Path | None) -> None:
    rows = []
    for place, stage in zip(made.stages, payload["stages"], strict=True):
        per_token = stage["kv_bytes_per_token"]
        cache = human_bytes(per_token * 1024) if per_token else "?"
        ranks = f"{place.tensor_parallel_size} x {place.runs_on.device}"
        rows.append((place.stage, place.host, place.layers, human_bytes(place.weight_bytes), cache, ranks, place.bind))
    columns = ("stage", "host", "layers", "weights", "KV of 1024 tokens", "devices", "binds")
    out.table(f"{made.num_layers} layers of {made.model}", columns, rows, right=("stage", *columns[3:5]))
    if "planner" in payload:
        show_report(out, payload["planner"])
    for machine in host_commands(made, output or Path("zpp.yaml"), payload["invites"]):
        out.line(f"on {machine.host}:")
        for line in (*map(str, machine.rules), *machine.commands):
            out.line(f"  {line}")
    if payload["invites"]:
        out.line("each invite is a secret, and lets one machine join once; that of stage 0 is the secret of them all")
    if output or not payload["invites"]:
        out.line(f"wrote {output}" if output else "nothing is written: give -o FILE")
