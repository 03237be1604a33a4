# SPDX-License-Identifier: Apache-2.0
"""A link that leads out of a checkpoint puts no file of this machine into a stage, unless --follow-links is given."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import write_checkpoint

from zpptool.checkpoint.index import INDEX_NAME
from zpptool.checkpoint.smallfiles import small_files
from zpptool.checkpoint.split import split_checkpoint, write_split
from zpptool.checkpoint.splitplan import plan_split
from zpptool.checkpoint.verify import find_target, verify_split
from zpptool.errors import ExitCode, ZppError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", shards=2)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/id_rsa").write_text("PRIVATE KEY")
    return tmp_path / "home/id_rsa"


def hub_cache(directory: Path) -> Path:
    """A checkpoint in the cache layout of huggingface_hub: a snapshot of links to blobs named by their hashes."""
    plain = write_checkpoint(directory / "plain", shards=2)
    snapshot = directory / "hub/models--org--name/snapshots" / ("a" * 40)
    blobs = snapshot.parent.parent / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in plain.rglob("*") if path.is_file())):
        blob = blobs / f"{number:0{64 if path.suffix == '.safetensors' else 40}x}"
        path.rename(blob)
        link = snapshot / path.relative_to(plain)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to("/".join([".."] * (len(link.relative_to(snapshot).parts) + 1)) + f"/blobs/{blob.name}")
    return snapshot


@pytest.mark.parametrize("place", ["secret.json", "code/modeling_x.py", "deep/deeper/README.md"])
def test_a_link_out_is_refused_by_name_and_followed_on_request(
    model: Path, secret: Path, tmp_path: Path, place: str
) -> None:
    (model / place).parent.mkdir(parents=True, exist_ok=True)
    (model / place).symlink_to(secret)
    with pytest.raises(ZppError, match=place) as refused:
        split_checkpoint(model, tmp_path / "out", 2)
    assert refused.value.exit_code == ExitCode.INVALID
    assert str(secret) in refused.value.message
    assert "--follow-links" in (refused.value.hint or "")
    assert not (tmp_path / "out").exists()
    (stage, _other) = write_split(plan_split(model, 2, follow_links=True), tmp_path / "out").paths
    assert (stage / place).read_text() == "PRIVATE KEY"
    assert not (stage / place).is_symlink()
    assert verify_split(find_target(tmp_path / "out", model)).valid


@pytest.mark.parametrize("name", ["config.json", INDEX_NAME, "model-00001-of-00002.safetensors"])
def test_links_of_weights_config_and_index_are_checked_too(model: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (model / name).rename(tmp_path / "elsewhere" / name)
    (model / name).symlink_to(tmp_path / "elsewhere" / name)
    with pytest.raises(ZppError, match=name) as refused:
        plan_split(model, 2)
    assert refused.value.exit_code == ExitCode.INVALID
    plan_split(model, 2, follow_links=True)


def test_a_linked_folder_outside_is_refused_or_copied_on_request(model: Path, secret: Path, tmp_path: Path) -> None:
    (model / "templates").symlink_to(secret.parent)
    with pytest.raises(ZppError, match="templates"):
        plan_split(model, 2)
    assert "templates/id_rsa" in plan_split(model, 2, follow_links=True).small_files


@pytest.mark.parametrize("folder", [".cache", "__pycache__"])
def test_links_that_split_does_not_read_are_ignored(model: Path, secret: Path, folder: str) -> None:
    (model / folder).mkdir()
    (model / folder / "x.json").symlink_to(secret)
    (model / ".netrc").symlink_to(secret)
    (model / "pytorch_model.bin").symlink_to(secret)
    assert len(plan_split(model, 2).small_files) == 4


def test_a_link_inside_the_checkpoint_is_followed(model: Path, tmp_path: Path) -> None:
    (model / "alias.json").symlink_to("tokenizer.json")
    (model / "more").symlink_to("code")
    (model / "code/loop").symlink_to("..")
    stages = split_checkpoint(model, tmp_path / "out", 2)
    assert (stages[0] / "alias.json").read_text() == (model / "tokenizer.json").read_text()
    assert (stages[1] / "more/modeling.py").is_file()
    assert not (stages[1] / "code/loop").exists()
    assert verify_split(find_target(tmp_path / "out", model)).valid


def test_the_checkpoint_may_itself_be_a_link(model: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(model)
    split_checkpoint(tmp_path / "link", tmp_path / "out", 2)
    assert verify_split(find_target(tmp_path / "out", tmp_path / "link")).valid


def test_a_snapshot_of_the_hub_cache_is_split_as_it_is(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path)
    stages = split_checkpoint(snapshot, tmp_path / "out", 2)
    assert not any(path.is_symlink() for stage in stages for path in stage.rglob("*"))
    assert verify_split(find_target(tmp_path / "out", snapshot)).valid


def test_a_snapshot_leads_to_its_own_blobs_only(tmp_path: Path, secret: Path) -> None:
    snapshot = hub_cache(tmp_path)
    (snapshot / "extra.json").symlink_to(secret)
    with pytest.raises(ZppError, match=r"extra\.json"):
        plan_split(snapshot, 2)
    (snapshot / "extra.json").unlink()
    blobs = snapshot.parent.parent / "blobs"
    (secret.parent / ("b" * 40)).write_text("PRIVATE KEY")
    (blobs / ("b" * 40)).symlink_to(secret.parent / ("b" * 40))
    (snapshot / "extra.json").symlink_to(f"../../blobs/{'b' * 40}")
    with pytest.raises(ZppError, match=r"extra\.json"):
        plan_split(snapshot, 2)
    blobs.rename(secret.parent / "blobs")
    blobs.symlink_to(secret.parent / "blobs")
    with pytest.raises(ZppError, match="leads out"):
        plan_split(snapshot, 2)


def test_a_maze_of_links_ends(model: Path) -> None:
    for level in range(24):
        (model / f"level{level}").mkdir()
        for name in ("a", "b"):
            (model / f"level{level}" / name).symlink_to(f"../level{level + 1}")
    (model / "level24").mkdir()
    with pytest.raises(ZppError, match="more than") as refused:
        small_files(model)
    assert refused.value.exit_code == ExitCode.INVALID
