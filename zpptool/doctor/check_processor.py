# SPDX-License-Identifier: Apache-2.0
"""Check that a model which takes images has its processor's files, and that the packages of the processor import."""

from __future__ import annotations

from collections.abc import Iterator

from zpptool.checkpoint.model_config import read_config, takes_more_than_text
from zpptool.checkpoint.processor import PACKAGES, TORCHVISION_FIX, missing_processor
from zpptool.config.engine_kind import Engine
from zpptool.doctor.check_engine import ask
from zpptool.doctor.finding import Finding, ok, warning
from zpptool.doctor.target import Target

CHECK = "processor"


def check_processor(target: Target) -> Iterator[Finding]:
    """Check a model that takes more than text. The embedded engine does without torchvision for most models."""
    directory = target.directory
    if directory is None or not (directory / "config.json").is_file():
        return
    config = read_config(directory)
    if not takes_more_than_text(config):
        return
    missing = missing_processor(directory, config)
    if missing is not None:
        yield warning(CHECK, missing, "Copy the processor's files there from where the model comes from.")
    for package in PACKAGES if target.engine is Engine.VLLM else ("PIL",):
        answer = ask(f"import {package}\nprint('ZPP {{}}')\n")
        if isinstance(answer, str):
            fix = TORCHVISION_FIX if package == "torchvision" else "Install pillow."
            yield warning(CHECK, f"images need {package}, which cannot be imported: {answer}", fix)
            return
    if missing is None:
        yield ok(CHECK, "the model's processor has its files and packages")
