# SPDX-License-Identifier: Apache-2.0
"""What the children of one try on vLLM do: the unsplit model by stock vLLM, a stage, the head of the pipeline.

All of them get vLLM's configuration from `zpptool.engines.vllm.compat.access`, as `run-stage` and `test-pipeline` do.
The API server is left out: the engine core is driven in its own process, with prompts of token ids.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor.abstract import Executor

from zpptool.config.stage_spec import StageSpec
from zpptool.engines.base import run_stage_worker
from zpptool.engines.vllm.compat import access as hooks
from zpptool.engines.vllm.core.executor import SPEC_VARIABLE, RingExecutor
from zpptool.engines.vllm.worker import StageWorker

NEW_TOKENS = 8
PROMPTS = [[(11 * place + 29 * length) % 250 + 2 for place in range(length)] for length in (5, 21, 70)]
"""Token ids; the last one takes two steps of `--max-num-batched-tokens 64`."""


def examine(spec: StageSpec, said: Path) -> None:
    """Write what vLLM makes of a model: the class that it runs it with, and whether that can be a pipeline's."""
    hooks.prepare_environment(spec)
    model = hooks.engine_config(hooks.serve_arguments(spec, None)).model_config
    known = model.registry.is_pp_supported_model(model.architectures, model)
    said.write_text(json.dumps({"class": model.architecture, "pipeline": bool(known)}))


def run_unsplit(spec: StageSpec, said: Path) -> None:
    """Write the answers of stock vLLM, asked one prompt after the other."""
    hooks.prepare_environment(spec)
    config = hooks.engine_config(hooks.serve_arguments(spec, None))
    core = EngineCore(config, Executor.get_class(config), log_stats=False)
    answers = [_answers(core, {str(place): prompt})[str(place)] for place, prompt in enumerate(PROMPTS)]
    said.write_text(json.dumps(answers))
    core.shutdown()


def run_head(spec: StageSpec, said: Path) -> None:
    """Write the answers of the pipeline, asked all prompts at once."""
    hooks.prepare_environment(spec)
    os.environ[SPEC_VARIABLE] = spec.to_json()
    config = hooks.engine_config(hooks.serve_arguments(spec, RingExecutor))
    core = EngineCore(config, RingExecutor, log_stats=False)
    answers = _answers(core, {str(place): prompt for place, prompt in enumerate(PROMPTS)})
    said.write_text(json.dumps([answers[str(place)] for place in range(len(PROMPTS))]))
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
        told, ran = core.step_fn()
        core.post_step(model_executed=ran)
        for outputs in (told or {}).values():
            for output in outputs.outputs:
                answers[output.request_id] += output.new_token_ids
                if output.finish_reason is not None:
                    waiting.discard(output.request_id)
    return answers


def _request(name: str, prompt: list[int]) -> EngineCoreRequest:
    sampling: Any = hooks.SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True, detokenize=False)
    return EngineCoreRequest(
        request_id=name, prompt_token_ids=list(prompt), mm_features=None, sampling_params=sampling,
        pooling_params=None, arrival_time=0.0, lora_request=None, cache_salt=None, data_parallel_rank=None,
    )  # fmt: skip
