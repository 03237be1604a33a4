# SPDX-License-Identifier: Apache-2.0
"""Every name of vLLM that is not its public API and that zpptool touches, in one place.

The rest of `engines/vllm/` asks here; a later vLLM that moves or renames one of these is met in this file alone. What
is relied on is listed as data in `contract.py`.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import difflib
import enum
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
from vllm.compilation.cuda_graph import CUDAGraphStat
from vllm.config import VllmConfig
from vllm.distributed import parallel_state
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.cli.serve import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.launchers.api_server.entry import run_server
from vllm.lora.request import LoRARequest
from vllm.model_executor.models.utils import is_pp_missing_parameter
from vllm.platforms import current_platform
from vllm.pooling_params import LateInteractionParams, PoolingParams
from vllm.sampling_params import (
    RepetitionDetectionParams,
    RequestOutputKind,
    SamplingParams,
    SamplingType,
    StructuredOutputsParams,
)
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1 import kv_cache_interface
from vllm.v1.attention.backend import MultipleOf
from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum
from vllm.v1.core.kv_cache_utils import KVCacheBlockCopy
from vllm.v1.core.sched import output as scheduler_output
from vllm.v1.outputs import (
    DraftTokenIds,
    KVConnectorOutput,
    LogprobsLists,
    LogprobsTensors,
    ModelRunnerOutput,
    SamplingMaskLists,
)
from vllm.v1.worker.worker_base import CompilationTimes, WorkerWrapperBase

from zpptool.config.engine_kind import BALANCED_SCHEDULER, RECOVERING_SCHEDULER
from zpptool.config.stage_spec import StageSpec
from zpptool.engines.vllm.compat.runner_kind import require_v1_runner
from zpptool.engines.vllm.compat.unsupported import refuse_what_stages_do_not_do, vllms_refusal
from zpptool.engines.vllm.compat.worker_modules import imported_worker_modules
from zpptool.errors import ZppError, usage_error
from zpptool.partition import vllm_layer_partition

PARTITION_VARIABLE = "VLLM_PP_LAYER_PARTITION"
"""vLLM's own variable; it holds layer counts."""

LAID_OUT_FROM = ("vllm_config", "kv_cache_specs", "available_memory")
"""What vLLM 0.32 lays out the cache from; 0.33 wants the groups too."""
SHARED_MEMORY = Path("/dev/shm")

__all__ = [
    "control_classes",
    "current_platform",
    "engine_config",
    "forget_environment",
    "is_pp_missing_parameter",
    "kv_cache_configs",
    "kv_heads",
    "make_worker",
    "pipeline_group",
    "prepare_environment",
    "run_server",
    "serve_arguments",
    "serve_parser",
    "set_empty_intermediate_tensors",
    "share_among",
    "tensor_parallel_group",
]  # fmt: skip


def control_classes() -> Iterator[type]:
    """The classes whose objects the scheduler, the executor and the workers hand to each other, and their enums."""
    yield from _data_classes(scheduler_output)
    yield from _data_classes(kv_cache_interface)
    yield from (
        ModelRunnerOutput, LogprobsLists, LogprobsTensors, SamplingMaskLists, KVConnectorOutput, DraftTokenIds,
        CUDAGraphStat, CompilationTimes, KVCacheBlockCopy, MultipleOf, MambaAttentionBackendEnum,
        SamplingParams, SamplingType, StructuredOutputsParams, RepetitionDetectionParams, RequestOutputKind,
        PoolingParams, LateInteractionParams, LoRARequest,
    )  # fmt: skip


def _data_classes(module: ModuleType) -> Iterator[type]:
    for _name, kind in inspect.getmembers(module, inspect.isclass):
        own = kind.__module__ == module.__name__
        if own and (dataclasses.is_dataclass(kind) or issubclass(kind, enum.Enum)):
            yield kind


def kv_cache_configs(config: VllmConfig, specs: list[dict[str, Any]], num_blocks: int) -> list[Any]:
    """Each stage's cache, of so many blocks, for the layers that it is told to have.

    Raises:
        ZppError: (FAILURE) this release of vLLM lays caches out in another way.
    """
    from vllm.v1.engine.core import get_kv_cache_configs  # of the engine core's process, which asks

    if tuple(inspect.signature(get_kv_cache_configs).parameters) != LAID_OUT_FROM:
        raise ZppError(
            "this release of vLLM lays out the cache in another way than the one that is known here",
            "Stop the pipeline, which answers what is under way, and start it anew with these ranges.",
        )
    cache = copy.copy(config.cache_config)
    cache.num_gpu_blocks_override = num_blocks
    own = copy.copy(config)
    own.cache_config = cache
    return get_kv_cache_configs(own, specs, [0] * len(specs))


def prepare_environment(spec: StageSpec) -> None:
    """Tell vLLM the partition; it reads this whenever it builds layers or counts them, in every process."""
    os.environ[PARTITION_VARIABLE] = vllm_layer_partition(spec.ranges)


def forget_environment() -> None:
    """Take back what `prepare_environment` told vLLM, in a process that may build another engine."""
    os.environ.pop(PARTITION_VARIABLE, None)


def keep_what_is_compiled() -> None:
    """Have a stage find what its last life has compiled, where the user has not chosen.

    On a CPU vLLM 0.32 saves whole artifacts that it then cannot load ("'function' object has no attribute
    'finalize_loading'"), and compiles anew in every life. Without them inductor's own cache serves.
    """
    if current_platform.is_cpu():
        os.environ.setdefault("VLLM_USE_AOT_COMPILE", "0")


def serve_parser() -> FlexibleArgumentParser:
    """What `vllm serve` parses its command line with; it raises `argparse.ArgumentError` rather than exit."""
    return make_arg_parser(_ServeParser(prog="zpptool run-stage ... --", exit_on_error=False))


class _ServeParser(FlexibleArgumentParser):
    """A parser that says one line about a fault, where argparse prints several hundred lines of usage."""

    def error(self, message: str) -> NoReturn:
        """Raise the fault; of an unknown flag with the one that was probably meant."""
        unknown = next((word.partition("=")[0] for word in message.split() if word.startswith("--")), "")
        if unknown and message.startswith("unrecognized"):
            near = difflib.get_close_matches(unknown.replace("_", "-"), self._option_string_actions, n=1)
            message += f" (did you mean {near[0]}?)" if near else ""
        raise argparse.ArgumentError(None, message)


def serve_arguments(spec: StageSpec, executor_class: type | None) -> argparse.Namespace:
    """What `vllm serve` would have parsed, with the ring as its executor, or with vLLM's own where that is None.

    vLLM refuses an executor by name when pipeline_parallel_size > 1, so that the class object is set on the namespace.

    Raises:
        ZppError: (USAGE) a device that this vLLM is not built for, or an engine argument that it does not know or that
            makes no sense across stages.
    """
    words = [
        spec.model, "--pipeline-parallel-size", str(spec.num_stages), "--dtype", spec.dtype,
        "--host", spec.api_host, "--port", str(spec.api_port), "--no-async-scheduling",
        *(("--served-model-name", spec.served_name) if spec.served_name else ()), *spec.engine_args,
    ]  # fmt: skip
    try:
        args = serve_parser().parse_args(words)
    except argparse.ArgumentError as cause:
        raise usage_error(f"vLLM does not take this: {cause}") from cause
    args.model = args.model_tag or args.model
    if spec.device not in ("auto", current_platform.device_type):
        raise usage_error(
            f"this vLLM computes on {current_platform.device_type}, not on {spec.device}",
            "vLLM is built for one kind of device: install the build for the other, or leave --device out.",
        )
    if args.tensor_parallel_size != 1 or args.data_parallel_size != 1:
        raise usage_error(
            "--tensor-parallel-size and --data-parallel-size after -- would be every stage's, and the head's",
            "Give --tensor-parallel-size before the --: it is this stage's own. --data-parallel-size must be 1.",
        )
    refuse_what_stages_do_not_do(args)
    if executor_class is not None:
        args.distributed_executor_backend = executor_class
        if args.scheduler_cls is None:
            args.scheduler_cls = BALANCED_SCHEDULER if spec.num_stages > 1 else RECOVERING_SCHEDULER
    validate_parsed_serve_args(args)
    return args


def share_among(args: argparse.Namespace, size: int) -> None:
    """Have `size` devices compute together what `args` describe.

    vLLM's own limits of a batch grow with the number of devices. Those of one are kept: the head, which knows of no
    devices, schedules within them.
    """
    scheduler = engine_config(args).scheduler_config
    args.max_num_batched_tokens = scheduler.max_num_batched_tokens
    args.max_num_seqs = scheduler.max_num_seqs
    args.tensor_parallel_size = size


def engine_config(args: argparse.Namespace) -> VllmConfig:
    """The engine's configuration, made as the API server makes it, so that head and stages come to the same one.

    Raises:
        ZppError: (USAGE) vLLM refuses it, in vLLM's words; or it leads to the V2 model runner.
    """
    arguments = AsyncEngineArgs.from_cli_args(args)
    try:
        config = arguments.create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    except Exception as cause:
        refusal = vllms_refusal(cause)
        if refusal is None:
            raise
        raise refusal from cause
    require_v1_runner(config)
    return config


def make_worker(config: VllmConfig, spec: StageSpec, rank: int, store: str) -> WorkerWrapperBase:
    """A worker of the kind that the platform asks for, at a stage's tensor-parallel rank, not yet on its device.

    `parallel_config.rank` decides which layers a worker counts as its own (`get_layers_start_end_indices`);
    `global_rank` which of the head's KV cache configurations, one a stage, it takes.

    Args:
        config: the engine's configuration, as this stage sees it.
        spec: the stage.
        rank: the rank in it, from 0; the device too.
        store: where the ranks of the stage meet.
    """
    config.parallel_config.rank = spec.stage * spec.tensor_parallel_size + rank
    wrapper = WorkerWrapperBase(rpc_rank=0, global_rank=spec.stage)
    wrapper.init_worker(
        [
            {
                "vllm_config": config,
                "local_rank": rank,
                "rank": config.parallel_config.rank,
                "distributed_init_method": store,
                "is_driver_worker": rank == 0,
            }
        ]
    )
    return wrapper


def kv_heads(config: VllmConfig) -> tuple[int, int]:
    """How many key-value heads the model has, and how many of them one tensor-parallel rank."""
    model = config.model_config
    return model.get_total_num_kv_heads(), model.get_num_kv_heads(config.parallel_config)


def tensor_parallel_group() -> Any:
    """The group of this stage's ranks."""
    return parallel_state.get_tp_group()


def unname_shared_memory(store: str) -> None:
    """Take away the names of the memory that the ranks of a stage share on a CPU, once all have it mapped: it goes with
    the last of them then, however that ends. (vLLM leaves the names for ever.)"""
    for path in SHARED_MEMORY.glob(f"{Path(store).name}-*-cpushm_*"):
        path.unlink(missing_ok=True)


@contextmanager
def pipeline_group(group: Any, tensor_parallel_rank: int) -> Iterator[None]:
    """While a worker sets up its device: let vLLM build its process groups for one stage alone, then put `group` in
    the place of its pipeline group.

    The function that builds them is bound by name in several modules. During the real call the pipeline has one stage,
    so that no stage waits for another; afterwards the configuration says the truth again.
    """
    modules = imported_worker_modules()
    real: Callable[..., None] = modules[0].init_worker_distributed_environment

    def alone(config: VllmConfig, rank: int, init_method: str | None, local_rank: int, backend: str) -> None:
        parallel = config.parallel_config
        num_stages, world_size = parallel.pipeline_parallel_size, parallel.world_size
        parallel.pipeline_parallel_size, parallel.world_size = 1, parallel.tensor_parallel_size
        try:
            real(config, tensor_parallel_rank, init_method, local_rank, backend)
        finally:
            parallel.pipeline_parallel_size, parallel.world_size = num_stages, world_size
        group.adopt(parallel_state._PP, torch.device(current_platform.device_type))
        parallel_state._PP = group

    for module in modules:
        module.init_worker_distributed_environment = alone
    try:
        yield
    finally:
        for module in modules:
            module.init_worker_distributed_environment = real


@torch.inference_mode()
def set_empty_intermediate_tensors(worker: WorkerWrapperBase, config: VllmConfig) -> None:
    """Make the buffers that a stage copies its input into, where vLLM has not.

    vLLM 0.32 makes them in the dummy run of its warm-up, which a CPU worker skips when it runs eagerly with a fixed KV
    cache; a later stage then dies of `assert self.intermediate_tensors is not None`.
    """
    runner = worker.worker.model_runner
    if runner.intermediate_tensors is None:
        runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
            batch_size=runner.max_num_tokens, dtype=config.model_config.dtype, device=runner.device
        )


def model_runner(worker: Any) -> Any:
    """The runner that computes a worker's steps.

    Raises:
        ZppError: it is not the one whose requests zpptool knows how to restore.
    """
    runner = worker.worker.model_runner
    if not hasattr(runner, "input_batch"):
        raise ZppError(
            f"vLLM's {type(runner).__module__} keeps its requests in a way that cannot be restored",
            "Set VLLM_USE_V2_MODEL_RUNNER=0, or start the whole pipeline again.",
        )
    return runner


def update_states(runner: Any, scheduled: Any) -> None:
    """Let a model runner take in which requests there are, as it does at the begin of every step."""
    runner._update_states(scheduled)


def drop_pending_step(runner: Any) -> None:
    """Forget a forward pass whose tokens were never sampled; vLLM refuses the next one as long as it waits."""
    runner.execute_model_state = None


@contextmanager
def discarded_rows_draw_nothing(worker: Any) -> Iterator[None]:
    """While a worker samples: leave the generators alone of sequences that have more of their prompt to compute.

    vLLM draws for them too and then sets the generator back by its offset. On a CPU it has none, and vLLM 0.32 dies of
    "CPU Generator does not use offset" when the prompt of a seeded request is computed in several steps.
    """
    runner = worker.worker.model_runner
    if runner.device.type != "cpu" or not hasattr(runner, "input_batch"):
        yield
        return
    batch = runner.input_batch
    mask = runner.discard_request_mask.np[: batch.num_reqs]
    kept = {row: batch.generators.pop(row) for row in mask.nonzero()[0].tolist() if row in batch.generators}
    try:
        yield
    finally:
        batch.generators.update(kept)


def samples() -> bool:
    """Whether this stage samples tokens: the last one does."""
    return parallel_state.get_pp_group().is_last_rank
