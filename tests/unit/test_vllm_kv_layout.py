# SPDX-License-Identifier: Apache-2.0
"""The cache of another partition has the same blocks and groups and fits into memory, or is refused with the reason.
Stages with different kinds of layers agree on a layout."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec, KVCacheTensor

from zpptool.engines.vllm.compat import kv_cache
from zpptool.engines.vllm.core.kv_layout import cache_bytes, common_layouts, lay_out, layer_number, refuse_too_large
from zpptool.errors import ExitCode, ZppError
from zpptool.partition import LayerRange

pytestmark = pytest.mark.vllm

SPEC = FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=8, dtype=torch.float32)
OTHER = FullAttentionSpec(block_size=32, num_kv_heads=2, head_size=8, dtype=torch.float32)
NAMES = [f"model.layers.{number}.self_attn.attn" for number in range(4)]
ANY = ["LBNHC", "LBHNC", "BLNHC", "BLHNC"]
PARTITION = (LayerRange(0, 1), LayerRange(1, 4))


def cache(names: list[str], *, blocks: int = 10, spec: FullAttentionSpec = SPEC, **more: object) -> KVCacheConfig:
    size = blocks * len(names) * spec.page_size_bytes
    tensor = KVCacheTensor(size=size, layers=names, layer_stride=size // max(len(names), 1), block_stride=0, offset=0)
    return KVCacheConfig(blocks, [tensor] if names else [], [KVCacheGroupSpec(names, spec)], **more)


def laid(monkeypatch: pytest.MonkeyPatch, made: list[KVCacheConfig]) -> list[KVCacheConfig]:
    """The result of `lay_out` where vLLM returns `made`."""
    calls = []
    monkeypatch.setattr(kv_cache, "kv_cache_configs", lambda *arguments: calls.append(arguments) or made)
    before = [cache(NAMES[:2], hash_block_size=16, kv_cache_layout="NHD"), cache(NAMES[2:])]
    specs = [dict.fromkeys(NAMES[:2], SPEC), dict.fromkeys(NAMES[2:], SPEC)]
    done = lay_out(SimpleNamespace(), specs, before, PARTITION)
    ((_, wanted, blocks),) = calls
    assert [list(own) for own in wanted] == [NAMES[:1], NAMES[1:]]
    assert blocks == 10
    return done


def test_each_layer_moves_by_its_number_and_the_rest_is_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = laid(monkeypatch, [cache(NAMES[:1]), cache(NAMES[1:])])
    assert (first.hash_block_size, first.kv_cache_layout) == (16, "NHD")
    assert second.kv_cache_groups[0].layer_names == NAMES[1:]


@pytest.mark.parametrize("first", [cache(NAMES[:1], spec=OTHER), cache(NAMES[:1], blocks=9)], ids=["groups", "blocks"])
def test_what_would_change_for_the_scheduler_is_refused(monkeypatch: pytest.MonkeyPatch, first: KVCacheConfig) -> None:
    with pytest.raises(ZppError, match="other groups of the cache"):
        laid(monkeypatch, [first, cache(NAMES[1:])])


def test_a_stage_without_the_memory_is_named_and_one_with_just_enough_is_not() -> None:
    caches = [cache(NAMES[:1]), cache(NAMES[1:])]
    needed = [cache_bytes(one) for one in caches]
    assert needed == [10 * SPEC.page_size_bytes, 30 * SPEC.page_size_bytes]
    refuse_too_large(caches, needed, [0, 0], PARTITION)
    refuse_too_large(caches, needed, [-100, 0], PARTITION)
    for available, growth in ([needed[0], needed[1] - 1], [0, 0]), (needed, [0, 1]):
        with pytest.raises(ZppError, match="stage 1 with layers 1-4 needs") as refused:
            refuse_too_large(caches, available, growth, PARTITION)
        assert "stage 0" not in refused.value.message


@pytest.mark.parametrize(("name", "number"), [("model.layers.3.self_attn.attn", 3), ("transformer.h.12.attn", 12)])
def test_a_layer_of_the_cache_is_identified_by_the_number_in_its_name(name: str, number: int) -> None:
    assert layer_number(name) == number


@pytest.mark.parametrize("name", ["model.attn", "model.layers.3.experts.1.attn"])
def test_a_name_without_one_number_is_refused(name: str) -> None:
    with pytest.raises(ZppError) as refused:
        layer_number(name)
    assert refused.value.exit_code is ExitCode.INVALID


def test_a_stage_that_supports_any_layout_takes_that_of_the_others() -> None:
    assert common_layouts([ANY, ["LBHNC"]]) == [["LBHNC"], ["LBHNC"]]
    assert common_layouts([["BLHNC", "LBNHC"], ANY, ANY]) == [["BLHNC", "LBNHC"]] * 3


def test_stages_that_agree_keep_their_layouts() -> None:
    assert common_layouts([ANY, ANY]) == [ANY, ANY]
    assert common_layouts([]) == []


def test_stages_without_a_common_layout_keep_their_own() -> None:
    assert common_layouts([["LBNHC"], ["LBHNC"]]) == [["LBNHC"], ["LBHNC"]]


@pytest.mark.parametrize("release", ["0.32", "0.33"])
def test_the_layout_is_asked_of_vllm_as_its_release_wants(monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    """0.33 takes the groups of all stages' layers, which 0.32 makes itself."""
    from vllm.v1.engine import core

    asked = []

    def of_032(vllm_config: Any, kv_cache_specs: Any, available_memory: Any) -> list[str]:
        asked.append((vllm_config.cache_config.num_gpu_blocks_override, kv_cache_specs, available_memory))
        return ["laid out"]

    def of_033(vllm_config: Any, kv_cache_specs: Any, available_memory: Any, global_kv_cache_groups: Any) -> list[str]:
        assert global_kv_cache_groups == ("groups", kv_cache_specs)
        return of_032(vllm_config, kv_cache_specs, available_memory)

    monkeypatch.setattr(core, "get_kv_cache_configs", of_032 if release == "0.32" else of_033)
    monkeypatch.setattr(core, "get_global_kv_cache_groups", lambda _config, specs: ("groups", specs), raising=False)
    config = SimpleNamespace(cache_config=SimpleNamespace(num_gpu_blocks_override=None))
    assert kv_cache.kv_cache_configs(config, [{}, {}], 7) == ["laid out"]
    assert asked == [(7, [{}, {}], [0, 0])]
    assert config.cache_config.num_gpu_blocks_override is None


def test_a_layout_of_an_unknown_release_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.engine import core

    monkeypatch.setattr(core, "get_kv_cache_configs", lambda vllm_config, kv_cache_specs, memory_by_stage: [])
    with pytest.raises(ZppError, match="lays out the cache in another way"):
        kv_cache.kv_cache_configs(SimpleNamespace(cache_config=SimpleNamespace()), [{}], 7)
