# SPDX-License-Identifier: Apache-2.0
"""`zpptool validate-ranges` as a user runs it, the prior art's command lines included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import VOCAB, write_checkpoint

FOUR = ["0-8", "8-16", "16-24", "24-32"]


@pytest.fixture
def model(tmp_path: Path):
    """A directory that holds a config.json and nothing else."""

    def write(config: Any) -> Path:
        (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
        return tmp_path

    return write


@pytest.mark.parametrize(
    "words",
    [
        ["--ranges", *FOUR],
        ["--ranges", ",".join(FOUR)],
        ["--ranges", " ".join(FOUR)],
        FOUR,
        [word for text in FOUR for word in ("--ranges", text)],
        ["--ranges", "[0-8]", "8:16", "16-24", "24-32"],
    ],
)
def test_ranges_may_be_typed_in_any_of_the_usual_ways(zpptool, words: list[str]) -> None:
    ran = zpptool("validate-ranges", "--total-layers", "32", *words, "--json")
    assert ran.code == 0
    assert ran.json == {
        "schema_version": 1,
        "valid": True,
        "total_layers": 32,
        "ranges": [[0, 8], [8, 16], [16, 24], [24, 32]],
        "faults": [],
    }


def test_the_prior_arts_line_with_the_number_of_layers(zpptool) -> None:
    ran = zpptool("validate-ranges", "--total-layers", "32", "--ranges", *FOUR)
    assert ran.code == 0
    assert ran.out.rstrip().endswith("\nvalid")
    assert "24-32" in ran.out


def test_the_prior_arts_line_with_a_model_and_a_count(zpptool, model) -> None:
    ran = zpptool("validate-ranges", "--model", model({"num_hidden_layers": 30}), "--num-stages", "4", "--json")
    assert ran.code == 0
    assert ran.json["ranges"] == [[0, 7], [7, 15], [15, 23], [23, 30]]


def test_the_prior_arts_line_with_a_model_and_ranges(zpptool, model) -> None:
    directory = model({"num_hidden_layers": 32})
    ran = zpptool("validate-ranges", "--model", directory, "--ranges", "0-10", "10-20", "20-32", "--json")
    assert (ran.code, ran.json["valid"]) == (0, True)


def test_every_fault_is_shown_to_people_and_to_scripts(zpptool) -> None:
    words = ("validate-ranges", "--total-layers", "32", "--num-stages", "4", "--ranges", "0-8", "x", "6-16", "20-40")
    scripted = zpptool(*words, "--json")
    assert scripted.code == 3
    assert not scripted.err
    assert scripted.json["valid"] is False
    faults = scripted.json["faults"]
    assert [(fault["code"], fault["stage"]) for fault in faults] == [
        ("format", 1), ("bounds", 3), ("overlap", 2), ("gap", 3),
    ]  # fmt: skip
    shown = zpptool(*words)
    assert shown.code == 3
    for fault in faults:
        assert f"{fault['code']}: {fault['message']}" in shown.out
    assert shown.out.rstrip().endswith("\ninvalid")


def test_the_number_of_stages_is_checked_against_the_ranges(zpptool) -> None:
    ran = zpptool("validate-ranges", "--total-layers", "32", "--num-stages", "3", *FOUR, "--json")
    assert ran.code == 3
    assert [fault["code"] for fault in ran.json["faults"]] == ["coverage"]


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 12},
        {"n_layer": 12},
        {"num_layers": 12},
        {"n_layers": 12},
        {"text_config": {"num_hidden_layers": 12}, "vision_config": {"num_hidden_layers": 24}},
        {"vision_config": {"num_hidden_layers": 24}, "language_config": {"num_hidden_layers": 12}},
        {"vision_config": {"num_hidden_layers": 24}, "llm_config": {"num_hidden_layers": 12}},
        {"audio_config": {"num_hidden_layers": 9}, "thinker_config": {"text_config": {"num_hidden_layers": 12}}},
    ],
)
def test_the_number_of_layers_is_read_under_any_of_the_usual_names(zpptool, model, config: dict[str, Any]) -> None:
    ran = zpptool("validate-ranges", "--model", model(config), "--num-stages", "1", "--json")
    assert ran.json["total_layers"] == 12


@pytest.mark.parametrize("config", ["{", "[]", "{}", '"text"', "\xff\xfe", '{"num_hidden_layers": "many"}'])
def test_a_config_without_a_number_of_layers_is_refused_in_one_sentence(zpptool, model, config: str) -> None:
    ran = zpptool("validate-ranges", "--model", model(config), "--num-stages", "2")
    assert ran.code == 3
    assert ran.err.startswith("error: ")
    assert "config.json" in ran.err
    assert "Traceback" not in ran.err


def test_a_missing_model_is_refused(zpptool, tmp_path: Path) -> None:
    for place in (tmp_path / "missing", tmp_path):
        ran = zpptool("validate-ranges", "--model", place, "--num-stages", "2")
        assert ran.code == 3
        assert str(place) in ran.err


def test_more_stages_than_layers_is_refused_in_one_sentence(zpptool) -> None:
    ran = zpptool("validate-ranges", "--total-layers", "3", "--num-stages", "5", "--json")
    assert ran.code == 3
    assert "5 stages are more than the model's 3 layers" in ran.json["error"]["message"]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--total-layers", "32"],
        ["--ranges", "0-8"],
        ["--num-stages", "2"],
        ["--total-layers", "0", "--num-stages", "1"],
        ["--total-layers", "many", "0-8"],
    ],
)
def test_missing_inputs_are_a_usage_error(zpptool, words: list[str]) -> None:
    ran = zpptool("validate-ranges", *words)
    assert ran.code == 2
    assert ran.err


def test_a_number_of_layers_that_is_not_the_models_is_a_usage_error(zpptool, model) -> None:
    directory = model({"num_hidden_layers": 30})
    ran = zpptool("validate-ranges", "--model", directory, "--total-layers", "32", "0-32")
    assert ran.code == 2
    assert "32" in ran.err
    assert "30" in ran.err


def test_tensor_names_give_the_layers_where_the_config_does_not(zpptool, tmp_path: Path) -> None:
    """As published: LLaVA-1.5's config.json has no count."""
    directory = write_checkpoint(tmp_path / "model", config={"text_config": {"vocab_size": VOCAB}})
    ran = zpptool("validate-ranges", "0-1", "1-4", "--model", directory, "--json")
    assert (ran.code, ran.json["total_layers"]) == (0, 4)
