# SPDX-License-Identifier: Apache-2.0
"""`zpptool plan`: partition, addresses and weights of a pipeline in one file, and what to run on each host."""

from __future__ import annotations

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
    TokenOption,
    VllmConfigOption,
    WireCodecOption,
    comma_separated,
    model_and_ranges,
)
from zpptool.config.endpoints import DEFAULT_API_PORT, DEFAULT_BASE_PORT
from zpptool.config.engine_kind import Engine
from zpptool.config.plan import PipelinePlan, make_plan
from zpptool.console import Console, human_bytes
from zpptool.deploy.shell_commands import host_commands
from zpptool.errors import ZppError, invalid_error
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
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the plan here, as YAML.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Plan a pipeline: which layers on which host, who binds what, how much weight. Reads headers only.

    What to run and what to open on each host is printed: run the command lines unchanged, in the file's directory.
    What follows -- goes to the engine.
    """
    from zpptool.checkpoint.model_config import read_config
    from zpptool.sources.names import ModelName
    from zpptool.sources.opened import open_model

    text, range_words = model_and_ranges(ctx, model, arguments, ranges)
    with open_model(ModelName(text, revision, token)) as opened:
        made = make_plan(
            opened.directory,
            source=opened.source,
            num_stages=num_stages,
            ranges=range_words or None,
            base_port=base_port,
            api_port=api_port,
            hosts=comma_separated(hosts),
            engine=engine,
            dtype=dtype,
            engine_args=tuple(ctx.obj or ()),
            wire_codec=wire_codec,
        )
        config = read_config(opened.directory)
    if output is not None:
        if output.exists() and not force:
            raise invalid_error(f"{output} exists already", "Choose another name, or give --force.")
        try:
            output.write_text(made.to_yaml())
        except OSError as cause:
            raise ZppError(f"{output} cannot be written: {cause.strerror}", "Choose another -o FILE.") from cause
    payload = _payload(made, config, output)
    Console(as_json=as_json).result(payload, lambda out: _show(out, made, payload, output))


def _payload(made: PipelinePlan, config: dict[str, Any], output: Path | None) -> dict[str, Any]:
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
            }
            for place, own in zip(made.stages, made.partition, strict=True)
        ],
        "hosts": [
            {
                "host": machine.host,
                "commands": list(machine.commands),
                "open": [{"port": rule.port, "peer": rule.peer} for rule in machine.rules],
            }
            for machine in host_commands(made, output or Path("zpp.yaml"))
        ],
    }


def _show(out: Console, made: PipelinePlan, payload: dict[str, Any], output: Path | None) -> None:
    rows = []
    for place, stage in zip(made.stages, payload["stages"], strict=True):
        per_token = stage["kv_bytes_per_token"]
        cache = human_bytes(per_token * 1024) if per_token else "?"
        rows.append((place.stage, place.host, place.layers, human_bytes(place.weight_bytes), cache, place.bind))
    columns = ("stage", "host", "layers", "weights", "KV of 1024 tokens", "binds")
    out.table(f"{made.num_layers} layers of {made.model}", columns, rows, right=("stage", *columns[3:5]))
    for machine in host_commands(made, output or Path("zpp.yaml")):
        out.line(f"on {machine.host}:")
        for line in (*map(str, machine.rules), *machine.commands):
            out.line(f"  {line}")
    out.line(f"wrote {output}" if output else "nothing is written: give -o FILE")
