# SPDX-License-Identifier: Apache-2.0
"""`zpptool split --explain` and `--drop-mtp` as a user runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import HIDDEN, llama, llama_config, write_checkpoint

EXPERTS = {f"model.layers.{layer}.mlp.experts.{expert}.w1.weight": ("BF16", (4, 4))
           for layer in range(4) for expert in range(8)}  # fmt: skip
PREDICTION = {f"model.layers.4.{part}.weight": ("BF16", (HIDDEN,)) for part in ("eh_proj", "enorm")}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    kinds = {**llama(tied=True), **EXPERTS, **PREDICTION}
    return write_checkpoint(tmp_path / "model", kinds, llama_config(num_nextn_predict_layers=1), shards=2)


def test_every_group_of_tensors_is_explained(zpptool, model: Path) -> None:
    ran = zpptool("split", model, "--num-stages", 2, "--explain", "--json")
    assert ran.code == 0, ran.err
    groups = {group["pattern"]: group for group in ran.json["groups"]}
    experts = groups["model.layers.*.mlp.experts.*.w1.weight"]
    assert experts == {
        "pattern": "model.layers.*.mlp.experts.*.w1.weight", "count": 32, "nbytes": 32 * 32, "stages": [0, 1],
        "side": "layer", "reason": "in a decoder layer",
    }  # fmt: skip
    assert groups["model.embed_tokens.weight"]["stages"] == [0, 1]
    assert groups["model.embed_tokens.weight"]["reason"].startswith("tied")
    assert groups["model.layers.*.eh_proj.weight"]["stages"] == [1]
    assert sum(group["count"] for group in ran.json["groups"]) == len({**llama(tied=True), **EXPERTS, **PREDICTION})
    assert not (model.parent / "out").exists()


def test_people_get_a_table_of_groups(zpptool, model: Path) -> None:
    ran = zpptool("split", model, "--num-stages", 4, "--explain")
    assert ran.code == 0
    lines = {line.split()[0]: line.split() for line in ran.out.splitlines() if line.strip()}
    assert lines["model.layers.*.mlp.experts.*.w1.weight"][1:5] == ["32", "1.0", "KiB", "0-3"]
    assert lines["model.norm.weight"][-5:] == ["norm", "after", "the", "last", "layer"]
    assert "nothing was written" in ran.out


def test_prediction_layers_are_dropped_on_request_and_the_split_is_still_valid(zpptool, model: Path) -> None:
    out = model.parent / "out"
    ran = zpptool("split", model, "--num-stages", 2, "--drop-mtp", "--explain", "-o", out, "--json")
    assert ran.code == 0, ran.err
    assert {drop["tensor"] for drop in ran.json["dropped"]} == set(PREDICTION)
    groups = {group["pattern"]: group for group in ran.json["groups"]}
    assert groups["model.layers.*.eh_proj.weight"]["stages"] == []
    assert "left out as requested" in groups["model.layers.*.eh_proj.weight"]["reason"]
    proven = zpptool("validate", out, "--model", model, "--json")
    assert proven.code == 0, proven.out
    assert {drop["tensor"] for drop in proven.json["dropped"]} == set(PREDICTION)
