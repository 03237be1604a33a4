# SPDX-License-Identifier: Apache-2.0
"""From what a user wants tried to a trial's order: which directories, which addresses, which limits. Starts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import msgspec

from zpptool.checkpoint.config import context_length, read_config
from zpptool.checkpoint.loading import count_layers, model_digest
from zpptool.checkpoint.manifest import Manifest, load_manifest
from zpptool.errors import address_error, invalid_error, usage_error
from zpptool.layers import Partition, resolve_partition
from zpptool.pipeline.binding import stage_environments
from zpptool.pipeline.gpuplan import place_on_gpus
from zpptool.pipeline.gpupool import Group
from zpptool.pipeline.spec import StageSpec
from zpptool.pipeline.trial.joined import join_stages
from zpptool.pipeline.trial.run import TrialOrder, free_port
from zpptool.plan import Engine
from zpptool.ports import StageEndpoints, open_ports, plan_endpoints, probe_ports
from zpptool.wire.gauge import WireCodec

ALONE_IN_A_STEP = {
    Engine.TRANSFORMERS: (),
    Engine.VLLM: ("--scheduler-cls", "zpptool.engines.vllm.solo.SoloScheduler"),
}
"""What makes each engine compute every sequence in steps of its own; the embedded one never does otherwise."""
TRIAL_MODEL_LEN = 1024
TRIAL_BATCHED_TOKENS = 256
KV_BLOCK_TOKENS = 128
"""vLLM's block size on a CPU; on a GPU blocks are smaller."""


@dataclass(frozen=True)
class TrialWish:
    """What a user asked for; see `zpptool test-pipeline --help`."""

    engine: Engine
    model: Path | None
    pipeline_dir: Path | None
    num_stages: int | None
    ranges: tuple[str, ...]
    prompts: tuple[str, ...]
    as_chat: bool
    with_long_prompts: bool
    batched: bool
    max_new_tokens: int
    dtype: str
    device: str
    gpu_ids: tuple[Group, ...]
    base_port: int | None
    api_port: int | None
    engine_args: tuple[str, ...]
    start_timeout_s: float
    step_timeout_s: float
    tensor_parallel_sizes: tuple[int, ...] = (1,)
    trace: Path | None = None
    wire_codec: WireCodec = WireCodec.NONE


def plan_trial(wish: TrialWish, scratch: Path, log_dir: Path) -> TrialOrder:
    """Everything a trial needs to know.

    Args:
        wish: what the user asked for.
        scratch: a private directory that lives as long as the trial.
        log_dir: where the logs go.

    Raises:
        ZppError: (USAGE), (INVALID) or (ADDRESS): what was asked for cannot be.
    """
    refuse_unwritable_prompts(wish.prompts)
    if wish.pipeline_dir is not None:
        directories, manifests = split_stages(wish.pipeline_dir)
        partition = manifests[0].ranges
        if wish.num_stages not in (None, len(partition)):
            raise invalid_error(f"{wish.pipeline_dir} holds {len(partition)} stages, not {wish.num_stages}")
        whole = whole_model(wish.model, directories, manifests, scratch)
    else:
        assert wish.model is not None
        whole = wish.model
        partition = dynamic_partition(whole, wish.num_stages, wish.ranges)
        directories = [whole] * len(partition)
    longest = given_length(wish.engine, wish.engine_args) or longest_sequence(whole)
    common = engine_arguments(wish.engine, wish.engine_args, longest)
    unsplit = StageSpec(
        engine=wish.engine,
        model=str(whole),
        partition=((0, partition[-1].end),),
        stage=0,
        bind="",
        connect="",
        dtype=wish.dtype,
        device=wish.device,
        api_port=wish.api_port or free_port(),
        engine_args=common,
        start_timeout_s=wish.start_timeout_s,
        step_timeout_s=wish.step_timeout_s,
        wire_codec=wish.wire_codec,
    )
    sizes = sizes_of_stages(wish.tensor_parallel_sizes, len(partition))
    endpoints = trial_endpoints(len(partition), wish.base_port, unsplit.api_port, scratch)
    stages = tuple(
        msgspec.structs.replace(
            unsplit,
            model=str(directory),
            partition=tuple((own.start, own.end) for own in partition),
            stage=link.stage,
            bind=link.bind,
            connect=link.connect,
            local=f"ipc://{scratch / 'head'}",
            tensor_parallel_size=sizes[link.stage],
            trace=str(wish.trace.resolve()) if wish.trace is not None else "",
            engine_args=common if wish.batched else (*common, *ALONE_IN_A_STEP[wish.engine]),
        )
        for directory, link in zip(directories, endpoints, strict=True)
    )
    placed = place_on_gpus(stages, wish.gpu_ids)
    return TrialOrder(
        unsplit=unsplit,
        stages=placed.specs,
        prompts=wish.prompts,
        long_prompts=long_prompts(longest, wish.max_new_tokens) if wish.with_long_prompts else (),
        as_chat=wish.as_chat,
        batched=wish.batched,
        max_new_tokens=wish.max_new_tokens,
        log_dir=log_dir,
        env=stage_environments(sizes, placed.env),
    )


def sizes_of_stages(sizes: tuple[int, ...], num_stages: int) -> tuple[int, ...]:
    """Each stage's tensor-parallel size: one for all, or one a stage.

    Raises:
        ZppError: (USAGE) another number of them.
    """
    if len(sizes) == 1:
        return sizes * num_stages
    if len(sizes) != num_stages:
        raise usage_error(f"{len(sizes)} tensor-parallel sizes are given for {num_stages} stages", "Give one a stage.")
    return sizes


def split_stages(pipeline_dir: Path) -> tuple[list[Path], list[Manifest]]:
    """The stage directories of a split and their manifests, in order.

    Raises:
        ZppError: (INVALID) there are none, or they are not all stages of one split.
    """
    found = {path.parent.name for path in pipeline_dir.glob("stage_*/zpp-stage.json")}
    if not found:
        raise invalid_error(
            f"{pipeline_dir} holds no stages", "Name the directory that zpptool split wrote, with stage_0 in it."
        )
    first = load_manifest(pipeline_dir / min(found))
    directories = [pipeline_dir / f"stage_{stage}" for stage in range(first.num_stages)]
    wanted = {path.name for path in directories}
    if found != wanted:
        faults = [f"lacks {name}" for name in sorted(wanted - found)]
        faults += [f"also holds {name}" for name in sorted(found - wanted)]
        raise invalid_error(f"{pipeline_dir} {' and '.join(faults)}: it was split into {first.num_stages} stages")
    manifests = [load_manifest(path) for path in directories]
    for stage, (directory, manifest) in enumerate(zip(directories, manifests, strict=True)):
        if manifest.stage != stage:
            raise invalid_error(f"{directory} holds stage {manifest.stage}", "Give it back its name.")
        if (manifest.model_digest, manifest.ranges) != (first.model_digest, first.ranges):
            raise invalid_error(f"{directory} belongs to another split than {directories[0]}", "Split the model again.")
    return directories, manifests


def whole_model(model: Path | None, directories: Sequence[Path], manifests: Sequence[Manifest], scratch: Path) -> Path:
    """The unsplit model that a split is compared with: `model`, or else the stages seen as one.

    Raises:
        ZppError: (INVALID) `model` is not what the stages were split from.
    """
    if model is None:
        joined = scratch / "joined"
        joined.mkdir()
        join_stages(list(directories), joined)
        return joined
    if model_digest(model) != manifests[0].model_digest:
        raise invalid_error(f"{model} is not the model that {directories[0].parent} was split from")
    return model


def dynamic_partition(model: Path, num_stages: int | None, ranges: Sequence[str]) -> Partition:
    """The partition of a full checkpoint.

    Raises:
        ZppError: (USAGE) neither ranges nor a number of stages is given; (INVALID) they do not fit the model.
    """
    if num_stages is None and not ranges:
        raise usage_error("into how many stages?", "Give --num-stages N or --ranges START-END ...")
    return resolve_partition(count_layers(model), num_stages, list(ranges) or None)


def trial_endpoints(num_stages: int, base_port: int | None, api_port: int, scratch: Path) -> tuple[StageEndpoints, ...]:
    """Where the stages meet: over tcp on loopback when a base port is given, else over ipc in `scratch`.

    Raises:
        ZppError: (ADDRESS) a port cannot be, is the API's too, or is taken.
    """
    if base_port is None:
        endpoints = plan_endpoints(num_stages, transport="ipc", ipc_dir=scratch)
    else:
        endpoints = plan_endpoints(num_stages, base_port)
    open_ports(endpoints, api_port)
    faults = probe_ports(endpoints, api_port)
    if faults:
        raise address_error("; ".join(fault.message for fault in faults), "Give other ports, or none.")
    return endpoints


def refuse_unwritable_prompts(prompts: Sequence[str]) -> None:
    """Refuse what no request can carry.

    Raises:
        ZppError: (USAGE) a prompt is not UTF-8.
    """
    for prompt in prompts:
        try:
            prompt.encode()
        except UnicodeEncodeError as cause:
            raise usage_error(f"the prompt {prompt!r} is not UTF-8") from cause


def given_length(engine: Engine, given: Sequence[str]) -> int | None:
    """The model length that the user tells vLLM, where that is a plain number."""
    if engine is not Engine.VLLM:
        return None
    for word, following in zip_longest(given, given[1:], fillvalue=""):
        if _flag_name(word) == "--max-model-len":
            value = word.partition("=")[2] or following
            return int(value) if value.isdecimal() else None
    return None


def longest_sequence(model: Path) -> int:
    """How many tokens prompt and answer may have together in a trial of this model."""
    return min(context_length(read_config(model)) or TRIAL_MODEL_LEN, TRIAL_MODEL_LEN)


def long_prompts(longest: int, max_new_tokens: int) -> tuple[int, ...]:
    """Lengths that cross what a server cuts a prompt by: a KV block, and the tokens of one step.

    Raises:
        ZppError: (USAGE) answers of `max_new_tokens` leave no room for a prompt.
    """
    room = longest - max_new_tokens
    if room < 1:
        raise usage_error(
            f"answers of {max_new_tokens} tokens leave no room for a prompt: a trial has {longest} tokens for both",
            "Give a smaller --max-new-tokens.",
        )
    return tuple(dict.fromkeys(min(wanted, room) for wanted in (KV_BLOCK_TOKENS + 22, TRIAL_BATCHED_TOKENS + 44)))


def engine_arguments(engine: Engine, given: Sequence[str], longest: int) -> tuple[str, ...]:
    """What both sides of a trial tell the engine: what the user gave and, for vLLM, what he left open.

    No compilation, a small KV cache, steps so small that a prompt of moderate length takes several, and no prefix
    cache: with it, what one prompt leaves behind changes the steps of another.
    """
    if engine is not Engine.VLLM:
        return tuple(given)
    wanted = {
        "--enforce-eager": None,
        "--kv-cache-memory-bytes": str(256 << 20),
        "--max-num-batched-tokens": str(TRIAL_BATCHED_TOKENS),
        "--max-model-len": str(longest),
        "--no-enable-prefix-caching": None,
    }
    names = {_flag_name(word) for word in given}
    chosen = [
        [flag] if value is None else [flag, value] for flag, value in wanted.items() if _flag_name(flag) not in names
    ]
    return (*(word for words in chosen for word in words), *given)


def _flag_name(word: str) -> str:
    """A flag's name, however it is spelled: `--no-enforce_eager=...` is `--enforce-eager`."""
    return word.split("=")[0].replace("_", "-").replace("--no-", "--", 1)
