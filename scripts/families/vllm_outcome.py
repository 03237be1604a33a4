# SPDX-License-Identifier: Apache-2.0
"""The recorded outcome of one class on vLLM, a line of a file. Reading it needs neither vLLM nor torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[2] / "docs/coverage-vllm.jsonl"

IDENTICAL, DIFFERENT, FAILED = "identical", "different", "failed"
NO_PIPELINE, NOT_ON_VLLM, REFUSED, NOT_BUILT = "no pipeline", "vLLM cannot", "refused", "not built"
VERDICTS = {
    IDENTICAL: "the pipeline of two stages gives the very tokens of unsplit stock vLLM",
    DIFFERENT: "it gives others",
    FAILED: "stock vLLM runs the unsplit model, and the pipeline fails",
    NO_PIPELINE: "vLLM's own class does not support pipelines",
    NOT_ON_VLLM: "stock vLLM does not run the unsplit tiny model on a CPU",
    REFUSED: "zpptool refuses to split it, or to run its stages on vLLM",
    NOT_BUILT: "no tiny model of it could be made",
}
"""The possible outcomes of a class, and their meanings."""
WRONG = (DIFFERENT, FAILED)


@dataclass
class VllmOutcome:
    """One class on vLLM.

    Attributes:
        name: transformers' class, which a checkpoint's config names.
        verdict: one of `VERDICTS`.
        runs_as: the class that vLLM runs it with, if that has another name.
        reason: vLLM's or zpptool's error, where the outcome is not identical.
        seconds: the duration.
        date: the day of the trial, as YYYY-MM-DD.
        versions: the packages that it was tried with.
    """

    name: str
    verdict: str
    runs_as: str = ""
    reason: str = ""
    seconds: float = 0.0
    date: str = ""
    versions: str = ""

    def as_json(self) -> dict[str, Any]:
        """The outcome for a line of the results file."""
        return asdict(self)


def read_outcomes(results: Path = RESULTS) -> dict[str, VllmOutcome]:
    """The outcomes by name. If a class has several, the last one counts."""
    lines = results.read_text().splitlines() if results.is_file() else []
    return {outcome.name: outcome for outcome in (VllmOutcome(**json.loads(line)) for line in lines)}


def write_outcomes(outcomes: dict[str, VllmOutcome], results: Path = RESULTS) -> None:
    """Write all outcomes, sorted by name. The file is replaced at once, so a reader never sees a part of it."""
    text = "".join(json.dumps(outcomes[name].as_json()) + "\n" for name in sorted(outcomes))
    fresh = results.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(results)
