# SPDX-License-Identifier: Apache-2.0
"""The profile of a model on this machine's device, from the options of the command to the finished profile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from zpptool.checkpoint.index import read_index
from zpptool.checkpoint.layer_types import layer_types
from zpptool.checkpoint.model_config import context_length, read_config
from zpptool.checkpoint.stage_tensors import index_digest
from zpptool.checkpoint.structure import infer_structure
from zpptool.config.engine_arguments import expanded_arguments, has_option, refuse_decided
from zpptool.config.engine_kind import Engine
from zpptool.config.runtime_options import RuntimeOptions
from zpptool.config.stage_spec import StageSpec
from zpptool.partition import Partition, even_partition
from zpptool.planner.device_profile import CacheCosts, DeviceProfile, ProfiledModel
from zpptool.process.measuring import Cache, CacheReport, Limits, Load, Loaded, Point
from zpptool.process.run_dir import private_directory
from zpptool.profiling.grid import grid, workspace_tokens
from zpptool.profiling.measure import measure_load, measure_times, measure_workspace, now, profile_of
from zpptool.profiling.parts import PartsPlan, plan_parts
from zpptool.profiling.processes import MeasuringProcesses
from zpptool.supervisor.stage_processes import log_directory

RANKS = (1, 2, 4, 8)
"""The tensor-parallel sizes whose cache is reported."""
LONGEST = 8192 + 2048 + 128
"""Sequences of a measurement are not longer, so an engine need not have room for longer ones."""
STEP_TOKENS = 2048
CACHE_BYTES = 64 << 20
"""Named to vLLM so that it does not size the cache by free memory; the real size follows from the steps."""
MEMORY_SHARE = 0.1
"""What vLLM demands to be free on a GPU when it starts: the parts share one."""


@dataclass(frozen=True)
class ProfileOptions:
    """What the user asks for.

    Attributes:
        directory: the checkpoint.
        name: the model's name, as it is written into the profile.
        engine: what computes.
        device: `auto`, `cpu`, `cuda`.
        kind: the name of the kind of device; empty for the device's own name.
        dtype: the dtype to compute in.
        engine_args: what follows `--`.
        tensor_parallel_size: how many devices a stage will have; the cache is reported for that too. Times are those of
            one device.
        seconds: how long to measure, once everything is loaded.
        timeout_s: how long a process may take to start, load or answer.
        log_dir: where logs are kept; None keeps them only after an error.
    """

    directory: Path
    name: str
    engine: Engine
    device: str = "auto"
    kind: str = ""
    dtype: str = "auto"
    engine_args: tuple[str, ...] = ()
    tensor_parallel_size: int = 1
    seconds: float = 100.0
    timeout_s: float = 600.0
    log_dir: Path | None = None


def profile_device(options: ProfileOptions, report: Callable[[str], None]) -> DeviceProfile:
    """Measure the model, and return its profile.

    Args:
        options: what the user asks for.
        report: takes a line whenever there is progress.

    Raises:
        ZppError: the model cannot be measured on this engine, or a process has failed; the message has the end of its
            log.
    """
    index = read_index(options.directory)
    structure = infer_structure(index)
    plan = plan_parts(layer_types(index, structure), structure.joined)
    refuse_decided(expanded_arguments(options.engine, options.engine_args))
    with (
        private_directory() as scratch,
        log_directory(options.log_dir) as logs,
        MeasuringProcesses(scratch, logs, options.timeout_s) as processes,
    ):
        limits, points, loaded = _load(options, plan, processes, report)
        cache = _cache(options, plan, processes, report)
        at = now()
        report("measuring memory and the rate of loading")
        workspace = measure_workspace(processes, len(plan.parts), workspace_tokens(limits), at)
        load = measure_load(processes, loaded, at)
        report(f"measuring {len(points)} kinds of steps of {len(plan.parts)} parts")
        rounds = measure_times(processes, plan, points, options.seconds, report)
    return profile_of(
        rounds,
        plan,
        device=options.kind or limits.device,
        engine=options.engine,
        model=ProfiledModel(name=options.name, digest=index_digest(index), dtype=options.dtype),
        workspace=workspace,
        load=load,
        cache=msgspec.structs.replace(cache, at=at),
        at=now(),
    )


def _load(
    options: ProfileOptions, plan: PartsPlan, processes: MeasuringProcesses, report: Callable[[str], None]
) -> tuple[Limits, tuple[Point, ...], list[Loaded]]:
    """Start the processes and load the parts."""
    own = [f"{part.start}-{part.end}" for part in plan.parts]
    report(f"starting {options.engine} for layers {', '.join(own)}")
    numbers = [
        number
        for part in range(len(plan.parts))
        for number in processes.start(part_spec(options, *plan.partition(part)), f"layers {own[part]}")
    ]
    if options.engine is Engine.VLLM:
        processes.start(whole_spec(options, len(plan.types)), "the cache of all layers")
    limits, *_same = [processes.limits(number) for number in numbers]
    points = grid(limits, options.engine)
    report("loading")
    loaded = processes.all_asked([(number, Load(points)) for number in numbers], Loaded)
    return limits, points, loaded


def _cache(
    options: ProfileOptions, plan: PartsPlan, processes: MeasuringProcesses, report: Callable[[str], None]
) -> CacheCosts:
    """What the engine says of its cache: vLLM for the whole model, the embedded engine part by part."""
    if options.engine is Engine.VLLM:
        ranks = options.tensor_parallel_size
        costs = _cache_of([len(plan.parts)], plan, processes, ranks)
        if costs.layout is None or ranks == 1 or ranks in costs.layout.rank_factors:
            return costs
        report(f"starting {ranks} ranks, whose cache does not follow from that of the whole")
        numbers = processes.start(whole_spec(options, len(plan.types), ranks), f"the cache on {ranks} devices")
        of_ranks = _cache_of(numbers, plan, processes, ranks).layout
        assert of_ranks is not None
        layout = msgspec.structs.replace(costs.layout, of_ranks={ranks: of_ranks})
        return msgspec.structs.replace(costs, layout=layout)
    questions = [(part, Cache(plan.types)) for part in range(len(plan.parts))]
    return merged_costs([answer.costs for answer in processes.all_asked(questions, CacheReport)])


def _cache_of(numbers: Sequence[int], plan: PartsPlan, processes: MeasuringProcesses, wanted: int) -> CacheCosts:
    """What the ranks of the whole model say of their cache, and of that of `wanted` ranks; all say the same."""
    for number in numbers:
        processes.limits(number)
    question = Cache(plan.types, tuple(sorted({*RANKS, wanted})))
    answers = processes.all_asked([(number, question) for number in numbers], CacheReport)
    processes.end(numbers)
    return answers[0].costs


def merged_costs(costs: Sequence[CacheCosts]) -> CacheCosts:
    """The caches of all parts' layers in one."""
    return CacheCosts(
        bytes_per_token={kind: size for one in costs for kind, size in one.bytes_per_token.items()},
        bytes_per_sequence={kind: size for one in costs for kind, size in one.bytes_per_sequence.items()},
        tokens_at_most={kind: size for one in costs for kind, size in one.tokens_at_most.items()},
        block_size=costs[0].block_size,
        source=costs[0].source,
    )


def whole_spec(options: ProfileOptions, num_layers: int, ranks: int = 1) -> StageSpec:
    """The spec of the whole model on so many devices, whose cache is asked for."""
    spec = part_spec(options, even_partition(num_layers, 1), 0, measured=False)
    return msgspec.structs.replace(spec, tensor_parallel_size=ranks)


def part_spec(options: ProfileOptions, partition: Partition, stage: int, *, measured: bool = True) -> StageSpec:
    """The spec of a part.

    Args:
        options: what the user asks for.
        partition: the part and what is before and after it.
        stage: the part's place in it.
        measured: whether the part computes steps; then its sequences need not be longer than those of the grid.
    """
    return StageSpec(
        engine=options.engine,
        model=str(options.directory),
        partition=tuple((own.start, own.end) for own in partition),
        stage=stage,
        bind="",
        connect="",
        dtype=options.dtype,
        engine_args=(*options.engine_args, *_added_arguments(options, measured=measured)),
        headless=True,
        runtime=RuntimeOptions(device=options.device),
    )


def _added_arguments(options: ProfileOptions, *, measured: bool) -> tuple[str, ...]:
    """The arguments of vLLM that a measurement needs and the user has not given."""
    if options.engine is not Engine.VLLM:
        return ()
    given = expanded_arguments(options.engine, options.engine_args)
    wanted = {"--kv-cache-memory-bytes": str(CACHE_BYTES), "--gpu-memory-utilization": str(MEMORY_SHARE)}
    if measured:
        longest = context_length(read_config(options.directory)) or LONGEST
        wanted |= {"--max-model-len": str(min(longest, LONGEST)), "--max-num-batched-tokens": str(STEP_TOKENS)}
    return tuple(word for name, value in wanted.items() if not has_option(given, name) for word in (name, value))
