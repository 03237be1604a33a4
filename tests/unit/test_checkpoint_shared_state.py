# SPDX-License-Identifier: Apache-2.0
"""A cut through state that layers share is refused, whatever the key of the config is called."""

from __future__ import annotations

import time
from typing import Any

import pytest
from checkpoints import HIDDEN, Kinds, index_of, layered, llama, llama_config
from hypothesis import given, settings
from hypothesis import strategies as st

from zpptool.checkpoint.shared_state import Reading, joined_layers
from zpptool.checkpoint.structure import assign, infer_structure
from zpptool.errors import ZppError
from zpptool.partition import even_partition

LAYERS = 8


def joined(config: dict[str, Any], kinds: Kinds | None = None) -> set[int]:
    """Return the layers before which a model of eight layers must not be split."""
    return set(infer_structure(index_of(kinds or llama(LAYERS), llama_config(LAYERS, **config))).joined)


FULL_AND_SHARED = ["full", "full", "shared", "shared", "full", "shared", "full", "full"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"indexer_types": FULL_AND_SHARED}, {2, 3, 5}),
        ({"topk_modes": ["own", "reuse"] * 4}, {1, 3, 5, 7}),
        ({"layer_types": ["attention", "shared_attention"] * 4}, {1, 3, 5, 7}),
        ({"indexer_types": [*FULL_AND_SHARED, "shared"]}, {2, 3, 5}),
        ({"index_topk_pattern": "FFSSFSFFS"}, {2, 3, 5}),
        ({"index_topk_freq": 3}, {2, 3, 5, 6}),
        ({"index_topk_freq": 4, "index_skip_topk_offset": 3}, {3, 4, 5, 7}),
        ({"kv_reuse_group": [[0, 1], [3, 4, 5]]}, {1, 4, 5}),
        ({"kv_share_group_ids": [0, 0, 1, 1, 1, 2, 3, 3]}, {1, 3, 4, 7}),
        ({"kv_sharing_source": [0, 0, 2, 2, 2, 5, 6, 5]}, {1, 3, 4, 6, 7}),
        ({"kv_source": {"shared_cache": {"3": 1, "6": 5}}}, {2, 3, 6}),
        ({"share_kv_with_previous": [False, True, False, False, True, True, False, False]}, {1, 4, 5}),
        ({"attention": {"reuse_kv_every": 4}}, {1, 2, 3, 5, 6, 7}),
        ({"use_cla": True, "cla_share_factor": 2}, {1, 3, 5, 7}),
        ({"num_kv_shared_layers": 2, "layer_types": ["a", "b"] * 4}, {5, 6, 7}),
        ({"kv_reuse_mode": "second half"}, set(range(1, LAYERS))),
        ({"reuse_attention_layer": 3}, set(range(1, LAYERS))),
        ({"use_yoco": True}, set(range(1, LAYERS))),
    ],
)
def test_the_config_says_which_layers_share_state(config: dict[str, Any], expected: set[int]) -> None:
    assert joined(config) == expected
    assert joined({"text_config": llama_config(LAYERS, **config)}) == expected


@pytest.mark.parametrize(
    "config",
    [
        {"use_cla": False, "cla_share_factor": 2}, {"kv_reuse_every_i_layer": -1}, {"kv_reuse_group": None},
        {"num_kv_shared_layers": 0}, {"num_shared_experts": 2}, {"shared_intermediate_size": 64},
        {"share_embedding": True}, {"use_shared_attention_adapter": True}, {"share_q_dim": 64},
        {"index_topk_freq": 1}, {"indexer_types": ["full"] * LAYERS}, {"mlp_layer_types": ["dense", "shared"] * 4},
        {"kv_share_group_ids": list(range(LAYERS))}, {"kv_sharing_source": [-1] * LAYERS},
        {"index_share_for_mtp_iteration": True},
    ],
)  # fmt: skip
def test_what_is_switched_off_or_no_state_joins_nothing(config: dict[str, Any]) -> None:
    assert joined(config) == set()


def test_a_refused_cut_names_the_reader_the_source_and_the_ranges() -> None:
    structure = infer_structure(index_of(llama(LAYERS), llama_config(LAYERS, indexer_types=FULL_AND_SHARED)))
    with pytest.raises(ZppError, match="layer 2 reads the selected indices of layer 1") as caught:
        assign(structure, even_partition(LAYERS, 4))
    assert caught.value.hint == "give --ranges that keep layers 1-4 in one stage"


def cross_decoder() -> Kinds:
    """Eight layers: attention and state space by turns; from layer 4 on the caches of layers 2 and 3 are read."""
    kinds = {name: kind for name, kind in llama(LAYERS, tied=True).items() if ".layers." not in name}
    for layer in range(LAYERS):
        path = f"model.layers.{layer}"
        if layer % 2:
            rows = HIDDEN if layer > 3 else 2 * HIDDEN
            kinds[f"{path}.mixer.qkv_proj.weight"] = ("BF16", (rows, HIDDEN))
            kinds[f"{path}.mixer.o_proj.weight"] = ("BF16", (HIDDEN, HIDDEN))
        else:
            kinds |= {f"{path}.mixer.{name}.weight": ("BF16", (HIDDEN, HIDDEN)) for name in ("in_proj", "out_proj")}
            kinds |= {} if layer > 3 else {f"{path}.mixer.A_log": ("F32", (HIDDEN,))}
    return kinds


def test_layers_without_keys_or_a_recurrence_of_their_own_read_those_of_the_last_that_has_them() -> None:
    structure = infer_structure(index_of(cross_decoder(), llama_config(LAYERS)))
    assert set(structure.joined) == {3, 4, 5, 6, 7}
    assert "layer 4 reads the state space output of layer 2" in structure.joined.values()
    assert "layer 7 reads the key and value cache of layer 3" in {
        f"layer {reading.reader} reads {reading.what} of layer {reading.source}" for reading in structure.readings
    }


def test_layers_of_different_widths_are_no_cross_decoder() -> None:
    """As published: OpenELM has other numbers of heads in each layer, each with keys and values."""
    kinds = {name: kind for name, kind in llama(4).items() if ".layers." not in name}
    for layer in range(4):
        heads = HIDDEN * (layer + 1)
        kinds[f"model.layers.{layer}.attn.qkv_proj.weight"] = ("BF16", (3 * heads, HIDDEN))
        kinds[f"model.layers.{layer}.attn.out_proj.weight"] = ("BF16", (HIDDEN, heads))
    assert infer_structure(index_of(kinds)).joined == {}


def test_values_of_the_first_layer_that_all_others_mix_in_keep_them_together() -> None:
    mixed = layered("model.layers", 4, {"attn.v_lora.lora.0.weight": ("BF16", (2, HIDDEN))})
    kinds = {**llama(), **{name: kind for name, kind in mixed.items() if ".layers.0." not in name}}
    assert set(infer_structure(index_of(kinds)).joined) == {1, 2, 3}


@settings(deadline=None, max_examples=40)
@given(st.lists(st.booleans(), min_size=2, max_size=9))
def test_a_cut_is_refused_exactly_before_a_layer_that_shares(shares: list[bool]) -> None:
    kinds = ["shared" if shared and layer else "full" for layer, shared in enumerate(shares)]
    structure = infer_structure(index_of(llama(len(kinds)), llama_config(len(kinds), indexer_types=kinds)))
    assert set(structure.joined) == {layer for layer, kind in enumerate(kinds) if kind == "shared"}


def readings(layers: int) -> st.SearchStrategy[list[Reading]]:
    """Lists of readings among so many layers."""
    pairs = st.tuples(st.integers(0, layers - 1), st.integers(0, layers - 1)).filter(lambda pair: pair[0] > pair[1])
    return st.lists(st.builds(lambda pair: Reading(*pair, "state"), pairs), max_size=8)


@settings(deadline=None)
@given(readings(12))
def test_a_layer_is_joined_if_a_reading_spans_it_and_the_first_such_one_is_named(found: list[Reading]) -> None:
    joined = joined_layers(found)
    for layer in range(12):
        spanning = [reading for reading in sorted(found) if reading.source < layer <= reading.reader]
        reason = f"layer {spanning[0].reader} reads state of layer {spanning[0].source}" if spanning else None
        assert joined.get(layer) == reason


def test_thousands_of_layers_are_judged_in_a_moment() -> None:
    keyed = {f"model.layers.{n}.self_attn.{x}_proj.weight": ("BF16", (1, 1)) for n in range(0, 5000, 2) for x in "kv"}
    config = llama_config(5000, use_cla=True, cla_share_factor=2)
    start = time.process_time()
    structure = infer_structure(index_of({**llama(5000), **keyed}, config))
    assert assign(structure, even_partition(5000, 2500)).stages
    assert time.process_time() - start < 8
