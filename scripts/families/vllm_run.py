# SPDX-License-Identifier: Apache-2.0
"""The child processes of one trial on vLLM: the unsplit model with stock vLLM, a stage, the head of the pipeline.

All of them get vLLM's configuration from `zpptool.engines.vllm.compat`, as `run-stage` and `test-pipeline` do.
There is no API server: the engine core is driven directly, with prompts of token ids.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor.abstract import Executor

from zpptool.config.stage_spec import StageSpec
from zpptool.engines.base import run_stage_worker
from zpptool.engines.vllm.compat.arguments import serve_arguments
from zpptool.engines.vllm.compat.control_objects import SamplingParams
from zpptool.engines.vllm.compat.engine_config import engine_config
from zpptool.engines.vllm.compat.env_variables import set_layer_partition
from zpptool.engines.vllm.core.executor import RingExecutor
from zpptool.engines.vllm.worker import StageWorker
from zpptool.process.environment import set_head_spec

NEW_TOKENS = 8
PROMPTS = [[(11 * index + 29 * length) % 250 + 2 for index in range(length)] for length in (5, 21, 70)]
"""Token ids; the last one takes two steps of `--max-num-batched-tokens 64`."""


def examine(spec: StageSpec, output: Path) -> None:
    """Write the class with which vLLM runs a model, and whether that class supports pipelines."""
    set_layer_partition(spec)
    model = engine_config(serve_arguments(spec, None)).model_config
    known = model.registry.is_pp_supported_model(model.architectures, model)
    output.write_text(json.dumps({"class": model.architecture, "pipeline": bool(known)}))


def run_unsplit(spec: StageSpec, output: Path) -> None:
    """Write the answers of stock vLLM, one prompt after the other."""
    set_layer_partition(spec)
    config = engine_config(serve_arguments(spec, None))
    core = EngineCore(config, Executor.get_class(config), log_stats=False)
    answers = [_answers(core, {str(number): prompt})[str(number)] for number, prompt in enumerate(PROMPTS)]
    output.write_text(json.dumps(answers))
    core.shutdown()


def run_head(spec: StageSpec, output: Path) -> None:
    """Write the answers of the pipeline, all prompts at once."""
    set_layer_partition(spec)
    set_head_spec(spec)
    config = engine_config(serve_arguments(spec, RingExecutor))
    core = EngineCore(config, RingExecutor, log_stats=False)
    answers = _answers(core, {str(number): prompt for number, prompt in enumerate(PROMPTS)})
    output.write_text(json.dumps([answers[str(number)] for number in range(len(PROMPTS))]))
    core.shutdown()


def run_stage(spec: StageSpec) -> None:
    """A stage's worker, as `python -m zpptool.engines.vllm.worker` runs it."""
    sys.argv = ["zpptool.engines.vllm.worker", spec.to_json()]
    run_stage_worker(StageWorker)


def _answers(core: EngineCore, prompts: dict[str, list[int]]) -> dict[str, list[int]]:
    """The tokens that follow each prompt, by its name."""
    answers: dict[str, list[int]] = {name: [] for name in prompts}
    for name, prompt in prompts.items():
        request, wave = core.preprocess_add_request(_request(name, prompt))
        core.add_request(request, wave)
    waiting = set(prompts)
    while waiting:
        by_client, executed = core.step_fn()
        core.post_step(model_executed=executed)
        for outputs in (by_client or {}).values():
            for output in outputs.outputs:
                answers[output.request_id] += output.new_token_ids
                if output.finish_reason is not None:
                    waiting.discard(output.request_id)
    return answers


def _request(name: str, prompt: list[int]) -> EngineCoreRequest:
    sampling: Any = SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)
    return EngineCoreRequest(
        request_id=name, prompt_token_ids=list(prompt), mm_features=None, sampling_params=sampling,
        pooling_params=None, arrival_time=0.0, lora_request=None, cache_salt=None, data_parallel_rank=None,
    )  # fmt: skip
