# SPDX-License-Identifier: Apache-2.0
"""Families of vision-language models, each with its own processor, tower and positions: stages give stock vLLM's
answers, and what vLLM cannot divide is refused by name.

The scripts use `vllm.LLM` and `zpptool.LLM`; tests/vision_script.py is what they run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stages import free_base_port, started
from vision import ROOT, make_model, python_path
from vision_models import IMAGE_WORDS

pytest.importorskip("vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.long, pytest.mark.timeout(1500)]

START_S = 700
TOLERANCE = 1e-3
LIMITS = {"image": 3, "video": 0}


def asked(word: str) -> list[list[list[Any]]]:
    """Two rounds of prompts: images alone, two in one prompt, none, seeded; then two whose beginning is cached."""
    question = f"{word}What is this, and what is beside it? Say it in one word, please."
    return [
        [
            [question, [0], {}],
            [question, [1], {}],
            [f"Two: {word} and {word} now", [0, 2], {}],
            ["No image here", [], {}],
            [f"{word}n", [3], {"n": 2, "temperature": 0.9, "seed": 5}],
        ],
        [[question, [0], {}], [question, [2], {}]],
    ]


def answers(which: str, model: Path, directory: Path, options: dict[str, Any]) -> Any:
    """What a script of `vllm.LLM` or `zpptool.LLM` answers."""
    made = directory / f"{which}.json"
    with made.with_suffix(".log").open("wb") as log:
        subprocess.run(
            [sys.executable, str(ROOT / "tests/vision_script.py"), which, str(model), str(made), json.dumps(options)],
            env={**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"},
            stdout=log, stderr=log, timeout=START_S, check=False,
        )  # fmt: skip
    assert made.exists(), made.with_suffix(".log").read_text()[-3000:]
    return json.loads(made.read_text())


@pytest.mark.parametrize(
    ("kind", "ranges"),
    [
        ("llava", ["0-1", "1-2", "2-4"]),
        ("qwen2_5_vl", ["0-1", "1-4"]),
        ("qwen3_vl", ["0-2", "2-4", "4-6"]),
        ("gemma3", ["0-3", "3-4"]),
        ("internvl", ["0-2", "2-4"]),
        ("mistral3", ["0-2", "2-4"]),
    ],
)
def test_a_family_answers_about_images_as_unsplit(kind: str, ranges: list[str], tmp_path: Path) -> None:
    model = make_model(kind, tmp_path / "model")
    options = {"asked": asked(IMAGE_WORDS[kind]), "limit_mm_per_prompt": LIMITS}
    theirs = answers("vllm", model, tmp_path, options)
    ours = answers("zpptool", model, tmp_path, {**options, "ranges": ranges})
    assert theirs[0][0] != theirs[0][1], "the answer does not depend on the image: the test shows nothing"
    for our_round, their_round in zip(ours, theirs, strict=True):
        for our_choices, their_choices in zip(our_round, their_round, strict=True):
            for (our_tokens, our_logprobs), (tokens, logprobs) in zip(our_choices, their_choices, strict=True):
                assert our_tokens == tokens
                assert our_logprobs == pytest.approx(logprobs, abs=TOLERANCE)


def test_a_model_that_vllm_cannot_divide_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("idefics3", tmp_path / "model")
    monkeypatch.setenv("PYTHONPATH", python_path())
    base = free_base_port(4)
    words = (model, "--stage-idx", 0, "--total-stages", 2, "--base-port", base, "--port", base + 3)
    with started(tmp_path, [(*words, "--engine", "vllm", "--recovery-deadline", 0)]) as (stage,):
        assert stage.wait(START_S) == 2
        assert "Pipeline parallelism is not supported for this model" in stage.text()
        assert "loading layers" not in stage.text()
