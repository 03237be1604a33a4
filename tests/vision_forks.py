# SPDX-License-Identifier: Apache-2.0
"""Asks tiny vision-language models about images, unsplit and in stages, from forks of one process that has imported
vLLM: an import takes longer than all the rest.

Started as `python vision_forks.py OUTPUT KIND:RANGES ...`, for example `llava:0-1,1-4`. It writes, as JSON and by
kind, the answers of both, or the end of the log of what failed. `scripts` has to be on PYTHONPATH.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update(
    OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_NO_USAGE_STATS="1", VLLM_PLUGINS="",
)  # fmt: skip

import msgspec
import vision_models
from families.forked import alone, run_together
from families.vllm_run import run_stage
from vllm.model_executor.models import registry
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.core import EngineCore
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.executor.abstract import Executor

from zpptool.checkpoint.split import split_checkpoint
from zpptool.config.endpoints import plan_endpoints
from zpptool.config.engine_kind import Engine
from zpptool.config.runtime_options import RuntimeOptions
from zpptool.config.stage_spec import StageSpec
from zpptool.engines.vllm.compat.arguments import serve_arguments
from zpptool.engines.vllm.compat.engine_config import engine_config
from zpptool.engines.vllm.compat.env_variables import set_layer_partition
from zpptool.engines.vllm.core.executor import RingExecutor
from zpptool.process.environment import set_head_spec

LIMIT_S = 240.0
"""For each process of a family."""
ARGUMENTS = (
    "--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "8", "--block-size", "32",
    "--kv-cache-memory-bytes", str(64 << 20),
    "--limit-mm-per-prompt", '{"image": 3, "video": 0}',
)  # fmt: skip
IN_SMALL_STEPS = ("--max-num-batched-tokens", "40")
"""For the stages: an image takes several steps in some of the families, and the prompts together in all of them. Stock
vLLM fails on a CPU where the prompt of a seeded request takes several steps."""


def ask(spec: StageSpec, executor: type[Executor] | None, image: str, output: Path) -> None:
    """Write the answers of an engine core in this process: for each request its tokens and their logprobs."""
    set_layer_partition(spec)
    set_head_spec(spec)
    config = engine_config(serve_arguments(spec, executor))
    core = EngineCore(config, executor or Executor.get_class(config), log_stats=False)
    processor = InputProcessor(config)
    answers = [_answers(core, processor, asked) for asked in vision_models.rounds(image)]
    output.write_text(json.dumps(answers))
    core.shutdown()


def _answers(core: EngineCore, processor: InputProcessor, asked: list[vision_models.Asked]) -> list[Any]:
    answers: dict[str, tuple[list[int], list[float]]] = {}
    for number, (prompt, seeds, given) in enumerate(asked):
        sampling = SamplingParams(
            **{"temperature": 0.0, "max_tokens": 12, "ignore_eos": True, "logprobs": 0, "detokenize": False, **given}
        )
        images = [vision_models.picture(seed) for seed in seeds]
        data: Any = {"prompt": prompt, **({"multi_modal_data": {"image": images}} if images else {})}
        request = processor.process_inputs(str(number), data, sampling, ("generate",))
        request.external_req_id = request.request_id
        answers[request.request_id] = ([], [])
        core.add_request(*core.preprocess_add_request(request))
    waiting = set(answers)
    while waiting:
        by_client, executed = core.step_fn()
        core.post_step(model_executed=executed)
        for outputs in (by_client or {}).values():
            for output in outputs.outputs:
                tokens, logprobs = answers[output.request_id]
                tokens += output.new_token_ids
                logprobs += [float(row[0]) for row in output.new_logprobs.logprobs]
                if output.finish_reason is not None:
                    waiting.discard(output.request_id)
    return list(answers.values())


def try_family(kind: str, ranges: list[str], work: Path) -> dict[str, Any]:
    """The answers of both sides, or the end of the log of a process that has failed."""
    model, made = work / "model", work / "made.json"
    whole = StageSpec(
        engine=Engine.VLLM, model=str(model), partition=(), stage=0, bind="", connect="", dtype="float32",
        local=f"ipc://{work / 'head'}", engine_args=ARGUMENTS,
        runtime=RuntimeOptions(start_timeout_s=LIMIT_S, step_timeout_s=LIMIT_S),
    )  # fmt: skip
    partition = tuple((int(start), int(end)) for start, end in (layers.split("-") for layers in ranges))
    unsplit = msgspec.structs.replace(whole, partition=((0, partition[-1][1]),))
    stages = [
        msgspec.structs.replace(
            whole, model=str(work / "split" / f"stage_{link.stage}"), partition=partition, stage=link.stage,
            bind=link.bind, connect=link.connect, engine_args=(*ARGUMENTS, *IN_SMALL_STEPS),
        )
        for link in plan_endpoints(len(partition), transport="ipc", ipc_dir=work)
    ]  # fmt: skip
    image = vision_models.IMAGE_WORDS[kind]

    def build() -> None:
        getattr(vision_models, f"make_{kind}")(model)
        split_checkpoint(model, work / "split", ranges=ranges)

    try:
        run_together(work, {"build": alone(build)}, LIMIT_S)
        run_together(work, {"unsplit": alone(partial(ask, unsplit, None, image, made))}, LIMIT_S)
        expected = json.loads(made.read_text())
        workers = {f"stage {spec.stage}": partial(run_stage, spec) for spec in stages}
        run_together(work, {**workers, "head": alone(partial(ask, stages[0], RingExecutor, image, made))}, LIMIT_S)
    except RuntimeError as failure:
        return {"error": str(failure)}
    return {"unsplit": expected, "pipeline": json.loads(made.read_text())}


def main() -> None:
    # vLLM inspects a class in a new process, which would import everything again; here every fork is such a process.
    registry._run_in_subprocess = lambda inspect: inspect()
    output, *families = sys.argv[1:]
    results = {}
    for family in families:
        kind, _, ranges = family.partition(":")
        with tempfile.TemporaryDirectory(prefix="zpp-", ignore_cleanup_errors=True) as work:
            results[kind] = try_family(kind, ranges.split(","), Path(work))
        Path(output).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
