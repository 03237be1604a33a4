# SPDX-License-Identifier: Apache-2.0
"""How many KV blocks tiny models get in stages, predicted from the weightless model and then by vLLM itself, from forks
of one process that has imported vLLM: an import takes longer than all the rest.

Started as `python cache_forks.py OUTPUT CLASS[@RANKS][:ARGUMENTS] ...`, for example `LlamaForCausalLM:--block-size,32`
or `FalconH1ForCausalLM@2`, or with a directory in the place of a class. It writes, as JSON and by name, what was
predicted and what the head of a real pipeline has, or the end of the log of what failed. `scripts` has to be on
PYTHONPATH.
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
import torch
from cache_model_names import MEMORY
from families.case import model_classes, partition_of
from families.forked import alone, run_together
from families.tiny import VLLM, tiny_config
from families.vllm_run import run_stage
from vllm.model_executor.models import registry
from vllm.v1.engine.core import EngineCore

from zpptool.checkpoint.index import read_index
from zpptool.checkpoint.layer_types import layer_types
from zpptool.checkpoint.structure import infer_structure
from zpptool.config.endpoints import plan_endpoints
from zpptool.config.engine_kind import Engine
from zpptool.config.runtime_options import RuntimeOptions
from zpptool.config.stage_spec import StageSpec
from zpptool.engines.vllm.compat.arguments import serve_arguments
from zpptool.engines.vllm.compat.engine_config import engine_config
from zpptool.engines.vllm.compat.env_variables import set_layer_partition
from zpptool.engines.vllm.core.executor import RingExecutor
from zpptool.engines.vllm.measured.part import VllmPart
from zpptool.process.environment import set_head_spec

LIMIT_S = 240.0
"""For each process of a model."""
STAGES = 2
ARGUMENTS = (
    "--enforce-eager", "--skip-tokenizer-init", "--max-model-len", "128", "--max-num-batched-tokens", "64",
    "--max-num-seqs", "4", "--language-model-only", "--kv-cache-memory-bytes", str(1 << 20),
)  # fmt: skip


def predict(spec: StageSpec, rank: int, output: Path) -> None:
    """Write the cache of the whole model without weights, as one of its ranks sees it."""
    index = read_index(spec.directory)
    types = layer_types(index, infer_structure(index))
    costs = VllmPart(spec, f"file://{output}.store", rank).cache(types, (1, 2))
    if rank == 0:
        output.write_bytes(msgspec.json.encode(costs))


def ask_head(spec: StageSpec, output: Path) -> None:
    """Write how many blocks the head of the pipeline has, and how many tokens vLLM says that they hold."""
    set_layer_partition(spec)
    set_head_spec(spec)
    core = EngineCore(engine_config(serve_arguments(spec, RingExecutor)), RingExecutor, log_stats=False)
    output.write_text(json.dumps(core.vllm_config.cache_config.num_gpu_blocks))
    core.shutdown()


def try_model(name: str, ranks: int, arguments: tuple[str, ...], work: Path) -> dict[str, Any]:
    """What is predicted and what is there; or the end of the log of a process that has failed."""
    model, blocks = work / "model", work / "blocks.json"
    caches = {size: work / f"cache-{size}.json" for size in {1, ranks}}
    if Path(name).is_dir():
        model = Path(name)

    def build() -> None:
        model_class, config_class = model_classes([name])[name]
        torch.manual_seed(0)
        model_class(tiny_config(config_class, VLLM)).save_pretrained(model)

    try:
        if not model.is_dir():
            run_together(work, {"build": alone(build)}, LIMIT_S)
        partition = tuple((own.start, own.end) for own in partition_of(infer_structure(read_index(model)), STAGES))
        whole = StageSpec(
            engine=Engine.VLLM, model=str(model), partition=((0, partition[-1][1]),), stage=0, bind="", connect="",
            dtype="bfloat16", local=f"ipc://{work / 'head'}", engine_args=(*ARGUMENTS, *arguments), headless=True,
            runtime=RuntimeOptions(start_timeout_s=LIMIT_S, step_timeout_s=LIMIT_S),
        )  # fmt: skip
        stages = [
            msgspec.structs.replace(
                whole, partition=partition, stage=link.stage, bind=link.bind, connect=link.connect, headless=False,
                tensor_parallel_size=ranks,
                engine_args=(*whole.engine_args, "--kv-cache-memory-bytes", str(MEMORY[link.stage])),
            )
            for link in plan_endpoints(len(partition), transport="ipc", ipc_dir=work)
        ]  # fmt: skip
        for size, cache in caches.items():
            spec = msgspec.structs.replace(whole, tensor_parallel_size=size)
            run_together(
                work,
                {f"rank {rank} of {size}": alone(partial(predict, spec, rank, cache)) for rank in range(size)},
                LIMIT_S,
            )
        workers = {f"stage {spec.stage}": partial(run_stage, spec) for spec in stages}
        run_together(work, {**workers, "head": alone(partial(ask_head, stages[0], blocks))}, LIMIT_S)
    except RuntimeError as failure:
        return {"error": str(failure)}
    found = {size: json.loads(cache.read_text()) for size, cache in caches.items()}
    return {"partition": partition, "ranks": ranks, "caches": found, "blocks": json.loads(blocks.read_text())}


def main() -> None:
    # vLLM inspects a class in a new process, which would import everything again; here every fork is such a process.
    registry._run_in_subprocess = lambda inspect: inspect()
    output, *models = sys.argv[1:]
    results = {}
    for asked in models:
        name, _, arguments = asked.partition(":")
        with tempfile.TemporaryDirectory(prefix="zpp-", ignore_cleanup_errors=True) as work:
            name, _, ranks = name.partition("@")
            results[asked] = try_model(name, int(ranks or 1), tuple(filter(None, arguments.split(","))), Path(work))
        Path(output).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
