# SPDX-License-Identifier: Apache-2.0
"""The result of a check: its severity, a one-line message, and a one-line fix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """Severity. A blocker keeps a pipeline from running; a warning may cost speed, or have no effect."""

    OK = "ok"
    WARNING = "warning"
    BLOCKER = "blocker"


@dataclass(frozen=True)
class Finding:
    """One finding of a check.

    Attributes:
        check: what was checked.
        level: the severity.
        message: what was found.
        fix: what to do; empty if nothing has to be done.
    """

    check: str
    level: Level
    message: str
    fix: str = ""


def ok(check: str, message: str) -> Finding:
    """Return a finding that needs no action."""
    return Finding(check, Level.OK, message)


def warning(check: str, message: str, fix: str) -> Finding:
    """Return a finding that does not keep the pipeline from running."""
    return Finding(check, Level.WARNING, message, fix)


def blocker(check: str, message: str, fix: str) -> Finding:
    """Return a finding that keeps the pipeline from running."""
    return Finding(check, Level.BLOCKER, message, fix)


def blocked(findings: Iterable[Finding]) -> bool:
    """Return whether any finding is a blocker."""
    return any(finding.level is Level.BLOCKER for finding in findings)
