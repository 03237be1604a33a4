# SPDX-License-Identifier: Apache-2.0
"""A stage of three with vLLM's V2 model runner does the warm-up that it does on a GPU, without any neighbour.

    python tests/warm_up_alone.py MODEL STAGE

Prints `warm` and how often each of the worker's methods was called. A CPU worker leaves this warm-up out.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable

from zpptool.config.engine_kind import Engine
from zpptool.config.stage_spec import StageSpec
from zpptool.engines.vllm.compat.kv_cache import kv_cache_configs
from zpptool.engines.vllm.stage.model_rank import StageRank
from zpptool.engines.vllm.stage.pipeline_group import PipelinePlace

ARGUMENTS = ("--enforce-eager", "--max-model-len", "128", "--max-num-seqs", "4", "--kv-cache-memory-bytes", "8388608")


def main() -> None:
    model, stage = sys.argv[1], int(sys.argv[2])
    spec = StageSpec(
        engine=Engine.VLLM, model=model, partition=((0, 1), (1, 2), (2, 4)), stage=stage, bind="", connect="",
        dtype="float32", engine_args=ARGUMENTS,
    )  # fmt: skip
    rank = StageRank(spec, 0, f"file://{tempfile.mkdtemp()}/store")
    rank.load(PipelinePlace(spec, 0))
    import vllm.v1.engine.core  # noqa: F401
    from vllm.v1.worker.gpu.warmup import warmup_kernels

    rank.worker.set_kv_cache_layout(rank.worker.get_supported_kv_cache_layouts()[0])
    rank.initialize_from_config(kv_cache_configs(rank.config, [rank.get_kv_cache_spec()] * spec.num_stages, 64))
    worker, calls = rank.worker.worker, Counter()

    def counted(name: str) -> Callable[[object], object]:
        def call(given: object) -> object:
            calls[name] += 1
            return getattr(worker, name)(given)

        return call

    steps = counted("execute_model"), counted("sample_tokens")
    worker.compile_or_warm_up_model = lambda: warmup_kernels(worker.model_runner, *steps)
    rank.compile_or_warm_up_model()
    assert not worker.model_runner.req_states.req_id_to_index
    print("warm", dict(calls), flush=True)


if __name__ == "__main__":
    main()
