# SPDX-License-Identifier: Apache-2.0
"""Splitting: the content of a stage directory, and that the destination holds a whole split or what it held before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from checkpoints import content, llama, llama_config, write_checkpoint, write_raw, write_sparse

from zpptool.checkpoint.index import INDEX_NAME, read_index
from zpptool.checkpoint.manifest import load_manifest
from zpptool.checkpoint.output_lock import hold
from zpptool.checkpoint.smallfiles import STAGE_FILE
from zpptool.checkpoint.split import split_checkpoint, write_split
from zpptool.checkpoint.splitplan import plan_split
from zpptool.checkpoint.stage_tensors import load_plan, model_digest
from zpptool.checkpoint.verify import find_target, verify_split
from zpptool.errors import ExitCode, ZppError
from zpptool.partition import resolve_partition


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", shards=3)


def tree(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shards", [1, 3])
def test_the_stages_hold_the_source_and_nothing_else(tmp_path: Path, shards: int, tied: bool) -> None:
    kinds = llama(tied=tied)
    source = write_checkpoint(tmp_path / "model", kinds, llama_config(tie_word_embeddings=tied), shards=shards)
    before = tree(source)
    stages = split_checkpoint(source, tmp_path / "out", ranges=["0-1", "1-3", "3-4"])
    assert tree(source) == before
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["stage_0", "stage_1", "stage_2"]
    assert {path.name for path in tmp_path.iterdir()} == {"model", "out"}
    seen = {}
    for stage in stages:
        for name, tensor in read_index(stage).tensors.items():
            assert (tensor.dtype, tensor.shape) == kinds[name]
            with tensor.file.open("rb") as stream:
                stream.seek(tensor.offset)
                assert stream.read(tensor.nbytes) == content(name, *kinds[name])
            seen.setdefault(name, []).append(stage.name)
    assert seen.keys() == kinds.keys()
    assert seen["model.embed_tokens.weight"] == (["stage_0", "stage_2"] if tied else ["stage_0"])
    assert seen["model.layers.2.mlp.up_proj.weight"] == ["stage_1"]


def test_a_stage_loads_in_the_conventions_of_others(tmp_path: Path, model: Path) -> None:
    safetensors = pytest.importorskip("safetensors")
    for stage in split_checkpoint(model, tmp_path / "out", 2):
        for name in ("config.json", "tokenizer.json", "chat_template.jinja", "code/modeling.py"):
            assert (stage / name).read_bytes() == (model / name).read_bytes()
        index = json.loads((stage / INDEX_NAME).read_text())
        found = {}
        for file in stage.glob("*.safetensors"):
            with safetensors.safe_open(file, "np") as opened:
                assert opened.metadata()["format"] == "pt"
                assert opened.metadata()["shard"].startswith("model-0000")
                found |= dict.fromkeys(opened.keys(), file.name)
        assert index["weight_map"] == found
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in read_index(stage).tensors.values())


def test_weights_are_not_carried_as_small_files(tmp_path: Path, model: Path) -> None:
    for name in ("consolidated.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json", "a.gguf", ".hidden"):
        (model / name).write_bytes(b"x")
    write_raw(model / "consolidated.safetensors", {})
    (model / ".cache").mkdir()
    (model / ".cache" / "file").write_text("")
    plan = plan_split(model, 2)
    assert plan.small_files == ("chat_template.jinja", "code/modeling.py", "config.json", "tokenizer.json")
    assert any("consolidated.safetensors" in note for note in plan.notes)


def test_the_same_split_twice_is_the_same_to_the_last_byte(tmp_path: Path, model: Path) -> None:
    split_checkpoint(model, tmp_path / "a", 3)
    split_checkpoint(model, tmp_path / "b", 3)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_the_manifest_accounts_for_the_stage(tmp_path: Path, model: Path) -> None:
    first, last = split_checkpoint(model, tmp_path / "out", 2)
    manifest = load_manifest(first)
    assert (manifest.stage, manifest.num_stages, manifest.num_layers) == (0, 2, 4)
    assert manifest.layers == (0, 2)
    assert manifest.layer_prefix == "model.layers"
    assert {entry.name for entry in manifest.tensors} == set(read_index(first).tensors)
    assert manifest.source_digest == load_manifest(last).source_digest
    assert json.loads((first / STAGE_FILE).read_text())["schema_version"] == 2


def test_the_digest_of_the_model_is_the_same_everywhere(tmp_path: Path, model: Path) -> None:
    single = write_checkpoint(tmp_path / "single")
    stages = split_checkpoint(model, tmp_path / "out", 3)
    assert len({model_digest(directory) for directory in (model, single, *stages)}) == 1
    other = write_checkpoint(tmp_path / "other", config=llama_config(rope_theta=1.0))
    assert model_digest(other) != model_digest(model)


def test_an_engine_gets_the_same_tensors_from_either(tmp_path: Path, model: Path) -> None:
    stages = split_checkpoint(model, tmp_path / "out", 3)
    partition = resolve_partition(4, 3)
    for stage, directory in enumerate(stages):
        own, of_all = load_plan(directory, stage, partition), load_plan(model, stage, partition)
        assert {(t.name, t.dtype, t.shape) for t in own} == {(t.name, t.dtype, t.shape) for t in of_all}
        assert {t.file.parent for t in own} == {directory}
    with pytest.raises(ZppError, match="holds stage 1, not stage 0"):
        load_plan(stages[1], 0, partition)
    with pytest.raises(ZppError, match="was split as 0-1 1-3 3-4, not as 0-2 2-3 3-4"):
        load_plan(stages[1], 1, resolve_partition(4, ranges=["0-2", "2-3", "3-4"]))


def test_a_second_copy_is_dropped_with_the_reason(tmp_path: Path, model: Path) -> None:
    weight_map = json.loads((model / INDEX_NAME).read_text())["weight_map"]
    extra = write_checkpoint(tmp_path / "extra", {"lm_head.weight": ("BF16", (2, 2))}) / "model.safetensors"
    shutil.copy(extra, model / "model-00004-of-00004.safetensors")
    weight_map["more.head.weight"] = "model-00004-of-00004.safetensors"
    write_raw(
        model / "model-00004-of-00004.safetensors",
        {
            "lm_head.weight": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "more.head.weight": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]},
        },
        b"12",
    )
    (model / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    (stage,) = split_checkpoint(model, tmp_path / "out", 1)
    assert list(load_manifest(stage).dropped) == ["lm_head.weight"]
    assert read_index(stage).tensors["lm_head.weight"].dtype == "BF16"


# The destination.


def refused(source: Path, output: Path, text: str, *, force: bool = False) -> None:
    with pytest.raises(ZppError) as caught:
        split_checkpoint(source, output, 2, force=force)
    assert caught.value.exit_code == ExitCode.INVALID
    assert text in caught.value.message


def test_an_existing_output_is_refused_and_preserved(tmp_path: Path, model: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("dear")
    refused(model, tmp_path / "out", "exists and is not empty")
    refused(model, model / "tokenizer.json" / "out", "is inside the source")
    (tmp_path / "file").write_text("")
    refused(model, tmp_path / "file", "is not a directory", force=True)
    refused(model, Path("/proc/out"), "/proc cannot be written to")
    assert tree(tmp_path / "out") == {"mine": b"dear"}


def test_an_empty_output_is_no_obstacle(tmp_path: Path, model: Path) -> None:
    (tmp_path / "out").mkdir()
    assert len(split_checkpoint(model, tmp_path / "out", 2)) == 2


def test_force_replaces_the_stages_and_keeps_what_is_not_the_splits(tmp_path: Path, model: Path) -> None:
    split_checkpoint(model, tmp_path / "out", 4)
    (tmp_path / "out" / "mine").write_text("dear")
    refused(model, tmp_path / "out", "exists and is not empty")
    split_checkpoint(model, tmp_path / "out", 2, force=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"stage_0", "stage_1", "mine"}
    assert {path.name for path in tmp_path.iterdir()} == {"model", "out"}


@pytest.mark.parametrize("output", ["model", "model/out", "model/code", ".", "link", "link/out"])
def test_the_source_is_never_written_to(tmp_path: Path, model: Path, output: str) -> None:
    (tmp_path / "link").symlink_to(model)
    before = tree(model)
    refused(model, tmp_path / output, "the source", force=True)
    assert tree(model) == before


def test_a_full_disk_is_detected_before_anything_is_written(tmp_path: Path) -> None:
    source = write_sparse(tmp_path / "model", 2**40)
    with pytest.raises(ZppError, match=r"needs 10\.0 TiB and .* are free"):
        split_checkpoint(source, tmp_path / "out", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_stage_is_not_split_again(tmp_path: Path, model: Path) -> None:
    stages = split_checkpoint(model, tmp_path / "out", 2)
    refused(stages[0], tmp_path / "again", "is one stage of a split")


def test_two_splits_into_one_output_exclude_each_other(tmp_path: Path, model: Path) -> None:
    with hold(tmp_path / ".out.zpp-lock"):
        refused(model, tmp_path / "out", "another zpptool is writing")
    split_checkpoint(model, tmp_path / "out", 2)


class Interrupted(Exception):
    """Any exception that stops a split."""


@pytest.mark.parametrize("fault", [Interrupted, KeyboardInterrupt])
@pytest.mark.parametrize("force", [True, False])
def test_an_interrupted_split_preserves_the_old_output(
    tmp_path: Path, model: Path, fault: type[BaseException], force: bool
) -> None:
    if force:
        split_checkpoint(model, tmp_path / "out", 4)
    before = tree(tmp_path)

    def stop(_bytes: int) -> None:
        raise fault

    with pytest.raises(fault):
        write_split(plan_split(model, 2), tmp_path / "out", force=force, advance=stop)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("left", [".out.zpp-partial", "out/.zpp-partial", "out/.zpp-old"])
def test_leftovers_of_a_killed_run_are_cleaned_up(tmp_path: Path, model: Path, left: str) -> None:
    split_checkpoint(model, tmp_path / "out", 4)
    (tmp_path / "out" / "mine").write_text("dear")
    (tmp_path / left / "stage_0").mkdir(parents=True)
    split_checkpoint(model, tmp_path / "out", 2, force=True)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"stage_0", "stage_1", "mine"}


def test_a_source_that_changes_during_the_split_is_detected(tmp_path: Path, model: Path) -> None:
    plan = plan_split(model, 2)
    file = model / "model-00001-of-00003.safetensors"

    def change(_bytes: int) -> None:
        file.touch()

    with pytest.raises(ZppError, match="changed while they were read"):
        write_split(plan, tmp_path / "out", advance=change)
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size - 1)
    with pytest.raises(ZppError, match="ended while it was read"):
        write_split(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_progress_adds_up_to_the_plan(tmp_path: Path, model: Path) -> None:
    plan, done = plan_split(model, 3), []
    write_split(plan, tmp_path / "out", advance=done.append)
    assert sum(done) == plan.nbytes


def test_prediction_layers_that_are_left_out_are_accounted_for(tmp_path: Path) -> None:
    kinds = llama() | {name.replace(".0.", ".4."): kind for name, kind in llama().items() if ".layers.0." in name}
    source = write_checkpoint(tmp_path / "model", kinds, llama_config(num_nextn_predict_layers=1), shards=2)
    stages = write_split(plan_split(source, 2, drop_prediction=True), tmp_path / "out").paths
    gone = {tensor.name for tensor in load_manifest(stages[0]).dropped_tensors}
    assert gone == {name for name in kinds if ".layers.4." in name} == set(load_manifest(stages[0]).dropped)
    assert verify_split(find_target(tmp_path / "out", source)).faults == []


# One stage alone.


def test_stages_written_one_by_one_make_the_split(tmp_path: Path, model: Path) -> None:
    plan = plan_split(model, 3)
    for stage in (2, 0, 1):
        (path,) = write_split(plan.only(stage), tmp_path / "out").paths
        assert path == tmp_path / f"out/stage_{stage}"
    assert verify_split(find_target(tmp_path / "out", model)).faults == []
    write_split(plan, tmp_path / "whole")
    for stage in range(3):
        name, own = f"stage_{stage}", tree(tmp_path / f"out/stage_{stage}")
        of_all = tree(tmp_path / "whole" / name)
        assert own.pop(STAGE_FILE) != of_all.pop(STAGE_FILE)
        assert own == of_all
        assert load_manifest(tmp_path / "out" / name).source_digest == ""


def test_a_missing_stage_is_added_to_a_split(tmp_path: Path, model: Path) -> None:
    plan = plan_split(model, 3)
    write_split(plan, tmp_path / "out")
    shutil.rmtree(tmp_path / "out/stage_1")
    assert not write_split(plan.only(1), tmp_path / "out").unchanged
    assert write_split(plan.only(1), tmp_path / "out").unchanged
    assert verify_split(find_target(tmp_path / "out", model)).faults == []


def test_a_stage_is_not_put_beside_those_of_another_split(tmp_path: Path, model: Path) -> None:
    write_split(plan_split(model, 3).only(0), tmp_path / "out")
    before = tree(tmp_path)
    other = write_checkpoint(tmp_path / "other", config=llama_config(rope_theta=1.0))
    for plan in (plan_split(model, 2), plan_split(other, 3)):
        with pytest.raises(ZppError, match="stage_0 belongs to another split or another model"):
            write_split(plan.only(1), tmp_path / "out")
    shutil.rmtree(other)
    assert tree(tmp_path) == before


def test_a_stage_that_is_there_needs_force(tmp_path: Path, model: Path) -> None:
    write_split(plan_split(model, 2).only(0), tmp_path / "out")
    (tmp_path / "out/stage_0/tokenizer.json").write_text("{}")
    with pytest.raises(ZppError, match="exists and is not empty"):
        write_split(plan_split(model, 2).only(0), tmp_path / "out")
    write_split(plan_split(model, 2).only(0), tmp_path / "out", force=True)
    assert verify_split(find_target(tmp_path / "out/stage_0", model)).faults == []
    assert {path.name for path in tmp_path.iterdir()} == {"model", "out"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["stage_0"]


def test_a_refused_stage_leaves_no_empty_output(tmp_path: Path) -> None:
    plan = plan_split(write_sparse(tmp_path / "model", 2**40), 2)
    with pytest.raises(ZppError, match="not enough disk"):
        write_split(plan.only(1), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with pytest.raises(ZppError, match="there is no stage 2"):
        plan.only(2)
