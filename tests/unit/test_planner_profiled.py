# SPDX-License-Identifier: Apache-2.0
"""Plans from profiles: times of layers by type, the time of a step, and caches by the engine's own layout of blocks."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import index_of, llama, llama_config

from zpptool.checkpoint.structure import infer_structure
from zpptool.errors import ZppError
from zpptool.planner.costs import Model
from zpptool.planner.device_profile import TimeSample, read_profile
from zpptool.planner.devices import Inventory, read_devices, refuse_other_models
from zpptool.planner.estimate import time_of
from zpptool.planner.planning import make_answer
from zpptool.planner.weights import stage_weights

DEVICES = """\
zpptool-devices: 1
kinds: {x: {memory: 400000, profile: x.yaml}}
hosts: [{name: a, kind: x, devices: 2, tensor_parallel: [1, 2]}, {name: b, kind: x}]
links: {default: {bytes_per_second: 1e9, round_trip_seconds: 1e-6, source: measured}}
workload: {prompt_tokens: 8, answer_tokens: 8, concurrency: 4}
"""
PROFILE = """\
zpptool-profile: 1
device: x
engine: vllm
model: {name: m, digest: abc, dtype: bfloat16}
layer_types: [attention, mamba, mamba, attention]
layers:
  attention: {decode: [{tokens: 1, context: 0, seconds: 0.002, source: measured},
                       {tokens: 5, context: 0, seconds: 0.004, source: measured}]}
  mamba: {decode: [{tokens: 1, seconds: 0.001, source: measured}, {tokens: 5, seconds: 0.001, source: measured}]}
step: {decode: [{tokens: 1, seconds: 0.0005, source: measured}, {tokens: 5, seconds: 0.0005, source: measured}]}
workspace: [{max_num_batched_tokens: 2048, bytes: 1000}]
kv:
  layout:
    block_bytes_multiple: 64
    rank_factors: {2: 2}
    groups:
    - kind: full
      block_size: 4
      layers: [{layer: 0, page_bytes: 100}, {layer: 3, page_bytes: 100}]
    - kind: mamba
      block_size: 4
      layers: [{layer: 1, page_bytes: 90}, {layer: 2, page_bytes: 90}]
      sequence: [{tokens: 1, blocks: 1}, {tokens: 1000, blocks: 1}]
"""


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    (tmp_path / "x.yaml").write_text(PROFILE)
    (tmp_path / "devices.yaml").write_text(DEVICES)
    return read_devices(tmp_path / "devices.yaml")


@pytest.fixture
def model() -> Model:
    index = index_of(llama(4), llama_config(4))
    return Model(stage_weights(index, infer_structure(index)), 32, 2)


def test_caches_are_as_many_blocks_as_the_engine_makes(inventory: Inventory, model: Model) -> None:
    layout = inventory.profiles["x"][1].kv.layout  # type: ignore[union-attr]
    assert layout is not None
    plan = make_answer(inventory, model).best
    partition = tuple(stage.layers for stage in plan.stages)
    room = [stage.memory - stage.weights - stage.workspace for stage in plan.stages]
    needed = 1 + plan.point.sequences * layout.blocks_of_sequence(16)
    assert layout.blocks(partition, room, [stage.width for stage in plan.stages]) >= needed
    exactly = [stage.cache for stage in plan.stages]
    widths = [stage.width for stage in plan.stages]
    assert layout.blocks(partition, exactly, widths) == needed
    assert layout.blocks(partition, [size - 1 for size in exactly], widths) < needed
    assert all(stage.workspace == 1000 for stage in plan.stages)


def test_times_are_those_of_the_layers_types_and_of_the_step(inventory: Inventory, model: Model) -> None:
    plan = make_answer(inventory, model, most_stages=1).best
    stage = plan.stages[0]
    divided = stage.width
    assert divided == 2, "two devices are taken to be faster than one"
    attention = 0.002 + 0.002 * 3 / 4  # a batch of 4, between 1 and 5
    assert stage.seconds.nominal == pytest.approx(0.0005 + (2 * attention + 2 * 0.001) / 2)
    assert stage.seconds.high > 1.9 * (stage.seconds.nominal - 0.0005), "that was not measured, and may be none at all"


def test_a_profile_of_another_model_or_dtype_is_refused(inventory: Inventory) -> None:
    refuse_other_models(inventory, "abc", "auto")
    with pytest.raises(ZppError, match="digest abc"):
        refuse_other_models(inventory, "other", "auto")
    with pytest.raises(ZppError, match="float32 is planned"):
        refuse_other_models(inventory, "abc", "float32")


def test_a_profile_of_other_layers_is_refused(tmp_path: Path, inventory: Inventory) -> None:
    index = index_of(llama(5), llama_config(5))
    other = Model(stage_weights(index, infer_structure(index)), 32, 2)
    with pytest.raises(ZppError, match="of 4 layers, the model has 5"):
        make_answer(inventory, other)


def test_times_between_and_beyond_samples(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(PROFILE)
    samples: tuple[TimeSample, ...] = read_profile(tmp_path / "x.yaml").layers["attention"].decode
    assert time_of(samples, 3, 0).nominal == pytest.approx(0.003)
    assert time_of(samples, 9, 0).nominal == pytest.approx(0.006)
    assert time_of(samples, 0.5, 0).nominal == pytest.approx(0.002)
    inside, outside = time_of(samples, 3, 0), time_of(samples, 9, 0)
    assert inside.high / inside.nominal < outside.high / outside.nominal
