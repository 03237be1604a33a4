# SPDX-License-Identifier: Apache-2.0
"""The coverage report tries the classes that it lists, and detects a wrong structure."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SCRIPTS = ROOT / "scripts"
sys.path.insert(0, str(SCRIPTS))

from families.case import disagreement, model_classes  # noqa: E402
from families.tiny import tiny_config  # noqa: E402
from families.truth import AFTER, BEFORE, needed_at, observe, stamp  # noqa: E402

from zpptool.checkpoint.index import read_index  # noqa: E402
from zpptool.checkpoint.roles import AFTER as AFTER_THE_LAYERS  # noqa: E402
from zpptool.checkpoint.roles import BEFORE as BEFORE_THE_LAYERS  # noqa: E402
from zpptool.checkpoint.structure import infer_structure  # noqa: E402

pytestmark = pytest.mark.torch

EXPECTED = {
    "LlamaForCausalLM": ("right", "identical", "model.layers"),
    "GPT2LMHeadModel": ("right", "identical", "transformer.h"),
    "MixtralForCausalLM": ("right", "identical", "model.layers"),
    "Zamba2ForCausalLM": ("right", "refused", "model.layers"),
    "Gemma3nForCausalLM": ("right", "refused", "model.layers"),
    "Qwen2VLForConditionalGeneration": ("right", "identical", "model.layers"),
    "LlavaForConditionalGeneration": ("right", "identical", "language_model.model.layers"),
    "HrmTextForCausalLM": ("refused", "", ""),
    "UdopForConditionalGeneration": ("refused", "", ""),
}


def test_some_classes_have_the_expected_outcomes(tmp_path: Path) -> None:
    results, table = tmp_path / "results.jsonl", tmp_path / "coverage.md"
    command = [sys.executable, SCRIPTS / "coverage_report.py", "--only", ",".join(EXPECTED)]
    command += ["--results", results, "--table", table, "--records", tmp_path]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert ran.returncode == 0, ran.stderr
    outcomes = [json.loads(line) for line in results.read_text().splitlines()]
    found = {outcome["name"]: (outcome["structure"], outcome["embedded"], outcome["layers"]) for outcome in outcomes}
    assert found == EXPECTED
    assert all(outcome["reason"] for outcome in outcomes if "refused" in outcome.values())
    assert "| GPT2LMHeadModel | gpt2 | `transformer.h` | right | identical | " in table.read_text()


def test_a_second_run_repeats_nothing(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    results.write_text(json.dumps({"name": "LlamaForCausalLM", "family": "llama", "structure": "wrong"}) + "\n")
    command = [sys.executable, SCRIPTS / "coverage_report.py", "--only", "LlamaForCausalLM", "--no-table"]
    ran = subprocess.run([*command, "--results", results], capture_output=True, text=True, check=False, timeout=110)
    assert ran.returncode == 1
    assert "wrong: LlamaForCausalLM" in ran.stderr


def test_a_wrong_structure_is_detected_by_what_the_model_reads(tmp_path: Path) -> None:
    model_class, config_class = model_classes({"MixtralForCausalLM"})["MixtralForCausalLM"]
    model = model_class(tiny_config(config_class)).float().eval()
    truth = observe(model)
    stamp(model, truth)
    model.save_pretrained(tmp_path)
    needed = needed_at(tmp_path, truth)
    assert truth.watched
    assert needed["model.embed_tokens.weight"] == {BEFORE}
    assert needed["lm_head.weight"] == {AFTER}
    experts = {place for name, places in needed.items() if ".layers.3." in name for place in places or ()}
    assert experts == {3}
    structure = infer_structure(read_index(tmp_path))
    assert disagreement(structure, truth, tmp_path) == ""
    for name, role in (("model.norm.weight", BEFORE_THE_LAYERS), ("model.embed_tokens.weight", AFTER_THE_LAYERS)):
        wrong = replace(structure, roles={**structure.roles, name: role})
        assert name in disagreement(wrong, truth, tmp_path)
    moved = {name: layer if layer != 2 else 3 for name, layer in structure.decoder.layer_of.items()}
    wrong = replace(structure, decoder=replace(structure.decoder, layer_of=moved))
    assert ".layers.2." in disagreement(wrong, truth, tmp_path)
    wrong = replace(structure, decoder=replace(structure.decoder, num_layers=5))
    assert disagreement(wrong, truth, tmp_path) == "5 layers inferred, 6 there"
