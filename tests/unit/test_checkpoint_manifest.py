# SPDX-License-Identifier: Apache-2.0
"""An untrusted manifest with file names outside its directory is refused before any file is touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from checkpoints import write_checkpoint

from zpptool.checkpoint.join import plan_join, write_join
from zpptool.checkpoint.manifest import Manifest, load_manifest
from zpptool.checkpoint.smallfiles import STAGE_FILE
from zpptool.checkpoint.split import split_checkpoint
from zpptool.checkpoint.verify import find_target, verify_split
from zpptool.errors import ExitCode, ZppError

OUTSIDE = ["../victim/precious.txt", "VICTIM", "..", ".", "", "a/b.safetensors", "a\0b", "a\nb", "x" * 300]


@pytest.fixture
def split(tmp_path: Path) -> Path:
    source = write_checkpoint(tmp_path / "model")
    split_checkpoint(source, tmp_path / "split", 2)
    return tmp_path / "split"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/precious.txt").write_text("precious")
    return tmp_path / "victim/precious.txt"


def forge(split: Path, change: Callable[[Manifest], dict[str, Any]]) -> None:
    """Rewrite every manifest of a split, with a matching digest."""
    for stage in sorted(split.glob("stage_*")):
        manifest = load_manifest(stage)
        (stage / STAGE_FILE).write_bytes(msgspec.structs.replace(manifest, **change(manifest)).to_bytes())


def sources(name: str) -> Callable[[Manifest], dict[str, Any]]:
    def change(manifest: Manifest) -> dict[str, Any]:
        return {"weight_files": tuple(msgspec.structs.replace(file, source=name) for file in manifest.weight_files)}

    return change


def weights(name: str) -> Callable[[Manifest], dict[str, Any]]:
    def change(manifest: Manifest) -> dict[str, Any]:
        return {
            "weight_files": tuple(msgspec.structs.replace(file, name=name) for file in manifest.weight_files),
            "tensors": tuple(msgspec.structs.replace(tensor, file=name) for tensor in manifest.tensors),
        }

    return change


def small(name: str) -> Callable[[Manifest], dict[str, Any]]:
    def change(manifest: Manifest) -> dict[str, Any]:
        first, *others = manifest.small_files
        return {"small_files": (msgspec.structs.replace(first, path=name), *others)}

    return change


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in (sources, weights, small) for name in OUTSIDE if kind is weights or "/b" not in name],
)
def test_a_name_outside_is_refused_by_join_and_by_validate(
    split: Path, victim: Path, tmp_path: Path, kind: Callable[[str], Callable[[Manifest], dict[str, Any]]], name: str
) -> None:
    forge(split, kind(str(victim) if name == "VICTIM" else name))
    with pytest.raises(ZppError) as refused:
        write_join(plan_join(split), tmp_path / "joined")
    assert refused.value.exit_code == ExitCode.INVALID
    assert not verify_split(find_target(split)).valid
    assert victim.read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"model", "split", "victim"}


@pytest.mark.parametrize("name", ["config.json", STAGE_FILE, "code"])
def test_a_source_file_that_is_another_file_of_the_checkpoint_is_refused(split: Path, name: str) -> None:
    forge(split, sources(name))
    with pytest.raises(ZppError, match="twice") as refused:
        plan_join(split)
    assert refused.value.exit_code == ExitCode.INVALID


def test_a_tensor_in_a_file_that_the_manifest_does_not_have_is_refused(split: Path) -> None:
    forge(split, lambda own: {"tensors": tuple(msgspec.structs.replace(t, file="x.safetensors") for t in own.tensors)})
    with pytest.raises(ZppError, match=r"x\.safetensors") as refused:
        plan_join(split)
    assert refused.value.exit_code == ExitCode.INVALID
    assert any("x.safetensors" in fault.message for fault in verify_split(find_target(split)).faults)
