# SPDX-License-Identifier: Apache-2.0
"""Each fault in `docs/validation.md` is created, and must be detected with its stage and tensor; one list for both."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from checkpoints import content, write_safetensors
from damage import (
    EMBEDDING,
    NORM,
    UP,
    WEIGHTS,
    blank,
    claim,
    copy_into,
    drop_everywhere,
    edit,
    file_with,
    flip,
    forge_config,
    header_of,
    in_model,
    index,
    lengthen,
    link_out,
    model_at,
    move,
    refresh,
    renamed,
    replace_stage,
    rewrite,
    shift,
    stage,
    swap_layers,
    swap_names,
    unhashed,
    weights,
    with_header,
    without,
)

from zpptool.checkpoint.faults import SplitFaultCode as Code
from zpptool.checkpoint.header import MAX_HEADER_BYTES, read_header
from zpptool.checkpoint.smallfiles import STAGE_FILE
from zpptool.checkpoint.split import split_checkpoint
from zpptool.checkpoint.verify import find_target, verify_split

DOCS = Path(__file__).resolve().parents[2] / "docs/validation.md"


class Fault(NamedTuple):
    """One row of the table.

    Attributes:
        what: description of the fault, as in the table.
        build: creates it in a split directory.
        code: code of the expected fault.
        text: text that its message must contain.
        stage: the stage that it must name, or None.
        tensor: the tensor that it must name, or None.
        model: whether the fault can only be detected by comparison with the model.
    """

    what: str
    build: Callable[[Path], object]
    code: Code
    text: str
    stage: int | None = 1
    tensor: str | None = None
    model: bool = False


OTHER = ["0-2", "2-3", "3-6"]
SAME = ["0-2", "2-4", "4-6"]
NEW = "model.layers.2.mlp.up_proj.wieght"

FAULTS = [
    Fault("a tensor is missing from a weight file", lambda s: with_header(weights(s), lambda h: h.pop(UP) and None),
          Code.FILE, "leaves a gap", tensor=NORM),
    Fault("a tensor and its bytes are missing from a weight file", lambda s: write_safetensors(
        weights(s), {o.name: (o.dtype, o.shape) for o in read_header(weights(s)).tensors if o.name != UP}),
          Code.MISSING, f"lacks tensor {UP}", tensor=UP),
    Fault("a tensor is missing from file, index and manifest", drop_everywhere,
          Code.MISSING, "layer 2 has no mlp.up_proj.weight", None),
    Fault("the same, compared with the model", drop_everywhere,
          Code.MISSING, f"no stage holds tensor {UP}", None, UP, True),
    Fault("a weight file holds an extra tensor", lambda s: write_safetensors(
        weights(s), {o.name: (o.dtype, o.shape) for o in read_header(weights(s)).tensors} | {"more": ("U8", (1,))}),
          Code.EXTRA, "holds tensor more, which is not in the manifest", tensor="more"),
    Fault("a tensor is in two weight files of a stage", lambda s: shutil.copy(
        weights(s), stage(s) / "model-00002-of-00002.safetensors"),
          Code.EXTRA, f"model-00002-of-00002.safetensors holds tensor {UP}", tensor=UP),
    Fault("a tensor is twice in one header", lambda s: with_header(weights(s), lambda h: json.dumps(h).encode()[:-1]
          + b"," + json.dumps({UP: h[UP]}).encode()[1:]), Code.FILE, f"the name {UP} occurs twice", tensor=UP),
    Fault("a tensor is in two stages that need it once", lambda s: copy_into(s, UP, 0),
          Code.EXTRA, f"stage 0 holds tensor {UP}, which it does not need", 0, UP),
    Fault("a tensor is in the wrong stage", lambda s: move(s, UP, 0),
          Code.MISSING, f"stage 1 lacks tensor {UP}", 1, UP),
    Fault("a tensor is renamed", lambda s: with_header(weights(s), renamed(UP, NEW)),
          Code.EXTRA, f"holds tensor {NEW}", tensor=NEW),
    Fault("the old name of a renamed tensor is missing", lambda s: with_header(weights(s), renamed(UP, NEW)),
          Code.MISSING, f"lacks tensor {UP}", tensor=UP),
    Fault("one bit of a tensor is flipped", lambda s: flip(weights(s), UP),
          Code.BYTES, f"the bytes of tensor {UP} in {WEIGHTS} were changed", tensor=UP),
    Fault("a tensor's bytes are zeros (a hole)", lambda s: blank(weights(s), UP), Code.BYTES, UP, tensor=UP),
    Fault("two layers are swapped", swap_layers, Code.BYTES, f"the bytes of tensor {UP}", tensor=UP),
    Fault("two layers are swapped and the manifest is adapted", lambda s: (swap_layers(s), refresh(s)),
          Code.BYTES, "do not hold the content of the model", None),
    Fault("the same, compared with the model", lambda s: (swap_layers(s), refresh(s)),
          Code.BYTES, f"the bytes of tensor {UP} differ from the model's", 1, UP, True),
    Fault("a tensor has another dtype", lambda s: with_header(weights(s), lambda h: h[UP].update(dtype="F16")),
          Code.TENSOR, f"{UP} in {WEIGHTS} is F16", tensor=UP),
    Fault("a tensor has another shape", lambda s: with_header(weights(s), lambda h: h[UP].update(shape=[8, 16])),
          Code.TENSOR, "is BF16 [8, 16], not BF16 [16, 8]", tensor=UP),
    Fault("a weight file is truncated", lambda s: lengthen(weights(s), -1), Code.FILE, "truncated, first in tensor",
          tensor=NORM),
    Fault("a weight file is empty", lambda s: weights(s).write_bytes(b""), Code.FILE, "it has 0 bytes"),
    Fault("a weight file is padded", lambda s: lengthen(weights(s), 1), Code.FILE, "longer than its header states"),
    Fault("two tensors overlap", lambda s: with_header(weights(s), lambda h: shift(h, -2)),
          Code.FILE, "overlaps the tensor before it", tensor=NORM),
    Fault("a tensor's byte range is off by one", lambda s: with_header(weights(s), lambda h: shift(h, 1)),
          Code.FILE, "gap before it", tensor=NORM),
    Fault("a tensor's byte range does not fit its shape", lambda s: with_header(
        weights(s), lambda h: h[UP].update(shape=[16, 9])), Code.FILE, "does not fit the 256 bytes", tensor=UP),
    Fault("an unknown dtype", lambda s: with_header(weights(s), lambda h: h[UP].update(dtype="BF61")),
          Code.FILE, "has the dtype BF61", tensor=UP),
    Fault("a header that claims to be larger than the limit", lambda s: claim(weights(s), MAX_HEADER_BYTES + 1),
          Code.FILE, "more than the 100000000 that are allowed"),
    Fault("a header longer than its file", lambda s: claim(weights(s), 100_000), Code.FILE, "truncated"),
    Fault("a header that is not JSON", lambda s: with_header(weights(s), lambda h: b"{"), Code.FILE,
          "cannot be parsed as JSON"),
    Fault("a header that is nested too deeply", lambda s: with_header(
        weights(s), lambda h: b'{"a":' * 100_000 + b"1" + b"}" * 100_000), Code.FILE, "cannot be parsed as JSON"),
    Fault("whitespace or metadata of a header is changed", lambda s: with_header(
        weights(s), lambda h: h.update(__metadata__={"format": "tf"})), Code.FILE, "the header of"),
    Fault("a Git LFS pointer in place of a weight file", lambda s: weights(s).write_bytes(b"version https://git"),
          Code.FILE, "is a Git LFS pointer"),
    Fault("a weight file is missing", lambda s: weights(s).unlink(), Code.FILE, f"{WEIGHTS} is missing"),
    Fault("a directory or pipe in place of a weight file", lambda s: (weights(s).unlink(), os.mkfifo(weights(s))),
          Code.FILE, f"{WEIGHTS} is not a file"),
    Fault("a layer range is off by one", lambda s: [rewrite(d, lambda m: msgspec.structs.replace(
        m, partition=((0, 2), (2, 5), (4, 6)))) for d in s.iterdir()], Code.RANGES, "4", 2),
    Fault("a stage is missing", lambda s: shutil.rmtree(stage(s)), Code.STAGES, "stage 1 of 3 is missing"),
    Fault("a stage is present twice", lambda s: shutil.copytree(stage(s), stage(s, 3)),
          Code.STAGES, "stage 3 holds the manifest of stage 1", 3),
    Fault("two stage directories have swapped names", swap_names,
          Code.STAGES, "stage 0 holds the manifest of stage 1", 0),
    Fault("a stage of another split", lambda s: replace_stage(s, b"\0", OTHER),
          Code.STAGES, "belongs to another split than stage 0: partition"),
    Fault("a stage of another model of the same shape", lambda s: replace_stage(s, b"\1", SAME),
          Code.STAGES, "belongs to another split than stage 0: sample_digest"),
    Fault("the tied head is missing", lambda s: without(stage(s, 2), EMBEDDING),
          Code.MISSING, f"stage 2 lacks tensor {EMBEDDING}", 2, EMBEDDING),
    Fault("the tokenizer differs", lambda s: (stage(s) / "tokenizer.json").write_text("{}"),
          Code.FILE, "tokenizer.json was changed"),
    Fault("the config differs", lambda s: edit(stage(s) / "config.json", rope_theta=2.0),
          Code.FILE, "config.json was changed"),
    Fault("the config differs and the manifests are adapted", forge_config,
          Code.FILE, "config.json is not the one that the model was split with", None),
    Fault("a small file is missing", lambda s: (stage(s) / "chat_template.jinja").unlink(),
          Code.FILE, "chat_template.jinja is missing"),
    Fault("a file that the split did not write", lambda s: (stage(s) / "code/more.py").write_text(""),
          Code.FILE, "code/more.py is not in the manifest"),
    Fault("the index names the wrong file", lambda s: index(
        s, lambda m: m.update({UP: "model-00002-of-00002.safetensors"})),
          Code.FILE, f"maps tensor {UP} to model-00002-of-00002.safetensors; it is in {WEIGHTS}", tensor=UP),
    Fault("the index omits a tensor", lambda s: index(s, lambda m: m.pop(UP)),
          Code.FILE, f"does not name tensor {UP}", tensor=UP),
    Fault("the index names a tensor that does not exist", lambda s: index(s, lambda m: m.update(more=WEIGHTS)),
          Code.FILE, "names tensor more, which the stage does not hold", tensor="more"),
    Fault("a symbolic link leads out of the stage", lambda s: link_out(weights(s)),
          Code.FILE, f"{WEIGHTS} is a symbolic link out of the stage directory"),
    Fault("the manifest is missing", lambda s: (stage(s) / STAGE_FILE).unlink(), Code.MANIFEST, f"no {STAGE_FILE}"),
    Fault("a pipe or device in place of the manifest", lambda s: (
        (stage(s) / STAGE_FILE).unlink(), os.mkfifo(stage(s) / STAGE_FILE)), Code.MANIFEST, "is a FIFO"),
    Fault("the manifest is changed", lambda s: (stage(s) / STAGE_FILE).write_bytes(
        (stage(s) / STAGE_FILE).read_bytes().replace(b'"stage": 1', b'"stage": 0')), Code.MANIFEST, "was changed"),
    Fault("the manifest is of another version", lambda s: rewrite(
        stage(s), lambda m: msgspec.structs.replace(m, schema_version=99)), Code.MANIFEST, "schema version 99"),
    Fault("the manifest names a file outside the stage", lambda s: rewrite(stage(s), lambda m: msgspec.structs.replace(
        m, weight_files=(msgspec.structs.replace(m.weight_files[0], name="../x"),))), Code.MANIFEST, "outside"),
    Fault("the model has other bytes", lambda s: flip(file_with(in_model(s), UP), UP),
          Code.BYTES, f"the bytes of tensor {UP} differ from the model's", 1, UP, True),
    Fault("the model has another config", lambda s: edit(in_model(s) / "config.json", rope_theta=3.0),
          Code.SOURCE, "was not split from the model", 1, None, True),
    Fault("the model has another tokenizer", lambda s: (in_model(s) / "tokenizer.json").write_text("{}"),
          Code.FILE, "tokenizer.json differs from the model's", 1, None, True),
    Fault("one bit is flipped in a split without hashes", unhashed,
          Code.BYTES, f"the bytes of tensor {UP} differ from the model's", 1, UP, True),
]  # fmt: skip
UNREADABLE = Fault("a file is not readable", lambda s: weights(s).chmod(0), Code.FILE, "Permission denied")


@pytest.fixture
def split(tmp_path: Path) -> Path:
    split_checkpoint(model_at(tmp_path / "model"), tmp_path / "out", 3)
    return tmp_path / "out"


def test_the_split_before_any_fault_is_valid(split: Path) -> None:
    assert verify_split(find_target(split, in_model(split))).faults == []
    assert UP in header_of(weights(split))
    assert content(UP, "BF16", (16, 8)) in weights(split).read_bytes()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.what}{' (model)' if fault.model else ''}")
def test_a_fault_is_found_and_named(split: Path, fault: Fault) -> None:
    fault.build(split)
    faults = verify_split(find_target(split, in_model(split) if fault.model else None)).faults
    fitting = [found for found in faults if found.code is fault.code and fault.text in found.message]
    assert fitting, [f"{found.code}: {found.message}" for found in faults]
    assert any((found.stage, found.tensor) == (fault.stage, fault.tensor) for found in fitting), fitting
    if fault.stage is not None:
        assert any(f"stage {fault.stage}" in found.message for found in fitting)


def test_a_file_that_may_not_be_read_is_named(split: Path) -> None:
    """Root can read any file unless its capabilities are dropped."""
    UNREADABLE.build(split)
    command = [sys.executable, "-m", "zpptool", "validate", str(split), "--json"]
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root can read any file here: there is no setpriv")
        command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done.stderr
    faults = json.loads(done.stdout)["faults"]
    assert [(found["code"], found["stage"]) for found in faults] == [(UNREADABLE.code, 1)]
    assert UNREADABLE.text in faults[0]["message"]


def table() -> str:
    lines = ["| what is wrong | code | it names | needs `--model` |", "|---|---|---|---|"]
    for fault in [*FAULTS, UNREADABLE]:
        named = ["stage"] * (fault.stage is not None) + ["tensor"] * (fault.tensor is not None)
        lines.append(f"| {fault.what} | `{fault.code}` | {', '.join(named)} | {'yes' if fault.model else ''} |")
    return "\n".join(lines)


def test_the_docs_list_these_faults_and_no_other() -> None:
    head = table().partition("\n")[0]
    documented = takewhile(lambda line: line.startswith("|"), (head + DOCS.read_text().partition(head)[2]).splitlines())
    assert "\n".join(documented) == table(), f"put this into {DOCS.name}:\n{table()}"
