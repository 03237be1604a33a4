# SPDX-License-Identifier: Apache-2.0
"""`vllm.LLM` across stages, for scripts: the script is the head, the stages are processes of their own.

The class is vLLM's class with the ring as its executor, and does what that does. Stages that it starts end with it, or
with the script, however that ends.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
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
from zpptool.config.recovery_deadline import recovery_deadline_s as chosen_deadline
from zpptool.config.resolve import resolve_place, stage_partition
from zpptool.config.runner_choice import choose_runner
from zpptool.config.runtime_options import RuntimeOptions
from zpptool.config.stage_links import head_endpoint
from zpptool.config.stage_spec import StageSpec
from zpptool.console import Console
from zpptool.engines.vllm.compat import env_variables, platform
from zpptool.engines.vllm.compat.arguments import serve_arguments, serve_parser
from zpptool.engines.vllm.compat.engine_config import engine_config
from zpptool.engines.vllm.compat.input_processor import refuse_requests
from zpptool.engines.vllm.compat.source_check import require_hooks, version_warning
from zpptool.engines.vllm.compat.unsupported import vllms_refusal
from zpptool.engines.vllm.core.executor import RingExecutor, fault_file
from zpptool.engines.vllm.offline.engine_args import command_line
from zpptool.engines.vllm.offline.stage_watchdog import StageWatchdog
from zpptool.engines.vllm.request_check import check_request
from zpptool.errors import ZppError, stage_error, usage_error
from zpptool.process.environment import head_variables
from zpptool.process.group import ProcessGroup
from zpptool.process.run_dir import private_directory
from zpptool.sources.located import LocatedModel, local_path, stage_model, whole_model
from zpptool.sources.names import ModelName, is_remote
from zpptool.supervisor.restarter import Restarter
from zpptool.supervisor.stage_processes import log_directory, process_fault, start_stage

_log = logging.getLogger(__name__)


class LLM(vllm.LLM):
    """An offline engine over stages; a context manager that ends the stages when it is left.

    Sets `VLLM_USE_V2_MODEL_RUNNER=0` in this process where it is not set, and leaves it: vLLM reads it at each request.

    Args:
        model: a checkpoint's directory, a directory of stages as `zpptool split` writes them, or `org/name` on the
            Hugging Face Hub, whose `revision` and `hf_token` are those of `vllm.LLM`.
        num_stages: how many stages; not needed with `ranges` or a directory of stages.
        ranges: every stage's layers, `["0-10", "10-30"]`; even by default.
        launch: start the stages here. Otherwise wait for stages that were started with `zpptool run-stage` and the same
            engine arguments, on any machine; stage 0 with `--headless`.
        base_port: with `launch=False`: the stages' own.
        hosts: with `launch=False`: the stages' own.
        head_addr: with `launch=False`: `HOST:PORT` at which stage 0 connects to this script; the port after the return
            port by default.
        gpu_ids: with `launch`: the stages' GPUs, `"0,1"`; the next free ones by default. See `zpptool serve --gpu-ids`.
        log_dir: the directory of the stages' logs, created if need be; None has them write to this process's output.
        start_timeout_s: how long the stages may take until all have joined.
        step_timeout_s: how long one step may take.
        recovery_deadline_s: with `launch`: how long a lost stage may take to return, while answers wait for it; with 0
            the first loss ends all stages. By default 120, and 300 on a GPU.
        dtype: as for `vllm.LLM`.
        engine_arguments: all others of `vllm.LLM`.

    Raises:
        ZppError: the stages cannot be set up so, or did not start; the message names the stage.
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
        log_dir: str | Path | None = None,
        start_timeout_s: float = 600.0,
        step_timeout_s: float = 300.0,
        recovery_deadline_s: float | None = None,
        dtype: str = "auto",
        **engine_arguments: Any,
    ) -> None:
        warning = version_warning(vllm.__version__)
        if warning:
            _log.warning(warning)
        require_hooks()
        choose_runner()
        if gpu_ids and not launch:
            raise usage_error("gpu_ids is for stages that are started here", "Give zpptool run-stage its --gpu-ids.")
        deadline_s = chosen_deadline(recovery_deadline_s, on_cpu=platform.is_cpu())
        with ExitStack() as started:
            group = started.enter_context(ProcessGroup())
            scratch = started.enter_context(private_directory())
            logs = None if log_dir is None else started.enter_context(log_directory(Path(log_dir)))
            found = _on_this_machine(str(model), num_stages, ranges, engine_arguments, launch=launch)
            specs = _stage_specs(found.directory, num_stages, ranges)
            endpoints = (
                plan_endpoints(len(specs), transport="ipc", ipc_dir=scratch)
                if launch
                else plan_endpoints(len(specs), base_port, hosts)
            )
            if launch and platform.is_cpu():
                engine_arguments |= _share_of_memory(specs, engine_arguments)
            local = f"ipc://{scratch / 'head'}" if launch else head_endpoint(endpoints[0].connect, head_addr)
            engine_args = command_line(engine_arguments, serve_parser()._actions)
            runtime = RuntimeOptions(
                start_timeout_s=start_timeout_s,
                step_timeout_s=step_timeout_s,
                recovery_deadline_s=deadline_s if launch else 0.0,
            )
            common: dict[str, Any] = {
                "local": local, "headless": True, "engine_args": engine_args, "dtype": dtype, "runtime": runtime,
                "source": found.source,
            }  # fmt: skip
            specs = [
                msgspec.structs.replace(spec, bind=link.bind, connect=link.connect, **common)
                for spec, link in zip(specs, endpoints, strict=True)
            ]
            phases = scratch / "phases"
            phases.mkdir()
            if launch:
                placed = place_on_gpus(specs, parse_gpu_ids(gpu_ids))
                specs = list(placed.specs)
                for spec, env in zip(specs, stage_environments([1] * len(specs), placed.env), strict=True):
                    start_stage(group, spec, env, logs, phases)
            restarter = Restarter(group, phases)
            watchdog = started.enter_context(StageWatchdog(restarter.poll if deadline_s else group.any_ended))
            self._start_head(specs[0], watchdog, group, scratch, engine_arguments)
            self.close = weakref.finalize(self, _end, self.llm_engine.engine_core, watchdog, group, started.pop_all())
            """Ends the engine and the stages that were started here. Called automatically at exit at the latest."""

    def _start_head(
        self,
        spec: StageSpec,
        watchdog: StageWatchdog,
        group: ProcessGroup,
        scratch: Path,
        engine_arguments: Mapping[str, Any],
    ) -> None:
        """Have vLLM start its engine core in a process of its own, with the ring as its executor.

        By default vLLM makes larger steps in a script than in a server. The stages use the server's limits, so these
        are passed here.
        """
        refuse_requests(check_request)
        with _head_environment(spec, scratch):
            try:
                limits = engine_config(serve_arguments(spec, RingExecutor)).scheduler_config
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
                watchdog.loaded()
            except ZppError:
                raise
            except Exception as cause:  # vLLM raises its own for what the ring's fault file explains
                fault = fault_file(spec)
                if fault.exists():
                    raise stage_error(fault.read_text()) from cause
                if watchdog.has_lost:
                    watchdog.stop()
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


def _on_this_machine(
    text: str, num_stages: int | None, ranges: Sequence[str], engine_arguments: dict[str, Any], *, launch: bool
) -> LocatedModel:
    """The model on this machine. Where the stages run elsewhere, only stage 0's tensors are needed beside the head.

    A model that is not a path takes its revision and token out of the engine arguments.
    """
    if not is_remote(text):
        return local_path(Path(text))
    token = engine_arguments.pop("hf_token", None)
    name = ModelName(text, engine_arguments.pop("revision", None), token if isinstance(token, str) else None)
    if launch:
        return whole_model(name, Console())
    return stage_model(
        name,
        0,
        lambda layers: stage_partition(layers, 0, num_stages=num_stages, layer_range=None, ranges=ranges),
        Console(),
    )


def _stage_specs(model: Path, num_stages: int | None, ranges: Sequence[str]) -> list[StageSpec]:
    """Each stage's model directory and layers; endpoints are not decided yet."""
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


def _share_of_memory(specs: Sequence[StageSpec], given: Mapping[str, Any]) -> dict[str, int]:
    """The engine arguments with which stages that share a CPU also share its memory; none where the user has set them.

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
    """While the engine core is started: pass its spec in the environment, which it inherits."""
    if env_variables.runs_engine_core_in_process():
        raise usage_error(
            f"{env_variables.MULTIPROCESSING_VARIABLE}=0 would have the script itself end with its parent",
            "Leave it out: the engine core runs in a process of its own.",
        )
    env_variables.set_layer_partition(spec)
    try:
        with head_variables(spec, scratch / "fault"):
            yield
    finally:
        env_variables.clear_layer_partition()


def _end(engine_core: Any, watchdog: StageWatchdog, group: ProcessGroup, started: ExitStack) -> None:
    """End the head first: it stops all stages, including those on other machines, and they end by themselves."""
    with started:
        watchdog.stop()
        engine_core.shutdown()
        group.settle()
