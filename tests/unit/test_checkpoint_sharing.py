# SPDX-License-Identifier: Apache-2.0
"""What layers share, and how a split is explained, for any model and any partition."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import HIDDEN, VOCAB, Kinds, llama, llama_config, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from zpptool.checkpoint.explain import explain, stage_words
from zpptool.checkpoint.header import DTYPE_BITS, TensorInfo
from zpptool.checkpoint.index import CheckpointIndex
from zpptool.checkpoint.splitplan import plan_split
from zpptool.checkpoint.structure import Structure, assign, infer_structure
from zpptool.errors import ZppError
from zpptool.partition import LayerRange, Partition, even_partition, parse_range

LARGE, NORM = ("BF16", (1024, 1024)), ("BF16", (HIDDEN,))
TYPES = st.sampled_from(["full", "sliding"])


@st.composite
def partitions(draw: st.DrawFn, layers: int) -> Partition:
    cuts = sorted(draw(st.sets(st.integers(1, layers - 1), max_size=layers - 1)))
    return tuple(LayerRange(start, end) for start, end in zip([0, *cuts], [*cuts, layers], strict=True))


def infer(kinds: Kinds, config: dict[str, object]) -> Structure:
    tensors = {}
    for name, (dtype, shape) in kinds.items():
        nbytes = DTYPE_BITS[dtype] // 8 * HIDDEN
        tensors[name] = TensorInfo(name, dtype, shape, Path("model.safetensors"), 0, nbytes)
    return infer_structure(CheckpointIndex(Path("somewhere"), config, tensors, ()))


def stages_of(structure: Structure, name: str) -> tuple[int, ...]:
    """Return the stages of each tensor, for a model of four layers in four stages."""
    return structure.stages_of(name, even_partition(4, 4))


def parse(*ranges: str) -> Partition:
    return tuple(parse_range(text) for text in ranges)


SHARING_LAYER = {"linear.weight": LARGE, "mamba_decoder.norm.weight": NORM}


def hybrids(*sharing: int, holders: tuple[int, ...]) -> Kinds:
    """A Zamba of four layers: some are hybrids, and the first of these hold the attention that all hybrids share."""
    kinds: Kinds = {name: kind for name, kind in llama().items() if ".layers." not in name}
    for layer in range(4):
        of_one = SHARING_LAYER if layer in sharing else {"mamba.weight": LARGE, "input_layernorm.weight": NORM}
        kinds |= {f"model.layers.{layer}.{name}": kind for name, kind in of_one.items()}
        if layer in holders:
            kinds[f"model.layers.{layer}.shared_transformer.mlp.weight"] = LARGE
    return kinds


def test_a_block_that_layers_share_goes_to_every_stage_that_reads_it() -> None:
    structure = infer(hybrids(0, 2, 3, holders=(0,)), llama_config())
    name = "model.layers.0.shared_transformer.mlp.weight"
    assert stages_of(structure, name) == (0, 2, 3)
    assignment = assign(structure, even_partition(4, 2))
    assert assignment.shared == {name: "layers 0, 2, 3 share it"}


def test_blocks_that_alternate_go_to_every_stage_that_may_read_them() -> None:
    structure = infer(hybrids(0, 1, 3, holders=(0, 1)), llama_config())
    assert stages_of(structure, "model.layers.0.shared_transformer.mlp.weight") == (0, 3)
    assert stages_of(structure, "model.layers.1.shared_transformer.mlp.weight") == (1, 3)


def test_a_block_that_each_layer_holds_is_not_shared() -> None:
    structure = infer(hybrids(1, 2, holders=(1, 2)), llama_config())
    assert stages_of(structure, "model.layers.1.shared_transformer.mlp.weight") == (1,)
    assert assign(structure, even_partition(4, 4)).shared == {}


KV_SHARING = {"num_kv_shared_layers": 2, "layer_types": ["full", "sliding", "sliding", "sliding"]}


def test_layers_that_share_a_cache_stay_in_one_stage() -> None:
    structure = infer(llama(), llama_config(**KV_SHARING))
    assert assign(structure, parse("0-1", "1-4")).stages
    for bad in (("0-2", "2-4"), ("0-1", "1-3", "3-4")):
        with pytest.raises(ZppError, match=r"reads the key and value cache of layer 1") as caught:
            assign(structure, parse(*bad))
        assert caught.value.hint == "give --ranges that keep layers 1-4 in one stage"


def test_a_shared_cache_of_unknown_source_keeps_all_layers_together() -> None:
    structure = infer(llama(), llama_config(num_kv_shared_layers=2))
    assert set(structure.joined) == {1, 2, 3}
    assert assign(structure, even_partition(4, 1)).stages


def test_a_layer_without_keys_of_its_own_reads_those_of_the_one_before() -> None:
    """As published: Hunyuan-Large computes keys and values in every second layer."""
    keyed = {"self_attn.k_proj.weight": LARGE, "self_attn.v_proj.weight": LARGE}
    kinds = {**llama(), **{f"model.layers.{layer}.{name}": kind for layer in (0, 2) for name, kind in keyed.items()}}
    structure = infer(kinds, llama_config(use_cla=True, cla_share_factor=2))
    assert assign(structure, even_partition(4, 2)).stages
    with pytest.raises(ZppError, match="layer 1 reads the key and value cache of layer 0"):
        assign(structure, parse("0-1", "1-4"))


# Any model and any partition.


@st.composite
def caches(draw: st.DrawFn) -> tuple[Structure, dict[int, int], Partition]:
    """Draw a model whose last layers read the caches of earlier ones: the cache source of each, and a partition."""
    layers = draw(st.integers(2, 9))
    shared = draw(st.integers(1, layers - 1))
    types = draw(st.lists(TYPES, min_size=layers, max_size=layers))
    types[: layers - shared] = ["full", *types[1 : layers - shared]]
    types[layers - shared :] = [
        kind if kind in types[: layers - shared] else "full" for kind in types[layers - shared :]
    ]
    sources = {
        reader: max(layer for layer in range(layers - shared) if types[layer] == types[reader])
        for reader in range(layers - shared, layers)
    }
    config = llama_config(layers, num_kv_shared_layers=shared, layer_types=types)
    return infer(llama(layers), config), sources, draw(partitions(layers))


@settings(deadline=None)
@given(caches())
def test_a_cut_is_refused_exactly_when_it_separates_a_layer_from_its_cache(
    drawn: tuple[Structure, dict[int, int], Partition],
) -> None:
    structure, sources, partition = drawn
    stage_of = {layer: stage for stage, owned in enumerate(partition) for layer in range(*owned)}
    parted = any(stage_of[reader] != stage_of[source] for reader, source in sources.items())
    if parted:
        with pytest.raises(ZppError, match="reads the key and value cache"):
            assign(structure, partition)
    else:
        assert assign(structure, partition).partition == partition


@st.composite
def shared_blocks(draw: st.DrawFn) -> tuple[Kinds, int, set[int], Partition]:
    """Draw a hybrid model: some layers read a block that the first of them stores."""
    layers = draw(st.integers(2, 9))
    readers = draw(st.sets(st.integers(0, layers - 1), min_size=1))
    kinds: Kinds = {name: kind for name, kind in llama(layers).items() if ".layers." not in name}
    for layer in range(layers):
        inner = ("linear", "mamba_decoder") if layer in readers else ("mamba", "norm")
        kinds |= {f"model.layers.{layer}.{name}.weight": ("BF16", (HIDDEN,)) for name in inner}
    kinds[f"model.layers.{min(readers)}.shared_transformer.weight"] = ("BF16", (VOCAB, HIDDEN))
    return kinds, layers, readers, draw(partitions(layers))


@settings(deadline=None)
@given(shared_blocks())
def test_a_shared_block_is_held_by_exactly_the_stages_with_a_layer_that_reads_it(
    drawn: tuple[Kinds, int, set[int], Partition],
) -> None:
    kinds, layers, readers, partition = drawn
    assignment = assign(infer(kinds, llama_config(layers)), partition)
    name = f"model.layers.{min(readers)}.shared_transformer.weight"
    holding = {stage for stage, names in enumerate(assignment.stages) if name in names}
    assert holding == {stage for stage, owned in enumerate(partition) if readers & set(range(*owned))}
    assert (name in assignment.shared) == (len(holding) > 1)


@given(st.sets(st.integers(0, 12)))
def test_stages_are_written_as_runs_that_name_each_once(stages: set[int]) -> None:
    text = stage_words(tuple(sorted(stages)))
    parsed: list[int] = []
    for run in text.split(", ") if text != "none" else ():
        first, _, last = run.partition("-")
        parsed += range(int(first), int(last or first) + 1)
    assert parsed == sorted(stages)


def test_the_groups_of_an_explanation_add_up_to_the_checkpoint(tmp_path: Path) -> None:
    experts: Kinds = {f"model.layers.{layer}.experts.{e}.w": ("F32", (2, 2)) for layer in range(4) for e in range(3)}
    kinds = {**llama(tied=True), **experts, "model.layers.4.eh_proj.weight": ("F32", (2, 2))}
    source = write_checkpoint(tmp_path / "model", kinds, llama_config(num_nextn_predict_layers=1))
    for drop in (False, True):
        plan = plan_split(source, 3, drop_prediction=drop)
        groups = explain(plan)
        assert sum(group.count for group in groups) == len(kinds)
        assert sum(group.nbytes for group in groups) == plan.index.nbytes
        assert all(group.reason for group in groups)
        none = [group.pattern for group in groups if not group.stages]
        assert none == (["model.layers.*.eh_proj.weight"] if drop else [])
        (of_experts,) = (group for group in groups if "experts" in group.pattern)
        assert (of_experts.pattern, of_experts.count) == ("model.layers.*.experts.*.w", 12)


def test_the_layers_that_take_features_of_an_image_are_in_one_stage() -> None:
    config = {**llama_config(4), "thinker_config": {"vision_config": {"deepstack_visual_indexes": [1, 3, 5]}}}
    structure = infer(llama(4), config)
    assert sorted(structure.joined) == [1, 2]
    with pytest.raises(ZppError, match=r"before layer 2: layer 2 reads the image features \(deepstack\)"):
        assign(structure, parse("0-2", "2-4"))
    assert assign(structure, parse("0-3", "3-4"))
