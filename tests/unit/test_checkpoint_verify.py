# SPDX-License-Identifier: Apache-2.0
"""Verification of a split: a valid one passes, and each fault is detected and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from checkpoints import content, llama, llama_config, write_checkpoint, write_safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zpptool.checkpoint.digest import digest_file
from zpptool.checkpoint.faults import SplitFault, SplitFaultCode
from zpptool.checkpoint.manifest import Manifest, SmallFile, load_manifest
from zpptool.checkpoint.smallfiles import STAGE_FILE
from zpptool.checkpoint.split import split_checkpoint
from zpptool.checkpoint.verify import find_target, verify_split
from zpptool.errors import ZppError

UP = "model.layers.2.mlp.up_proj.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", llama(tied=True))


@pytest.fixture
def split(tmp_path: Path, model: Path) -> Path:
    split_checkpoint(model, tmp_path / "out", 3)
    return tmp_path / "out"


def faults_of(directory: Path, model: Path | None = None) -> list[SplitFault]:
    return verify_split(find_target(directory, model)).faults


def found(directory: Path, code: SplitFaultCode, *texts: str, model: Path | None = None) -> SplitFault:
    """Return the fault of this kind whose message has all these texts; fail if there is none."""
    faults = faults_of(directory, model)
    fitting = [fault for fault in faults if fault.code is code and all(text in fault.message for text in texts)]
    assert fitting, faults
    return fitting[0]


def rewrite(stage: Path, change: Callable[[Manifest], Manifest]) -> None:
    """Change a manifest and update its own digest, as a forger could."""
    changed = change(load_manifest(stage))
    (stage / STAGE_FILE).write_bytes(changed.to_bytes())


def without(manifest: Manifest, name: str) -> Manifest:
    remaining = tuple(entry for entry in manifest.tensors if entry.name != name)
    return msgspec.structs.replace(manifest, tensors=remaining)


def kinds_in(stage: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {entry.name: (entry.dtype, entry.shape) for entry in load_manifest(stage).tensors}


def test_a_valid_split_is_accepted(split: Path, model: Path) -> None:
    target = find_target(split, model)
    read: list[int] = []
    verdict = verify_split(target, read.append)
    assert verdict.valid
    assert verdict.faults == []
    assert list(verdict.manifests) == [0, 1, 2]
    assert target.whole
    assert 0 < sum(read) <= target.nbytes


def test_one_stage_is_verified_alone(split: Path, model: Path) -> None:
    target = find_target(split / "stage_1", model)
    assert not target.whole
    assert verify_split(target).valid
    shutil.rmtree(split / "stage_0")
    assert verify_split(target).valid
    assert found(split, SplitFaultCode.STAGES, "stage 0 of 3 is missing").stage == 0


@pytest.mark.parametrize("text", ["is not a directory", "holds no stage_0"])
def test_what_is_no_split_is_refused(tmp_path: Path, model: Path, text: str) -> None:
    with pytest.raises(ZppError, match=text):
        find_target(tmp_path / "none" if "not a" in text else model)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_change_of_any_byte_is_found(split: Path, data: st.DataObject) -> None:
    files = sorted(path for path in split.rglob("*") if path.is_file())
    file = data.draw(st.sampled_from(files))
    before = file.read_bytes()
    place = data.draw(st.integers(0, len(before) - 1))
    changed = bytearray(before)
    changed[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(changed)
    try:
        stage = int(file.relative_to(split).parts[0].removeprefix("stage_"))
        assert any(fault.stage == stage for fault in faults_of(split))
    finally:
        file.write_bytes(before)


def test_a_flipped_bit_is_named_by_stage_and_tensor(split: Path) -> None:
    file = split / "stage_1" / "model.safetensors"
    own = content(UP, *llama()[UP])
    place = file.read_bytes().index(own)
    with file.open("r+b") as stream:
        stream.seek(place + 5)
        stream.write(bytes([own[5] ^ 1]))
    (fault,) = faults_of(split)
    assert (fault.code, fault.stage, fault.tensor) == (SplitFaultCode.BYTES, 1, UP)


def test_swapped_layers_are_found(split: Path) -> None:
    stage = split / "stage_1"
    kinds = kinds_in(stage)
    renamed = {name.replace(".1.", ".x.").replace(".2.", ".1.").replace(".x.", ".2."): k for name, k in kinds.items()}
    raw = (stage / "model.safetensors").read_bytes()
    for name in kinds:
        raw = raw.replace(name.encode(), b"#" + name.encode()[1:])
    for old, new in zip(kinds, renamed, strict=True):
        raw = raw.replace(b"#" + old.encode()[1:], new.encode())
    (stage / "model.safetensors").write_bytes(raw)
    assert found(split, SplitFaultCode.BYTES, UP).tensor == UP


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        (lambda k: k.pop(UP), SplitFaultCode.MISSING, f"lacks tensor {UP}"),
        (lambda k: k.update({"more": ("U8", (1,))}), SplitFaultCode.EXTRA, "holds tensor more"),
        (lambda k: k.update({UP: ("F16", k[UP][1])}), SplitFaultCode.TENSOR, f"{UP} in model.safetensors is F16"),
        (lambda k: k.update({UP: (k[UP][0], k[UP][1][::-1])}), SplitFaultCode.TENSOR, "is BF16 [8, 16], not"),
    ],
)
def test_a_file_that_differs_from_its_manifest(split: Path, change: Callable, code: SplitFaultCode, text: str) -> None:
    kinds = kinds_in(split / "stage_1")
    change(kinds)
    write_safetensors(split / "stage_1" / "model.safetensors", kinds, {"format": "pt"})
    assert found(split, code, text).stage == 1


@pytest.mark.parametrize("by", [-1, 1])
def test_a_file_of_another_length(split: Path, by: int) -> None:
    file = split / "stage_2" / "model.safetensors"
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size + by)
    assert found(split, SplitFaultCode.FILE, "truncated" if by < 0 else "longer than").stage == 2


def test_files_that_are_missing_changed_or_too_many(split: Path) -> None:
    (split / "stage_0" / "model.safetensors").unlink()
    (split / "stage_1" / "tokenizer.json").unlink()
    (split / "stage_1" / "code" / "modeling.py").write_text("# other\n")
    (split / "stage_2" / "more.safetensors").write_text("")
    assert found(split, SplitFaultCode.FILE, "model.safetensors is missing").stage == 0
    assert found(split, SplitFaultCode.FILE, "tokenizer.json is missing").stage == 1
    assert found(split, SplitFaultCode.FILE, "code/modeling.py was changed").stage == 1
    assert found(split, SplitFaultCode.FILE, "more.safetensors is not in the manifest").stage == 2


def test_a_config_that_was_changed_with_its_hash(split: Path) -> None:
    for stage in split.iterdir():
        path = stage / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "rope_theta": 5.0}))
        forged = SmallFile("config.json", path.stat().st_size, digest_file(path))
        small = tuple(file for file in load_manifest(stage).small_files if file.path != "config.json")
        rewrite(stage, lambda m, files=(*small, forged): msgspec.structs.replace(m, small_files=files))
    assert found(split, SplitFaultCode.FILE, "config.json is not the one")


def test_a_tensor_missing_from_file_and_manifest(split: Path) -> None:
    stage = split / "stage_1"
    kinds = kinds_in(stage)
    kinds.pop(UP)
    write_safetensors(stage / "model.safetensors", kinds, {"format": "pt"})
    rewrite(stage, lambda manifest: without(manifest, UP))
    assert found(split, SplitFaultCode.MISSING, "do not hold the model's tensors")


def test_a_missing_tied_head(split: Path, model: Path) -> None:
    name = "model.embed_tokens.weight"
    rewrite(split / "stage_2", lambda manifest: without(manifest, name))
    assert found(split, SplitFaultCode.MISSING, f"stage 2 lacks tensor {name}").tensor == name


def test_a_tensor_in_the_wrong_stage(split: Path) -> None:
    moved = next(entry for entry in load_manifest(split / "stage_1").tensors if entry.name == UP)
    rewrite(split / "stage_1", lambda manifest: without(manifest, UP))
    rewrite(split / "stage_0", lambda m: msgspec.structs.replace(m, tensors=(*m.tensors, moved)))
    assert found(split, SplitFaultCode.EXTRA, f"stage 0 holds tensor {UP}").stage == 0
    assert found(split, SplitFaultCode.MISSING, f"stage 1 lacks tensor {UP}").stage == 1


@pytest.mark.parametrize("partition", [((0, 1), (1, 3), (3, 5)), ((0, 1), (2, 3), (3, 4)), ((0, 2), (1, 3), (3, 4))])
def test_ranges_that_are_off_by_one(split: Path, partition: tuple) -> None:
    for stage in split.iterdir():
        rewrite(stage, lambda manifest: msgspec.structs.replace(manifest, partition=partition))
    assert found(split, SplitFaultCode.RANGES, "stage")


def test_a_stage_of_another_split(tmp_path: Path, split: Path, model: Path) -> None:
    other = split_checkpoint(model, tmp_path / "other", ranges=["0-2", "2-3", "3-4"])
    shutil.rmtree(split / "stage_1")
    shutil.copytree(other[1], split / "stage_1")
    assert found(split, SplitFaultCode.STAGES, "stage 1 belongs to another split", "partition").stage == 1


def test_a_stage_twice_or_too_many(split: Path) -> None:
    shutil.copytree(split / "stage_1", split / "stage_3")
    assert found(split, SplitFaultCode.STAGES, "stage 3 holds the manifest of stage 1").stage == 3
    assert found(split, SplitFaultCode.STAGES, "beyond the 3 stages").stage == 3


def test_a_manifest_of_another_version_or_none(split: Path) -> None:
    (split / "stage_0" / STAGE_FILE).unlink()
    rewrite(split / "stage_1", lambda manifest: msgspec.structs.replace(manifest, schema_version=99))
    assert found(split, SplitFaultCode.MANIFEST, STAGE_FILE).stage == 0
    assert found(split, SplitFaultCode.MANIFEST, "schema version 99").stage == 1


def test_a_manifest_that_points_out_of_its_directory(split: Path) -> None:
    def forge(manifest: Manifest) -> Manifest:
        (file,) = manifest.weight_files
        return msgspec.structs.replace(manifest, weight_files=(msgspec.structs.replace(file, name="../x"),))

    rewrite(split / "stage_1", forge)
    assert found(split, SplitFaultCode.MANIFEST, "outside the stage directory").stage == 1


# Comparison with the source.


def test_another_model_is_distinguished_from_the_source(tmp_path: Path, split: Path) -> None:
    other = write_checkpoint(tmp_path / "other", llama(), llama_config(rope_theta=3.0))
    assert found(split, SplitFaultCode.SOURCE, "stage 0", model=other).stage == 0
    assert found(split, SplitFaultCode.FILE, "config.json differs", model=other)
    assert found(split, SplitFaultCode.MISSING, "no stage holds tensor lm_head.weight", model=other)


def test_a_source_with_other_bytes(split: Path, model: Path) -> None:
    file = model / "model.safetensors"
    raw = file.read_bytes()
    own = content(UP, *llama()[UP])
    file.write_bytes(raw.replace(own, own[::-1]))
    (fault,) = faults_of(split, model)
    assert (fault.code, fault.stage, fault.tensor) == (SplitFaultCode.BYTES, 1, UP)


def test_a_source_with_another_tokenizer(split: Path, model: Path) -> None:
    (model / "tokenizer.json").write_text("{}")
    (model / "chat_template.jinja").unlink()
    (model / "added.json").write_text("{}")
    messages = [fault.message for fault in faults_of(split, model)]
    for stage in range(3):
        assert f"stage {stage}: tokenizer.json differs from the model's" in messages
        assert f"stage {stage}: chat_template.jinja is not in the model" in messages
        assert f"stage {stage}: added.json of the model is missing" in messages
