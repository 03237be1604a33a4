# SPDX-License-Identifier: Apache-2.0
"""From what a user wants tried to a trial's order: which directories, which addresses, which limits. Starts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import msgspec

from zpptool.checkpoint.config import context_length, read_config
from zpptool.checkpoint.manifest import Manifest
from zpptool.checkpoint.stage_tensors import model_digest
from zpptool.config.cpu_binding import stage_environments
from zpptool.config.endpoints import free_port
from zpptool.config.engine_kind import ENGINES, Engine
from zpptool.config.gpu_plan import place_on_gpus
from zpptool.config.gpu_pool import Group
from zpptool.config.local_pipeline import dynamic_partition, sizes_of_stages, split_stages, trial_endpoints
from zpptool.config.stage_spec import StageSpec
from zpptool.errors import invalid_error, usage_error
from zpptool.parity.joined_checkpoint import join_stages
from zpptool.parity.trial import TrialLaunchPlan
from zpptool.wire.compression.adaptive import WireCodec

TRIAL_MODEL_LEN = 1024
TRIAL_BATCHED_TOKENS = 256
KV_BLOCK_TOKENS = 128
"""vLLM's block size on a CPU; on a GPU blocks are smaller."""


@dataclass(frozen=True)
class TrialOptions:
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


def plan_trial(wish: TrialOptions, scratch: Path, log_dir: Path) -> TrialLaunchPlan:
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
            engine_args=common if wish.batched else (*common, *ENGINES[wish.engine].single_sequence_args),
        )
        for directory, link in zip(directories, endpoints, strict=True)
    )
    placed = place_on_gpus(stages, wish.gpu_ids)
    return TrialLaunchPlan(
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
