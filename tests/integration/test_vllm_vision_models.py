# SPDX-License-Identifier: Apache-2.0
"""Families of vision-language models, each with its own processor, tower and positions: stages give stock vLLM's
answers, and what vLLM cannot divide is refused by name.

tests/vision_forks.py asks the families.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Ran
from stages import free_base_port, started
from vision import ROOT, make_model, python_path
from vision_models import IMAGE_WORDS, picture, rounds

pytest.importorskip("vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.long, pytest.mark.timeout(1800)]

START_S = 700
FAMILIES_S = 1400
TOLERANCE = 1e-3
FAMILIES = {
    "llava": ["0-1", "1-2", "2-4"],
    "qwen2_5_vl": ["0-1", "1-4"],
    "qwen3_vl": ["0-2", "2-4", "4-6"],
    "gemma3": ["0-3", "3-4"],
    "internvl": ["0-2", "2-4"],
    "mistral3": ["0-2", "2-4"],
}
"""What tests/vision_models.py makes, and its stages."""


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The answers of all families, unsplit and in stages, as tests/vision_forks.py writes them."""
    made = tmp_path_factory.mktemp("families") / "answers.json"
    asked = [f"{kind}:{','.join(ranges)}" for kind, ranges in FAMILIES.items()]
    with made.with_suffix(".log").open("wb") as log:
        subprocess.run(
            [sys.executable, str(ROOT / "tests/vision_forks.py"), str(made), *asked],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "scripts"), python_path()])},
            stdout=log, stderr=log, timeout=FAMILIES_S, check=False,
        )  # fmt: skip
    assert made.exists(), made.with_suffix(".log").read_text()[-3000:]
    answers: dict[str, Any] = json.loads(made.read_text())
    return answers


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_answers_about_images_as_unsplit(kind: str, families: dict[str, Any]) -> None:
    """Pre-split stages; two images in a prompt, images beside text, prompts in several steps, a cached prefix."""
    outcome = families[kind]
    assert "error" not in outcome, outcome["error"]
    theirs, ours = outcome["unsplit"], outcome["pipeline"]
    assert theirs[0][0] != theirs[0][1], "the answer does not depend on the image: the test shows nothing"
    for our_round, their_round in zip(ours, theirs, strict=True):
        for (our_tokens, our_logprobs), (tokens, logprobs) in zip(our_round, their_round, strict=True):
            assert our_tokens == tokens
            assert our_logprobs == pytest.approx(logprobs, abs=TOLERANCE)


def test_a_script_asks_about_images(families: dict[str, Any], tmp_path: Path) -> None:
    """`zpptool.LLM` with `multi_modal_data`."""
    model, made = make_model("llava", tmp_path / "model"), tmp_path / "answers.json"
    options = json.dumps({"asked": rounds(IMAGE_WORDS["llava"]), "num_stages": 2, "limit_mm_per_prompt": {"image": 3}})
    with (tmp_path / "log").open("wb") as log:
        subprocess.run(
            [sys.executable, str(ROOT / "tests/vision_script.py"), "zpptool", str(model), str(made), options],
            env={**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"},
            stdout=log, stderr=log, timeout=START_S, check=False,
        )  # fmt: skip
    assert made.exists(), (tmp_path / "log").read_text()[-3000:]
    ours = [[tokens for ((tokens, _logprobs),) in answers] for answers in json.loads(made.read_text())]
    assert ours == [[tokens for tokens, _logprobs in answers] for answers in families["llava"]["unsplit"]]


def test_the_command_compares_answers_about_images(tmp_path: Path, zpptool: Callable[..., Ran]) -> None:
    """`test-pipeline --image`, on a model without a chat template."""
    model = make_model("llava", tmp_path / "model")
    (model / "chat_template.jinja").unlink()
    for seed in range(2):
        picture(seed).save(tmp_path / f"{seed}.png")
    done = zpptool(
        *("test-pipeline", model, "--num-stages", 2, "--engine", "vllm", "--dtype", "float32", "--json"),
        *("--image", tmp_path / "0.png", "--image", tmp_path / "1.png", "--test-input", "What is this?"),
        timeout_s=START_S, env={"PYTHONPATH": python_path()},
    )  # fmt: skip
    assert done.code == 0, done.err
    asked = done.json["prompts"][0]
    assert asked["identical"]
    assert asked["prompt_tokens"] > 2 * 16 + len("What is this?")
    assert asked["token_ids"]


def test_a_model_that_vllm_cannot_divide_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("idefics3", tmp_path / "model")
    monkeypatch.setenv("PYTHONPATH", python_path())
    base = free_base_port(4)
    words = (model, "--stage-idx", 0, "--total-stages", 2, "--base-port", base, "--port", base + 3)
    with started(tmp_path, [(*words, "--engine", "vllm", "--recovery-deadline", 0)]) as (stage,):
        assert stage.wait(START_S) == 2, stage.text()[-2000:]
        assert "Pipeline parallelism is not supported for this model" in stage.text()
        assert "loading layers" not in stage.text()


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="the environment has torchvision")
def test_without_torchvision_the_start_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llava", tmp_path / "model")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))  # where vLLM remembers the classes it has imported
    base = free_base_port(4)
    words = (model, "--stage-idx", 0, "--total-stages", 2, "--base-port", base, "--port", base + 3)
    with started(tmp_path, [(*words, "--recovery-deadline", 0)]) as (stage,):
        assert stage.wait(START_S) == 2
        errors = [line for line in stage.text().splitlines() if line.startswith("error: ")]
        assert any("needs torchvision, which is not installed or does not import" in line for line in errors), errors
