# SPDX-License-Identifier: Apache-2.0
"""vLLM's V1 model runner: what zpptool reads and changes of the requests that it holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from zpptool.engines.vllm.compat.control_objects import SchedulerOutput
from zpptool.engines.vllm.compat.engine_config import VllmConfig
from zpptool.engines.vllm.compat.worker_wrapper import WorkerWrapperBase
from zpptool.errors import ZppError


def model_runner_of(worker: WorkerWrapperBase) -> Any:
    """The model runner of a worker.

    Raises:
        ZppError: it is not the one whose requests zpptool can restore.
    """
    runner = worker.worker.model_runner
    if not hasattr(runner, "input_batch"):
        raise ZppError(
            f"vLLM's {type(runner).__module__} keeps its requests in a way that cannot be restored",
            "Start the whole pipeline again, and report this with vLLM's version.",
        )
    return runner


@torch.inference_mode()
def set_empty_intermediate_tensors(worker: WorkerWrapperBase, config: VllmConfig) -> None:
    """Make the buffers into which a stage copies its input, where vLLM has not made them.

    vLLM 0.32 makes them in the dummy run of its warm-up, which a CPU worker skips when it runs eagerly with a fixed KV
    cache. A later stage then fails with `assert self.intermediate_tensors is not None`.
    """
    runner = worker.worker.model_runner
    if runner.intermediate_tensors is None:
        runner.intermediate_tensors = _empty_intermediate_tensors(runner, config, runner.max_num_tokens)


def intermediate_tensors(worker: WorkerWrapperBase, config: VllmConfig, rows: int) -> dict[str, torch.Tensor]:
    """Tensors like those that a later stage receives, with so many rows and any content."""
    made = _empty_intermediate_tensors(worker.worker.model_runner, config, rows)
    tensors: dict[str, torch.Tensor] = made.tensors
    return tensors


def _empty_intermediate_tensors(runner: Any, config: VllmConfig, rows: int) -> Any:
    return runner.model.make_empty_intermediate_tensors(
        batch_size=rows, dtype=config.model_config.dtype, device=runner.device
    )


def module_paths(worker: WorkerWrapperBase, config: VllmConfig) -> dict[str, str]:
    """Where the layers that have a cache are in the model, by the names that vLLM's cache calls them.

    The names are made up by the model's class and need not be those of the modules: Falcon-H1 counts its Mamba layers
    after all others.
    """
    paths = {id(module): path for path, module in worker.worker.model_runner.get_model().named_modules()}
    context = config.compilation_config.static_forward_context
    return {name: paths.get(id(module), name) for name, module in context.items()}


def update_states(runner: Any, scheduled: SchedulerOutput) -> None:
    """Have a model runner add and remove requests, as it does at the beginning of every step."""
    runner._update_states(scheduled)


def drop_pending_step(runner: Any) -> None:
    """Discard a forward pass whose tokens were never sampled. vLLM refuses the next one while it is pending."""
    runner.execute_model_state = None


@contextmanager
def unfinished_prompts_draw_nothing(worker: WorkerWrapperBase) -> Iterator[None]:
    """While a worker samples: hide the generators of sequences whose prompts are not computed to the end.

    vLLM draws for them too and then sets the generator back by its offset. A generator on a CPU has no offset, and vLLM
    0.32 fails with "CPU Generator does not use offset" when the prompt of a seeded request is computed in several
    steps.
    """
    runner = worker.worker.model_runner
    if runner.device.type != "cpu":
        yield
        return
    batch = runner.input_batch
    mask = runner.discard_request_mask.np[: batch.num_reqs]
    hidden = {row: batch.generators.pop(row) for row in mask.nonzero()[0].tolist() if row in batch.generators}
    try:
        yield
    finally:
        batch.generators.update(hidden)
