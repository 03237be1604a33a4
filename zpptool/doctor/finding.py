# SPDX-License-Identifier: Apache-2.0
"""What a check finds: how bad it is, in one line, and what to do about it, in another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is. A blocker keeps a pipeline from running; a warning may cost speed, or nothing."""

    OK = "ok"
    WARNING = "warning"
    BLOCKER = "blocker"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what was looked at.
        level: how bad it is.
        message: what was found.
        fix: what to do; empty when nothing has to be done.
    """

    check: str
    level: Level
    message: str
    fix: str = ""


def ok(check: str, message: str) -> Finding:
    """Nothing to do."""
    return Finding(check, Level.OK, message)


def warning(check: str, message: str, fix: str) -> Finding:
    """It runs, and could be better."""
    return Finding(check, Level.WARNING, message, fix)


def blocker(check: str, message: str, fix: str) -> Finding:
    """It cannot run so."""
    return Finding(check, Level.BLOCKER, message, fix)


def blocked(findings: Iterable[Finding]) -> bool:
    """Whether one of them is a blocker."""
    return any(finding.level is Level.BLOCKER for finding in findings)
