# SPDX-License-Identifier: Apache-2.0
"""What the witness says of a trial is in the JSON report, JUnit and the page. Weights are held against the manifest."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from checkpoints import llama, llama_config, split_into, write_checkpoint
from records import CUT, pipeline, record
from test_parity_report import SPECS, result

from zpptool.checkpoint.manifest import load_manifest
from zpptool.checkpoint.stage_tensors import model_digest
from zpptool.errors import ExitCode, ZppError
from zpptool.parity.page import page
from zpptool.parity.report import junit, payload, summary
from zpptool.parity.witnessed import WitnessedTrial, published_record, wrong_weights
from zpptool.witness.compare import compare
from zpptool.witness.record import REFERENCE, Computed, Record, RecordWriter, Weight
from zpptool.witness.taps import LAYER_OUT, Tap

SAME = [result("one <b>", (1, 2), (1, 2))]
CAUSE = {
    "kind": "weights", "cause": "layer 2's weight <x> has one flipped bit: sign bit", "what": "other bits", "stage": 1,
    "layer": 2, "tap": "mlp.up_proj", "request": "7", "step": 1, "position": 5, "rows": 1, "tensor": "<x>", "prompt": 0,
    "element": {
        "index": [1, 2], "expected_bits": "0x1", "got_bits": "0x2", "expected": 1.0, "got": 2.0, "ulp": 1,
        "absolute": 1.0, "count": 1,
    },
    "transplants": [{"part": "weights", "differs": True, "heals": True}],
}  # fmt: skip


def trial(changes: dict[tuple[int, int, Tap, int], int] | None = None) -> WitnessedTrial:
    return WitnessedTrial("layers", compare(record(REFERENCE), pipeline(changes)), [], {7: 0, 8: 1})


WRONG = {(7, 1, Tap(CUT, LAYER_OUT), 0): 1}


def test_equal_tokens_with_other_bits_have_a_verdict_of_their_own() -> None:
    clean, wrong = payload(SPECS, SAME, 1.0, trial()), payload(SPECS, SAME, 1.0, trial(WRONG), CAUSE)
    assert (clean["verdict"], wrong["verdict"]) == ("identical", "same tokens, other bits")
    assert json.loads(json.dumps(wrong))["cause"] == CAUSE
    first = wrong["witness"]["first_differences"][0]
    assert (first["stage"], first["layer"], first["tap"], first["prompt"], first["step"]) == (1, CUT, "out", 0, 1)
    assert [cell["layer"] for cell in wrong["witness"]["map"] if cell["differing"]] == [CUT]
    other = payload(SPECS, [result("one", (1, 2), (1, 3))], 1.0, trial(WRONG))
    assert other["verdict"] == "different"


def test_junit_has_a_case_for_the_bits() -> None:
    for changes, failures in ((None, "0"), (WRONG, "1")):
        suite = ElementTree.fromstring(junit(payload(SPECS, SAME, 1.0, trial(changes))))
        assert (suite.attrib["tests"], suite.attrib["failures"]) == ("2", failures)


def test_the_summary_says_where_and_why() -> None:
    assert summary(payload(SPECS, SAME, 1.0, trial())).endswith("hashes of level layers are equal")
    assert summary(payload(SPECS, SAME, 1.0, trial(WRONG))) == (
        "stage 1, layer 2, out (prompt 0, step 1, position 5): other bits"
    )
    assert "sign bit (weights)" in summary(payload(SPECS, SAME, 1.0, trial(WRONG), CAUSE))
    heavy = replace(trial(), wrong_weights=[(1, "a.weight", "the manifest")])
    assert payload(SPECS, SAME, 1.0, heavy)["verdict"] == "same tokens, other bits"
    assert "a.weight in memory is not that of the manifest" in summary(payload(SPECS, SAME, 1.0, heavy))
    foreign = WitnessedTrial("layers", compare(record(REFERENCE), [record(0, threads=9), record(1)]))
    assert "threads" in summary(payload(SPECS, SAME, 1.0, foreign))


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_is_whole_by_itself_and_shows_the_map() -> None:
    text = page(payload(SPECS, SAME, 1.0, trial(WRONG), CAUSE))
    parsed = _Page()
    parsed.feed(text)
    assert parsed.links == []
    assert "script" not in parsed.tags
    assert "<b>one" not in text
    assert "&lt;x&gt;" in text
    assert text.count('class="all first"') + text.count('class="some first"') == 1
    assert "same tokens, other bits" in text
    assert 'verdict good">identical' in page(payload(SPECS, SAME, 1.0, trial()))


def sketched(made: Record, factor: float) -> Record:
    """The record with the sketch of one tap in each step."""
    numbers = struct.pack("<8f", *(factor * (place + 1) for place in range(8)))
    place = next(place for place, tap in enumerate(made.steps[0].layout.taps) if tap.name == LAYER_OUT)
    changed = [
        Computed(
            msgspec.structs.replace(each.step, sketches=numbers),
            msgspec.structs.replace(each.layout, sketched=(place,)),
        )
        for each in made.steps
    ]
    return replace(made, steps=changed)


@pytest.mark.parametrize(("factor", "verdict"), [(1.00001, "identical"), (1.3, "same tokens, other bits")])
def test_a_record_of_another_machine_is_compared_by_its_sketches(factor: float, verdict: str) -> None:
    stages = [sketched(each, 1.0) for each in pipeline()]
    own = compare(record(REFERENCE), stages)
    elsewhere = compare(sketched(record(REFERENCE, processor="another"), factor), stages)
    outcome = payload(SPECS, SAME, 1.0, WitnessedTrial("layers", own, [], {}, elsewhere))
    assert outcome["verdict"] == verdict
    reference = outcome["witness"]["reference"]
    assert reference["verdict"] == ("within tolerance" if factor < 1.1 else "different")
    assert reference["not_compared"] == {"stage 0": ["processor"], "stage 1": ["processor"]}
    assert (verdict == "identical") == ("given record" not in summary(outcome))


def test_a_record_of_another_model_or_of_a_stage_is_refused(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "model", llama(4), llama_config(4))
    for stage, words in ((REFERENCE, "is not a record of the model"), (1, "is the record of stage 1")):
        RecordWriter(tmp_path / "a.zppw", record(stage).header).close()
        with pytest.raises(ZppError, match=words) as refused:
            published_record(tmp_path / "a.zppw", model)
        assert refused.value.exit_code is ExitCode.INVALID
    with pytest.raises(ZppError, match="cannot be read"):
        published_record(tmp_path / "none.zppw", model)
    header = msgspec.structs.replace(record(REFERENCE).header, model=model_digest(model))
    RecordWriter(tmp_path / "a.zppw", header).close()
    assert published_record(tmp_path / "a.zppw", model).header == header


@pytest.fixture
def stages(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> list[Path]:
    model = write_checkpoint(tmp_path / "model", llama(4), llama_config(4))
    out = split_into(tmp_path_factory, model, "0-2", "2-4")
    return [out / "stage_0", out / "stage_1"]


def test_weights_in_memory_are_held_against_the_manifest_and_the_unsplit_model(stages: list[Path]) -> None:
    def loaded(directory: Path, stage: int) -> Record:
        made = record(stage)
        names = {"BF16": "bfloat16", "F32": "float32"}
        for entry in load_manifest(directory).tensors:
            made.weights[entry.name] = Weight(entry.name, names[entry.dtype], tuple(entry.shape), entry.blake3)
        return made

    records = [loaded(directory, stage) for stage, directory in enumerate(stages)]
    whole = record(REFERENCE)
    assert wrong_weights(whole, records, stages) == []
    name = next(iter(records[1].weights))
    right = records[1].weights[name]
    records[1].weights[name] = Weight(name, right.dtype, right.shape, "0" * 64)
    assert wrong_weights(whole, records, stages) == [(1, name, "the manifest")]
    whole.weights[name] = right
    assert wrong_weights(whole, records, stages) == [(1, name, "the unsplit model")]
    records[1].weights[name] = Weight(name, "float64", right.shape, "0" * 64)
    assert wrong_weights(whole, records, stages) == [], "a conversion, which neither shows"
