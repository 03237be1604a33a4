# SPDX-License-Identifier: Apache-2.0
"""A check, what it needs of a machine, and its outcome."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple

import msgspec


class Verdict(StrEnum):
    """The outcome of a check in a word."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


class Outcome(msgspec.Struct, frozen=True):
    """What came of one check.

    Attributes:
        name: the check.
        verdict: the outcome in a word.
        detail: why it was skipped or failed; empty otherwise.
        seconds: how long it took.
        measures: what it has measured, by name, with the unit in the name.
    """

    name: str
    verdict: Verdict
    detail: str
    seconds: float
    measures: dict[str, Any]


class Machine(msgspec.Struct, frozen=True):
    """The machine that is checked.

    Attributes:
        device: `cuda` or `cpu`.
        cards: the names of its CUDA cards.
        memory_bytes: of the first card; 0 without one.
        driver: version of the NVIDIA driver; empty without one.
        torch, vllm, zpptool: versions; vllm's is empty where it cannot be imported.
    """

    device: str
    cards: tuple[str, ...]
    memory_bytes: int
    driver: str
    torch: str
    vllm: str
    zpptool: str


class Bench(NamedTuple):
    """What a check gets.

    Attributes:
        machine: where it runs.
        model: directory of the checkpoint that pipelines load.
        directory: for logs and files.
        limit_s: how many seconds it may take.
    """

    machine: Machine
    model: Path
    directory: Path
    limit_s: float


class Failed(Exception):
    """The check has found a fault; the message says which."""


class Refused(Exception):
    """What was to be checked does not exist in this build; the message says so in its words."""


class Check(NamedTuple):
    """One check.

    Attributes:
        name: for `--only`, the report and the table.
        about: what it shows, in a line.
        least_s: it is not begun with fewer seconds left. An estimate.
        cards: how many CUDA cards it needs.
        needs_vllm: whether it needs vLLM.
        run: does it; returns what it has measured.
    """

    name: str
    about: str
    least_s: float
    cards: int
    needs_vllm: bool
    run: Callable[[Bench], dict[str, Any]]


def why_not(check: Check, machine: Machine) -> str:
    """Why a check cannot run on a machine; empty if it can."""
    if check.cards and machine.device != "cuda":
        return "needs a CUDA card; run with --device cuda"
    if check.cards > len(machine.cards):
        return f"needs {check.cards} CUDA cards, this machine has {len(machine.cards)}"
    if check.needs_vllm and not machine.vllm:
        return "needs vLLM, which cannot be imported"
    return ""
