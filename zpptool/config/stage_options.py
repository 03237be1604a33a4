# SPDX-License-Identifier: Apache-2.0
"""What a user asks of one stage, and the spec that follows from it. All is checked here; nothing is started."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from zpptool.checkpoint.model_config import read_config
from zpptool.config.engine_arguments import expanded_arguments, refuse_decided
from zpptool.config.engine_kind import Engine
from zpptool.config.link_security import check_safety
from zpptool.config.plan import load_plan_file
from zpptool.config.resolve import resolve_place, spec_of_plan
from zpptool.config.runtime_options import RuntimeOptions, refuse_idle_standby
from zpptool.config.stage_links import LinkAddresses, head_endpoint, refuse_api_port, resolve_links
from zpptool.config.stage_spec import StageSpec
from zpptool.config.tensor_parallel import head_faults, tensor_parallel_sizes
from zpptool.errors import invalid_error, usage_error
from zpptool.net.addresses import DEFAULT_HOST
from zpptool.sources.located import local_path
from zpptool.wire.security.key_files import key_path


@dataclass(frozen=True)
class StageOptions:
    """What a user asks of one stage; see `zpptool run-stage --help`.

    Attributes:
        model: a stage directory, a directory of stages, or a full checkpoint; None for the plan's own.
        source: names the model and its state beyond this machine; empty for a path.
        served_name: what requests call the model; empty for the directory.
        plan_file: a plan, which then gives partition, links, engine, dtype, engine arguments and API address.
        stage: the stage's index.
        num_stages: how many stages there are.
        layer_range: the stage's own range.
        ranges: every stage's range.
        engine: what computes.
        addresses: of the links.
        api_host: the address that stage 0's OpenAI API listens on.
        api_port: its port.
        headless: whether the head is a script.
        head_addr: `HOST:PORT` that a script's head binds.
        dtype: of weights and activations; `auto` for the checkpoint's own.
        tensor_parallel_size: as it was typed; a plan gives its own.
        engine_args: passed to the engine.
        standby: how many spare processes are kept.
        runtime: how the stage runs. `keys` may be a directory of key files.
    """

    model: Path | None
    source: str = ""
    served_name: str = ""
    plan_file: Path | None = None
    stage: int | None = None
    num_stages: int | None = None
    layer_range: str | None = None
    ranges: tuple[str, ...] = ()
    engine: Engine = Engine.VLLM
    addresses: LinkAddresses = field(default_factory=LinkAddresses)
    api_host: str = DEFAULT_HOST
    api_port: int = 8000
    headless: bool = False
    head_addr: str | None = None
    dtype: str = "auto"
    tensor_parallel_size: str = "1"
    engine_args: tuple[str, ...] = ()
    standby: int = 0
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)


def resolve_stage(options: StageOptions) -> StageSpec:
    """The spec of the stage that a user asks for.

    Links that other machines can reach without keys are logged as a warning where the user allows them.

    Raises:
        ZppError: (USAGE), (INVALID) or (ADDRESS): something is missing, contradicts itself, or cannot be used.
    """
    spec = _planned_spec(options) if options.plan_file is not None else _given_spec(options)
    refuse_decided(expanded_arguments(spec.engine, spec.engine_args))
    if options.head_addr is not None and not (options.headless and spec.is_first):
        raise usage_error("--head-addr is for a headless stage 0", "Give --headless too, on stage 0.")
    if options.headless and spec.engine is not Engine.VLLM:
        raise usage_error("--headless is for vLLM: only zpptool.LLM is a head of its own", "Use --engine vllm.")
    origin = local_path(spec.directory)  # a stage directory remembers where its model came from
    spec = msgspec.structs.replace(
        spec,
        source=options.source or origin.source,
        served_name=options.served_name or origin.served,
    )
    if spec.keys:
        spec = spec.with_runtime(keys=str(key_path(Path(spec.keys), spec.stage).resolve()))
    if options.headless:
        spec = spec.with_runtime(recovery_deadline_s=0.0)  # the head of a script does not survive the loss of a stage
    if options.headless and spec.is_first:
        local = head_endpoint(spec.connect, options.head_addr)
        spec = msgspec.structs.replace(spec, headless=True, local=local)
    check_safety(spec)
    refuse_idle_standby(options.standby, spec.recovery_deadline_s)
    return spec


def _planned_spec(options: StageOptions) -> StageSpec:
    """The spec that a plan gives."""
    assert options.plan_file is not None
    return spec_of_plan(load_plan_file(options.plan_file), options.stage, options.model, options.runtime)


def _given_spec(options: StageOptions) -> StageSpec:
    """The spec that follows from the options alone."""
    assert options.model is not None
    sizes = tensor_parallel_sizes(options.tensor_parallel_size, options.engine)
    if len(sizes) != 1:
        raise usage_error(f"--tensor-parallel-size {options.tensor_parallel_size}: a stage has one size, its own")
    place = resolve_place(
        options.model,
        stage=options.stage,
        num_stages=options.num_stages,
        layer_range=options.layer_range,
        ranges=options.ranges,
    )
    num_stages = len(place.partition)
    bind, connect = resolve_links(place.stage, num_stages, options.addresses)
    if place.stage == 0 and not options.headless:
        refuse_api_port(bind, connect, num_stages, options.api_port, options.addresses)
    if sizes[0] > 1 and (faults := head_faults(read_config(place.directory), {place.stage: sizes[0]})):
        raise invalid_error(faults[0], "Give another --tensor-parallel-size.")
    return StageSpec(
        engine=options.engine,
        model=str(place.directory),
        partition=tuple((own.start, own.end) for own in place.partition),
        stage=place.stage,
        bind=bind,
        connect=connect,
        dtype=options.dtype,
        api_host=options.api_host,
        api_port=options.api_port,
        engine_args=options.engine_args,
        tensor_parallel_size=sizes[0],
        runtime=options.runtime,
    )
