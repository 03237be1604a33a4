# SPDX-License-Identifier: Apache-2.0
"""The number of KV blocks that is predicted from a model without weights is the one that vLLM gives its pipeline.

tests/cache_forks.py asks the models.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cache_model_names import MEMORY

from zpptool.partition import LayerRange
from zpptool.planner.device_profile import CacheCosts

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
ROOT = Path(__file__).resolve().parents[2]

FEW = ("LlamaForCausalLM:--kv-cache-dtype,fp8", "DeepseekV3ForCausalLM", "Gemma3ForCausalLM", "FalconH1ForCausalLM")
"""Keys and values of 8 bits, latent attention, windows, and attention beside Mamba."""
MANY = (
    "LlamaForCausalLM", "DeepseekV2ForCausalLM", "Gemma2ForCausalLM", "Gemma4ForCausalLM", "GptOssForCausalLM",
    "NemotronHForCausalLM", "Lfm2ForCausalLM", "Qwen3NextForCausalLM", "Llama4ForCausalLM", "Cohere2ForCausalLM",
    "MixtralForCausalLM", "MistralForCausalLM", "GPT2LMHeadModel", "Exaone4ForCausalLM", "Olmo3ForCausalLM",
    "BloomForCausalLM", "Gemma3ForCausalLM:--disable-hybrid-kv-cache-manager",
    "LlamaForCausalLM:--block-size,32", "LlamaForCausalLM@2", "DeepseekV2ForCausalLM@2", "FalconH1ForCausalLM@2",
)  # fmt: skip


def asked(models: list[str], output: Path, guard_s: float) -> dict[str, Any]:
    """What was predicted for each model, and what its pipeline has."""
    paths = [str(ROOT / "scripts"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    log = output.with_suffix(".log")
    with log.open("wb") as out:
        done = subprocess.run(
            [sys.executable, str(ROOT / "tests/cache_forks.py"), str(output), *models],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdout=out, stderr=out, timeout=guard_s, check=False,
        )  # fmt: skip
    assert done.returncode == 0, log.read_text()[-3000:]
    results: dict[str, Any] = json.loads(output.read_text())
    return results


def check(name: str, result: dict[str, Any]) -> CacheCosts:
    """The prediction, after it was compared."""
    assert "error" not in result, f"{name}: {result['error']}"
    caches = {
        int(size): msgspec.json.decode(json.dumps(cache), type=CacheCosts) for size, cache in result["caches"].items()
    }
    costs, ranks = caches[1], result["ranks"]
    layout, of_ranks = costs.layout, caches[ranks].layout
    assert layout is not None
    assert of_ranks is not None
    if ranks not in layout.rank_factors:
        layout = msgspec.structs.replace(layout, of_ranks={ranks: of_ranks})
    partition = tuple(LayerRange(start, end) for start, end in result["partition"])
    blocks = layout.blocks(partition, MEMORY[: len(partition)], [ranks] * len(partition))
    assert blocks == result["blocks"], name
    return costs


@pytest.mark.timeout(300)
def test_a_few_kinds_of_cache(tmp_path: Path) -> None:
    results = asked(list(FEW), tmp_path / "few.json", 280)
    costs = {name: check(name, result) for name, result in results.items()}
    quantised, latent, windows, hybrid = (costs[name] for name in FEW)
    assert set(quantised.bytes_per_token) == {"attention"}
    assert quantised.layout is not None
    assert quantised.layout.rank_factors == {1: 1, 2: 2}
    assert latent.layout is not None
    assert latent.layout.rank_factors == {1: 1, 2: 1}
    assert set(latent.bytes_per_token) == {"attention", "attention_moe"}
    assert windows.tokens_at_most.keys() <= {"sliding_attention"}
    assert hybrid.bytes_per_sequence["hybrid"] > 0
    assert hybrid.bytes_per_token["hybrid"] > 0


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_many_architectures_and_the_real_model(tmp_path: Path, real_model: Path) -> None:
    results = asked([*MANY, str(real_model)], tmp_path / "many.json", 1700)
    assert len(results) == len(MANY) + 1
    for name, result in results.items():
        check(name, result)
