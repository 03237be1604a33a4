# SPDX-License-Identifier: Apache-2.0
"""`vllm.LLM` across stages, for scripts: the head is the script, the stages are processes of their own.

What vLLM's class does, this one does: it is that class, with the ring as its executor. Stages that it starts live as
long as it does, or as the script, however that ends.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import vllm

from zpptool.config.cpu_binding import stage_environments
from zpptool.config.endpoints import DEFAULT_BASE_PORT, plan_endpoints
from zpptool.config.engine_kind import Engine
from zpptool.config.gpu_plan import place_on_gpus
from zpptool.config.gpu_pool import parse_gpu_ids
from zpptool.config.memory_budget import free_memory, kv_share, refuse_too_much, stage_bytes
from zpptool.config.model_runner import choose_v1_runner, refuse_v2_runner
from zpptool.config.resolve import head_endpoint, resolve_place
from zpptool.config.stage_spec import StageSpec
from zpptool.engines.vllm.compat import access as hooks
from zpptool.engines.vllm.compat.source_check import require_hooks, version_warning
from zpptool.engines.vllm.compat.unsupported import vllms_refusal
from zpptool.engines.vllm.core.executor import FAULT_VARIABLE, SPEC_VARIABLE, RingExecutor, fault_file
from zpptool.engines.vllm.offline.engine_args import engine_words
from zpptool.engines.vllm.offline.stage_watchdog import StageWatchdog
from zpptool.errors import ZppError, stage_error, usage_error
from zpptool.log import say
from zpptool.process.group import ProcessGroup
from zpptool.process.run_dir import private_directory
from zpptool.supervisor.restarter import Restarter
from zpptool.supervisor.stage_processes import process_fault, start_stage


class LLM(vllm.LLM):
    """An offline engine over stages; a context manager, whose end ends the stages.

    Sets `VLLM_USE_V2_MODEL_RUNNER=0` in this process where it is not set, and leaves it: vLLM reads it at each request.

    Args:
        model: a checkpoint's directory, or a directory of stages as `zpptool split` writes them.
        num_stages: how many stages; not needed with `ranges` or a directory of stages.
        ranges: every stage's layers, `["0-10", "10-30"]`; even by default.
        launch: start the stages here. Otherwise they are waited for: `zpptool run-stage --headless` for stage 0,
            wherever each of them runs, with the same engine arguments.
        base_port: with `launch=False`: as the stages were told.
        hosts: likewise.
        head_addr: with `launch=False`: `HOST:PORT` where stage 0 finds this script; the port after the return port if
            not given.
        gpu_ids: with `launch`: the stages' GPUs, `"0,1"`; the next free ones by default. See `zpptool serve --gpu-ids`.
        log_dir: where the stages' logs go; None lets them share this process's output.
        start_timeout_s: how long the stages may take until all stand.
        step_timeout_s: how long one step may take.
        recovery_deadline_s: with `launch`: how long a stage that was lost may take to come back, while answers wait for
            it; 0 has the first loss end all.
        dtype: as for `vllm.LLM`.
        engine_arguments: all others of `vllm.LLM`.

    Raises:
        ZppError: stages cannot be what was asked for, or did not come up; the message names the stage.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        num_stages: int | None = None,
        ranges: Sequence[str] = (),
        launch: bool = True,
        base_port: int = DEFAULT_BASE_PORT,
        hosts: Sequence[str] | None = None,
        head_addr: str | None = None,
        gpu_ids: str | None = None,
        log_dir: Path | None = None,
        start_timeout_s: float = 600.0,
        step_timeout_s: float = 300.0,
        recovery_deadline_s: float = 120.0,
        dtype: str = "auto",
        **engine_arguments: Any,
    ) -> None:
        warning = version_warning(vllm.__version__)
        if warning:
            say("zpptool.LLM", warning)
        require_hooks()
        refuse_v2_runner(os.environ)
        choose_v1_runner()
        if gpu_ids and not launch:
            raise usage_error("gpu_ids is for stages that are started here", "Give zpptool run-stage its --gpu-ids.")
        with ExitStack() as started:
            group = started.enter_context(ProcessGroup())
            scratch = started.enter_context(private_directory())
            specs = _stage_specs(Path(model), num_stages, ranges)
            endpoints = (
                plan_endpoints(len(specs), transport="ipc", ipc_dir=scratch)
                if launch
                else plan_endpoints(len(specs), base_port, hosts)
            )
            if launch and hooks.current_platform.is_cpu():
                engine_arguments |= _memory_shared(specs, engine_arguments)
            local = f"ipc://{scratch / 'head'}" if launch else head_endpoint(endpoints[0].connect, head_addr)
            words = engine_words(engine_arguments, hooks.serve_parser()._actions)
            common = {
                "dtype": dtype, "start_timeout_s": start_timeout_s, "step_timeout_s": step_timeout_s,
                "recovery_deadline_s": recovery_deadline_s if launch else 0.0,
            }  # fmt: skip
            specs = [
                msgspec.structs.replace(
                    spec, bind=link.bind, connect=link.connect, local=local, headless=True, engine_args=words, **common
                )
                for spec, link in zip(specs, endpoints, strict=True)
            ]
            phases = scratch / "phases"
            phases.mkdir()
            if launch:
                placed = place_on_gpus(specs, parse_gpu_ids(gpu_ids))
                specs = list(placed.specs)
                for spec, env in zip(specs, stage_environments([1] * len(specs), placed.env), strict=True):
                    start_stage(group, spec, env, log_dir, phases)
            revival = Restarter(group, phases, partial(say, "zpptool.LLM"))
            keeper = started.enter_context(StageWatchdog(revival.look if recovery_deadline_s else group.any_ended))
            self._start_head(specs[0], keeper, group, scratch, engine_arguments)
            self.close = weakref.finalize(self, _end, self.llm_engine.engine_core, keeper, group, started.pop_all())
            """Ends the engine and the stages that were started here. Called by itself at the latest at exit."""

    def _start_head(
        self,
        spec: StageSpec,
        keeper: StageWatchdog,
        group: ProcessGroup,
        scratch: Path,
        engine_arguments: Mapping[str, Any],
    ) -> None:
        """Have vLLM start its engine core in a process of its own, with the ring as its executor.

        Left alone, vLLM takes larger steps in a script than in a server; the stages go by the server's.
        """
        with _head_environment(spec, scratch):
            try:
                limits = hooks.engine_config(hooks.serve_arguments(spec, RingExecutor)).scheduler_config
                scheduling = {
                    "scheduler_cls": limits.scheduler_cls,
                    "max_num_batched_tokens": limits.max_num_batched_tokens,
                    "max_num_seqs": limits.max_num_seqs,
                }
                super().__init__(
                    spec.model,
                    dtype=spec.dtype,
                    pipeline_parallel_size=spec.num_stages,
                    distributed_executor_backend=RingExecutor,
                    async_scheduling=False,
                    **{**scheduling, **engine_arguments},
                )
                keeper.stands()
            except ZppError:
                raise
            except Exception as cause:
                word = fault_file(spec)
                if word.exists():
                    raise stage_error(word.read_text()) from cause
                if keeper.has_lost:
                    keeper.stop()
                    raise process_fault(group.culprit()) from cause
                refusal = vllms_refusal(cause)
                if refusal is None:
                    raise
                raise refusal from cause

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()


def _stage_specs(model: Path, num_stages: int | None, ranges: Sequence[str]) -> list[StageSpec]:
    """What each stage is, not yet how they meet."""
    first = resolve_place(model, stage=0, num_stages=num_stages, ranges=ranges)
    places = [first]
    for stage in range(1, len(first.partition)):
        places.append(resolve_place(model, stage=stage, num_stages=num_stages, ranges=ranges))
    return [
        StageSpec(
            engine=Engine.VLLM,
            model=str(place.directory),
            partition=tuple((own.start, own.end) for own in place.partition),
            stage=place.stage,
            bind="",
            connect="",
        )
        for place in places
    ]


def _memory_shared(specs: Sequence[StageSpec], given: Mapping[str, Any]) -> dict[str, int]:
    """What stages that share a CPU are to be told, so that they share its memory, unless the user has said how.

    Raises:
        ZppError: (FAILURE) the weights do not fit.
    """
    needed, free = [stage_bytes(spec) for spec in specs], free_memory()
    refuse_too_much(needed, free)
    if given.keys() & {"kv_cache_memory_bytes", "gpu_memory_utilization"}:
        return {}
    return {"kv_cache_memory_bytes": kv_share(needed, free)}


@contextmanager
def _head_environment(spec: StageSpec, scratch: Path) -> Iterator[None]:
    """While the engine core is started: tell it its place through the environment, which it inherits."""
    if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING") == "0":
        raise usage_error(
            "VLLM_ENABLE_V1_MULTIPROCESSING=0 would have the script itself end with its parent",
            "Leave it out: the engine core runs in a process of its own.",
        )
    hooks.prepare_environment(spec)
    os.environ[SPEC_VARIABLE] = spec.to_json()
    os.environ[FAULT_VARIABLE] = str(scratch / "fault")
    try:
        yield
    finally:
        del os.environ[SPEC_VARIABLE], os.environ[FAULT_VARIABLE]
        hooks.forget_environment()


def _end(engine_core: Any, keeper: StageWatchdog, group: ProcessGroup, started: ExitStack) -> None:
    """The head first: it tells all stages, those elsewhere too, that the run is over, and they end by themselves."""
    with started:
        keeper.stop()
        engine_core.shutdown()
        group.settle()
