# SPDX-License-Identifier: Apache-2.0
"""Turns the options of `zpptool test-pipeline` into the launch plan of a trial: directories, addresses and limits. It
starts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import msgspec

from zpptool.checkpoint.manifest import Manifest
from zpptool.checkpoint.model_config import context_length, read_config
from zpptool.checkpoint.stage_tensors import model_digest
from zpptool.config.cpu_binding import stage_environments
from zpptool.config.engine_arguments import expanded_arguments, refuse_decided
from zpptool.config.engine_kind import ENGINES, Engine
from zpptool.config.gpu_plan import place_on_gpus
from zpptool.config.gpu_pool import Group
from zpptool.config.local_pipeline import dynamic_partition, split_stages, trial_endpoints
from zpptool.config.port_probe import free_port
from zpptool.config.runtime_options import RuntimeOptions
from zpptool.config.stage_spec import StageSpec
from zpptool.config.tensor_parallel import sizes_of_stages
from zpptool.errors import invalid_error, usage_error
from zpptool.parity.images import IMAGE_TRIAL_LEN, chat_template_arguments, data_urls
from zpptool.parity.joined_checkpoint import join_stages
from zpptool.parity.trial import TrialLaunchPlan
from zpptool.witness.options import Level, WitnessOptions

TRIAL_MODEL_LEN = 1024
TRIAL_BATCHED_TOKENS = 256
KV_BLOCK_TOKENS = 128
"""vLLM's block size on a CPU; on a GPU blocks are smaller."""


@dataclass(frozen=True)
class TrialOptions:
    """The options of a trial; see `zpptool test-pipeline --help`. Names ending in `_s` are in seconds."""

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
    gpu_ids: tuple[Group, ...]
    base_port: int | None
    api_port: int | None
    engine_args: tuple[str, ...]
    tensor_parallel_sizes: tuple[int, ...] = (1,)
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    images: tuple[Path, ...] = ()
    witness: Level = Level.OFF
    localise: bool = True
    witness_reference: Path | None = None
    load: int = 0
    long: int = 0


def plan_trial(options: TrialOptions, scratch: Path, log_dir: Path) -> TrialLaunchPlan:
    """The launch plan of a trial.

    Args:
        options: of the command.
        scratch: a private directory that exists as long as the trial.
        log_dir: the directory of the processes' logs.

    Raises:
        ZppError: (USAGE), (INVALID) or (ADDRESS): the options cannot be carried out.
    """
    refuse_unwritable_prompts(options.prompts)
    refuse_decided(expanded_arguments(options.engine, options.engine_args))
    images = data_urls(options.images)
    runtime = msgspec.structs.replace(options.runtime, witness=witness_options(options, scratch))
    if options.pipeline_dir is not None:
        directories, manifests = split_stages(options.pipeline_dir)
        partition = manifests[0].ranges
        if options.num_stages not in (None, len(partition)):
            raise invalid_error(f"{options.pipeline_dir} holds {len(partition)} stages, not {options.num_stages}")
        whole = whole_model(options.model, directories, manifests, scratch)
    else:
        assert options.model is not None
        whole = options.model
        partition = dynamic_partition(whole, options.num_stages, options.ranges)
        directories = [whole] * len(partition)
    most = IMAGE_TRIAL_LEN if images else TRIAL_MODEL_LEN
    given = given_length(options.engine, options.engine_args)
    longest = given or max(longest_sequence(whole, most), length_of_long_prompt(whole, options))
    common = engine_arguments(options.engine, options.engine_args, longest)
    if images and options.engine is Engine.VLLM:
        common = (*chat_template_arguments(whole, options.engine_args), *common)
    unsplit = StageSpec(
        engine=options.engine,
        model=str(whole),
        partition=((0, partition[-1].end),),
        stage=0,
        bind="",
        connect="",
        dtype=options.dtype,
        api_port=options.api_port or free_port(),
        engine_args=common,
        runtime=msgspec.structs.replace(runtime, trace=""),
    )
    sizes = sizes_of_stages(options.tensor_parallel_sizes, len(partition))
    endpoints = trial_endpoints(len(partition), options.base_port, unsplit.api_port, scratch)
    stages = tuple(
        msgspec.structs.replace(
            unsplit,
            model=str(directory),
            partition=tuple((layers.start, layers.end) for layers in partition),
            stage=link.stage,
            bind=link.bind,
            connect=link.connect,
            local=f"ipc://{scratch / 'head'}",
            tensor_parallel_size=sizes[link.stage],
            runtime=runtime,
            engine_args=common if options.batched else (*common, *ENGINES[options.engine].single_sequence_args),
        )
        for directory, link in zip(directories, endpoints, strict=True)
    )
    placed = place_on_gpus(stages, options.gpu_ids)
    return TrialLaunchPlan(
        unsplit=unsplit,
        stages=placed.specs,
        prompts=options.prompts,
        long_prompts=(
            *(long_prompts(longest, options.max_new_tokens) if options.with_long_prompts else ()),
            *((options.long,) if options.long else ()),
        ),
        as_chat=options.as_chat,
        batched=options.batched,
        max_new_tokens=options.max_new_tokens,
        log_dir=log_dir,
        env=stage_environments(sizes, placed.env),
        images=images,
        load=options.load,
        load_room=longest - options.max_new_tokens,
    )


def witness_options(options: TrialOptions, scratch: Path) -> WitnessOptions:
    """What the processes of a trial record, in a directory of `scratch` that is created.

    Raises:
        ZppError: (USAGE) the engine has no witness.
    """
    if options.witness is Level.OFF:
        if options.witness_reference is not None:
            raise usage_error(
                "--witness-reference needs the witness", "Use --witness layers, with --engine transformers."
            )
        return WitnessOptions()
    if not ENGINES[options.engine].diagnosis:
        raise usage_error(
            f"the {options.engine} engine has no witness", "Use --engine transformers, or leave --witness out."
        )
    directory = scratch / "witness"
    directory.mkdir()
    return WitnessOptions(options.witness, str(directory))


def whole_model(model: Path | None, directories: Sequence[Path], manifests: Sequence[Manifest], scratch: Path) -> Path:
    """The unsplit model that a split is compared with.

    Args:
        model: the checkpoint that was split; None to join the stages' own tensors by links instead.
        directories: the stages.
        manifests: of the stages.
        scratch: where the links are made.

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
    """Refuse prompts that JSON cannot carry.

    Raises:
        ZppError: (USAGE) a prompt is not UTF-8.
    """
    for prompt in prompts:
        try:
            prompt.encode()
        except UnicodeEncodeError as cause:
            raise usage_error(f"the prompt {prompt!r} is not UTF-8") from cause


def given_length(engine: Engine, given: Sequence[str]) -> int | None:
    """The value of `--max-model-len` in the user's arguments for vLLM; None where there is none, or no plain number."""
    if engine is not Engine.VLLM:
        return None
    for argument, following in zip_longest(given, given[1:], fillvalue=""):
        if _flag_name(argument) == "--max-model-len":
            value = argument.partition("=")[2] or following
            return int(value) if value.isdecimal() else None
    return None


def longest_sequence(model: Path, most: int = TRIAL_MODEL_LEN) -> int:
    """The most tokens of prompt and answer together in a trial of this model, and never more than `most`."""
    return min(context_length(read_config(model)) or most, most)


def length_of_long_prompt(model: Path, options: TrialOptions) -> int:
    """The tokens of the prompt of `--long` and its answer together; 0 without such a prompt.

    Raises:
        ZppError: (USAGE) the model's context is shorter.
    """
    if not options.long:
        return 0
    needed, context = options.long + options.max_new_tokens, context_length(read_config(model))
    if context is not None and needed > context:
        raise usage_error(
            f"a prompt of {options.long} tokens and its answer are {needed} tokens, and the model takes {context}",
            "Give a smaller --long.",
        )
    return needed


def long_prompts(longest: int, max_new_tokens: int) -> tuple[int, ...]:
    """Prompt lengths, in tokens, that exceed the units into which a server divides a prompt: a KV block, and one step.

    Raises:
        ZppError: (USAGE) answers of `max_new_tokens` leave no room for a prompt.
    """
    room = longest - max_new_tokens
    if room < 1:
        raise usage_error(
            f"answers of {max_new_tokens} tokens leave no room for a prompt: a trial has {longest} tokens for both",
            "Give a smaller --max-new-tokens.",
        )
    return tuple(dict.fromkeys(min(length, room) for length in (KV_BLOCK_TOKENS + 22, TRIAL_BATCHED_TOKENS + 44)))


def engine_arguments(engine: Engine, given: Sequence[str], longest: int) -> tuple[str, ...]:
    """The engine arguments of both sides of a trial: the user's and, for vLLM, defaults for those not given.

    The defaults: no compilation, a small KV cache, steps so small that a prompt of moderate length takes several, and
    no prefix cache, because with it a prompt's cached blocks change the steps of later prompts.

    Args:
        engine: of both sides.
        given: the user's arguments.
        longest: the most tokens of prompt and answer together.
    """
    if engine is not Engine.VLLM:
        return tuple(given)
    defaults = {
        "--enforce-eager": None,
        "--kv-cache-memory-bytes": str(256 << 20),
        "--max-num-batched-tokens": str(TRIAL_BATCHED_TOKENS),
        "--max-model-len": str(longest),
        "--no-enable-prefix-caching": None,
    }
    names = {_flag_name(argument) for argument in given}
    added = [
        [flag] if value is None else [flag, value] for flag, value in defaults.items() if _flag_name(flag) not in names
    ]
    return (*(argument for arguments in added for argument in arguments), *given)


def _flag_name(argument: str) -> str:
    """A flag's canonical name: `--no-enforce_eager=...` is `--enforce-eager`."""
    return argument.split("=")[0].replace("_", "-").replace("--no-", "--", 1)
