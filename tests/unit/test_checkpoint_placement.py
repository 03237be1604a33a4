# SPDX-License-Identifier: Apache-2.0
"""`--place`: the user's word counts, is recorded, and is honoured by validate and join."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from checkpoints import Kinds, index_of, llama, llama_config, write_checkpoint
from typer.testing import CliRunner

from zpptool.checkpoint.explain import explain
from zpptool.checkpoint.index import read_index
from zpptool.checkpoint.join import plan_join, write_join
from zpptool.checkpoint.manifest import load_manifest
from zpptool.checkpoint.placement import Placement, parse_placements
from zpptool.checkpoint.split import write_split
from zpptool.checkpoint.splitplan import plan_split
from zpptool.checkpoint.stage_tensors import index_digest
from zpptool.checkpoint.structure import Structure, assign, infer_structure
from zpptool.checkpoint.verify import find_target, verify_split
from zpptool.cli.app import app
from zpptool.errors import ExitCode, ZppError
from zpptool.partition import even_partition

UNCLEAR: Kinds = {**llama(), "mystery.weight": ("BF16", (1024, 1024)), "mystery.bias": ("BF16", (1024,))}


def structure_of(*texts: str, **config: object) -> Structure:
    return infer_structure(index_of(UNCLEAR, llama_config(**config)), parse_placements(texts))


@pytest.mark.parametrize(
    ("where", "stages"), [("first", (0,)), ("last", (3,)), ("all", (0, 1, 2, 3)), ("2", (2,)), ("002", (2,))]
)
def test_a_tensor_goes_where_the_user_says(where: str, stages: tuple[int, ...]) -> None:
    structure = structure_of(f"mystery.*={where}")
    assert structure.stages_of("mystery.weight", even_partition(4, 4)) == stages
    assert structure.stages_of("mystery.bias", even_partition(4, 4)) == stages


def test_the_last_match_counts_and_rules_are_overridden() -> None:
    structure = structure_of("*=all", "mystery.*=last", "lm_head.weight=1")
    partition = even_partition(4, 4)
    assert structure.stages_of("mystery.weight", partition) == (3,)
    assert structure.stages_of("lm_head.weight", partition) == (1,)
    assert structure.stages_of("model.norm.weight", partition) == (0, 1, 2, 3)


def test_a_layers_tensor_stays_with_its_layer_too() -> None:
    structure = structure_of("mystery.*=last", "model.layers.0.mlp.*=2")
    assert structure.stages_of("model.layers.0.mlp.up_proj.weight", even_partition(4, 4)) == (0, 2)


def test_a_cut_through_shared_state_needs_the_sources_tensors_in_the_readers_stage() -> None:
    kinds = ["full", "shared", "shared", "full"]
    partition = even_partition(4, 2)
    with pytest.raises(ZppError, match="layer 2 reads the selected indices of layer 0"):
        assign(structure_of("mystery.*=last", indexer_types=kinds), partition)
    assigned = assign(structure_of("mystery.*=last", "model.layers.0.self_attn.*=1", indexer_types=kinds), partition)
    assert "model.layers.0.self_attn.q_proj.weight" in assigned.stages[1]


@pytest.mark.parametrize("text", ["x", "=last", "x=", "x=-1", "x=second", "x=1.5"])
def test_another_form_is_a_usage_error(text: str) -> None:
    with pytest.raises(ZppError, match="is not PATTERN=WHERE") as caught:
        parse_placements([text])
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_pattern_without_a_tensor_and_a_stage_that_does_not_exist_are_refused() -> None:
    with pytest.raises(ZppError, match="--place misery=last matches no tensor"):
        structure_of("mystery.*=last", "misery=last")
    with pytest.raises(ZppError, match="names stage 4, and the stages are 0 to 3"):
        assign(structure_of("mystery.*=4"), even_partition(4, 4))


def test_placements_are_recorded_and_honoured(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "model", UNCLEAR)
    placements = parse_placements(["mystery.*=all"])
    plan = plan_split(source, 2, placements=placements)
    assert "placed by --place mystery.*=all" in {group.reason for group in explain(plan)}
    write_split(plan, tmp_path / "split")
    assert load_manifest(tmp_path / "split/stage_1").placements == (Placement("mystery.*", "all"),)
    assert verify_split(find_target(tmp_path / "split", source)).faults == []
    write_join(plan_join(tmp_path / "split"), tmp_path / "joined")
    assert index_digest(read_index(tmp_path / "joined")) == index_digest(read_index(source))
    other = plan_split(source, 2, placements=parse_placements(["mystery.*=last"]))
    shutil.rmtree(tmp_path / "split/stage_0")
    with pytest.raises(ZppError, match="stage_1 belongs to another split"):
        write_split(other.only(0), tmp_path / "split")


def test_the_command_takes_placements(tmp_path: Path) -> None:
    model = str(write_checkpoint(tmp_path / "model", UNCLEAR))
    arguments = ["split", model, "--num-stages", "2", "--dry-run", "--json"]
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, ZppError)
    assert "--place 'mystery.weight=first'" in (refused.exception.hint or "")
    made = CliRunner().invoke(app, [*arguments, "--explain", "--place", "*=all", "--place", "mystery.*=last"])
    groups = {group["pattern"]: group for group in json.loads(made.stdout)["groups"]}
    assert (groups["mystery.weight"]["stages"], groups["mystery.weight"]["side"]) == ([1], "placed")
