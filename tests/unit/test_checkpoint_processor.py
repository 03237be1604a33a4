# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint lacks to take images is said in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import llama, llama_config, write_checkpoint

from zpptool.checkpoint.processor import PROCESSOR_FILES, missing_processor
from zpptool.config.engine_kind import Engine
from zpptool.doctor import check_processor as module
from zpptool.doctor.check_processor import check_processor
from zpptool.doctor.finding import Level
from zpptool.doctor.target import Target
from zpptool.sources.names import ModelName

VISION = {**llama_config(2), "vision_config": {"hidden_size": 8}}


def test_a_text_model_needs_no_processor(tmp_path: Path) -> None:
    assert missing_processor(tmp_path, llama_config(2)) is None


@pytest.mark.parametrize("name", PROCESSOR_FILES)
def test_a_vision_model_needs_one_of_the_processors_files(name: str, tmp_path: Path) -> None:
    assert "has no preprocessor_config.json or processor_config.json" in (missing_processor(tmp_path, VISION) or "")
    (tmp_path / name).write_text("{}")
    assert missing_processor(tmp_path, VISION) is None


@pytest.mark.parametrize(
    ("answer", "levels", "message"),
    [
        ({}, [Level.WARNING], "has no preprocessor_config.json"),
        ("ModuleNotFoundError: No module named 'x'", [Level.WARNING, Level.WARNING], "images need torchvision"),
    ],
)
def test_the_doctor_says_what_is_missing(
    answer: object, levels: list[Level], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ask", lambda _script: answer)
    model = write_checkpoint(tmp_path / "model", llama(2), VISION)
    findings = list(check_processor(Target(Engine.VLLM, ModelName(str(model)))))
    assert [finding.level for finding in findings] == levels
    assert message in findings[-1].message
    embedded = list(check_processor(Target(Engine.TRANSFORMERS, ModelName(str(model)))))
    assert [finding.level for finding in embedded] == levels
    assert "torchvision" not in embedded[-1].message


def test_the_doctor_finds_a_complete_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ask", lambda _script: {})
    model = write_checkpoint(tmp_path / "model", llama(2), VISION)
    (model / "preprocessor_config.json").write_text("{}")
    assert [finding.level for finding in check_processor(Target(Engine.VLLM, ModelName(str(model))))] == [Level.OK]
