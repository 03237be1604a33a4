# SPDX-License-Identifier: Apache-2.0
"""How much of a machine's memory stages take, and what is left for their KV caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoints import llama, llama_config, write_checkpoint
from hypothesis import given
from hypothesis import strategies as st

from zpptool.config.engine_kind import Engine
from zpptool.config.memory_budget import (
    MOST_KV_BYTES,
    free_memory,
    kv_bytes_per_token,
    kv_share,
    refuse_too_much,
    stage_bytes,
)
from zpptool.config.stage_spec import StageSpec
from zpptool.errors import ExitCode, ZppError
from zpptool.partition import LayerRange


def specs(model: Path, dtype: str = "auto") -> list[StageSpec]:
    """Two stages of a model of four layers."""
    places: dict[str, Any] = {"partition": ((0, 2), (2, 4)), "bind": "", "connect": "", "dtype": dtype}
    return [StageSpec(engine=Engine.VLLM, model=str(model), stage=stage, **places) for stage in range(2)]


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=16), st.integers(0, 2**42))
def test_weights_and_caches_fit_together(needed: list[int], free: int) -> None:
    if sum(needed) > free:
        with pytest.raises(ZppError, match="of memory are free") as refused:
            refuse_too_much(needed, free)
        assert refused.value.exit_code is ExitCode.FAILURE
        return
    refuse_too_much(needed, free)
    share = kv_share(needed, free)
    assert 0 <= share <= MOST_KV_BYTES
    assert sum(needed) + share * len(needed) <= free


def test_this_machine_has_free_memory() -> None:
    assert free_memory() > 0


def test_stages_that_share_a_cpu_get_a_share_of_its_memory_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm")
    from zpptool.engines.vllm.offline import llm

    model = write_checkpoint(tmp_path / "model", llama(), llama_config())
    needed = [stage_bytes(spec) for spec in specs(model)]
    monkeypatch.setattr(llm, "free_memory", lambda: sum(needed) + 4000)
    assert llm._share_of_memory(specs(model), {}) == {"kv_cache_memory_bytes": 1000}
    assert llm._share_of_memory(specs(model), {"kv_cache_memory_bytes": 7}) == {}
    assert llm._share_of_memory(specs(model), {"gpu_memory_utilization": 0.1}) == {}
    monkeypatch.setattr(llm, "free_memory", lambda: sum(needed) - 1)
    with pytest.raises(ZppError, match="of memory are free"):
        llm._share_of_memory(specs(model), {"kv_cache_memory_bytes": 7})


def test_the_refusal_names_both_sizes() -> None:
    refuse_too_much([10, 20], 30)
    with pytest.raises(ZppError, match="take 31 B, and 30 B of memory"):
        refuse_too_much([10, 21], 30)


def test_the_kv_cache_is_counted_from_the_config() -> None:
    config = {"num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2}
    assert kv_bytes_per_token(config, LayerRange(1, 3)) == 2 * 2 * 2 * 8 * 2
    assert kv_bytes_per_token({"num_hidden_layers": 4}, LayerRange(0, 4)) is None
    assert kv_bytes_per_token({**config, "kv_lora_rank": 16}, LayerRange(0, 4)) is None
