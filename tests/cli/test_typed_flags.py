# SPDX-License-Identifier: Apache-2.0
"""vLLM's flags need no `--` before them, and its own YAML file is read: words are sorted before they are parsed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import write_checkpoint
from commands import typed_here
from conftest import Ran

from zpptool.cli.typed_flags import SortedWords, names_a_model, sort_words, words_of_config
from zpptool.config.engine_flags import FlagKind
from zpptool.config.plan import load_plan_file
from zpptool.errors import ExitCode, ZppError

OWN = {"--num-stages": True, "--dtype": True, "--model": True, "--json": False, "--prompt": True, "--port": True}
FLAGS = {
    "--max-model-len": FlagKind.ONE, "--enforce-eager": FlagKind.NONE, "--allowed-origins": FlagKind.MANY,
    "--dtype": FlagKind.ONE, "--no-enable-prefix-caching": FlagKind.NONE, "--enable-prefix-caching": FlagKind.NONE,
    "--hf-overrides": FlagKind.ONE, "-dcp": FlagKind.ONE, "-q": FlagKind.ONE,
}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "engine"),
    [
        ("MODEL --num-stages 2 --max-model-len 4096 --json", "--max-model-len 4096"),
        ("MODEL --max_model_len=4096 --dtype auto", "--max_model_len=4096"),
        ("--enforce-eager MODEL --num-stages 2", "--enforce-eager"),
        ("MODEL --allowed-origins a b --num-stages 2", "--allowed-origins a b"),
        ("MODEL --prompt --max-model-len --json", ""),
        ("MODEL --hf-overrides.rope 1 --unknown-flag 3", "--hf-overrides.rope 1"),
        ("MODEL -dcp 1", "-dcp 1"),
        ("MODEL -q", ""),
    ],
)
def test_words_are_sorted(words: str, engine: str) -> None:
    found = sort_words(words.split(), OWN, FLAGS)
    assert found.engine == engine.split()
    assert sorted([*found.own, *found.engine]) == sorted(words.split())
    assert sort_words(found.own, OWN, FLAGS) == SortedWords(found.own, [])


@pytest.mark.parametrize(
    ("words", "named"),
    [("MODEL", True), ("--model X", True), ("--num-stages 2", False), ("0-8 --json 8-16", False), ("--port 1 Y", True)],
)
def test_whether_a_model_is_named(words: str, named: bool) -> None:
    assert names_a_model(words.split(), OWN) is named


def test_a_file_of_vllm_is_read_as_vllm_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "vllm.yaml"
    file.write_text(
        "model: org/name\nport: 12323\nmax-model-len: 4096\nenforce_eager: true\nenable-prefix-caching: false\n"
        "allowed-origins: [a, b]\nhf-overrides:\n  rope: 1\n"
    )
    words = words_of_config(file, OWN, FLAGS, model_is_named=False)
    assert words[:2] == ["--model", "org/name"]
    assert words[2:] == [
        "--port", "12323", "--max-model-len", "4096", "--enforce-eager", "--no-enable-prefix-caching",
        "--allowed-origins", "a", "b", "--hf-overrides", json.dumps({"rope": 1}),
    ]  # fmt: skip
    assert words_of_config(file, OWN, FLAGS, model_is_named=True) == words[2:]
    file.write_text("no-such-key: 1\n")
    with pytest.raises(ZppError, match="neither zpptool nor vLLM has an option no-such-key"):
        words_of_config(file, OWN, FLAGS, model_is_named=False)


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    monkeypatch.setattr("zpptool.config.engine_flags.release_here", lambda: "0.32.0")
    return typed_here(monkeypatch, capsys)


def test_a_plan_holds_the_flags_and_refuses_those_that_cannot_be_meant(typed, tmp_path: Path) -> None:
    model, plan, config = write_checkpoint(tmp_path / "m"), tmp_path / "zpp.yaml", tmp_path / "vllm.yaml"
    config.write_text("max-num-seqs: 8\ndtype: float32\n")
    made = typed("plan", model, "--num-stages", 2, "--vllm-config", config, "--max-model-len", 4096, "-o", plan, "--",
                 "--enforce-eager")  # fmt: skip
    assert made.code == 0, made.err
    loaded = load_plan_file(plan)
    assert loaded.engine_args == ("--max-num-seqs", "8", "--max-model-len", "4096", "--enforce-eager")
    assert loaded.dtype == "float32"
    refused = typed("plan", model, "--num-stages", 2, "--", "--max-modle-len", 4096)
    assert refused.code == ExitCode.USAGE
    assert "vLLM 0.32.0 has no flag --max-modle-len" in refused.err
    drafts = typed("plan", model, "--num-stages", 2, "--speculative-config", "{}", "--spec-method", "ngram")
    assert drafts.code == ExitCode.USAGE
    assert "--spec-method does not work across stages" in drafts.err
    plan.write_text(plan.read_text().replace("--enforce-eager", "--enforce-eagre"))
    checked = typed("validate", plan)
    assert checked.code == ExitCode.INVALID
    assert "vLLM 0.32.0 has no flag --enforce-eagre" in checked.out


def test_an_unknown_option_is_still_the_commands_own_fault(typed, tmp_path: Path) -> None:
    ran = typed("plan", tmp_path, "--num-stages", 2, "--no-such-thing", 3)
    assert ran.code == ExitCode.USAGE
    assert "--no-such-thing" in ran.err
