# SPDX-License-Identifier: Apache-2.0
"""The coverage table, as Markdown, from the outcomes: generated, never written by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version

from families.case import STAGES, Outcome
from families.tiny import LAYERS

_HEAD = """\
<!-- SPDX-License-Identifier: Apache-2.0 -->
<!-- Written by scripts/coverage_report.py: do not edit. -->
# Coverage

Every causal-LM and image-text-to-text class of transformers {version}, {count} in all, made with random weights
and {layers} decoder layers (towers get as many), saved, its structure inferred, split into {stages} stages,
validated against the source, and run on the embedded engine against the unsplit model. Made by
`python scripts/coverage_report.py`, which takes about five minutes on two cores.

**Structure.** {right} right, {refused} refused in words, {wrong} wrong, {unbuilt} not tried (no tiny model of it
could be made here). *Right* is not our own opinion: the running model is watched for which parameters it reads
before, in and after which decoder layer, and parameters are filled with numbers that show up again in the saved
tensors (`scripts/families/truth.py`). Marked *layers* ({partly}): the tiny model does not run on text alone, and only
the tensors in its layers are known in this way. Marked *names* ({unheld}): not even these are, because transformers
keeps its layers in no one list of the config's length. While the structure is inferred, every matrix is taken to be
large, so that no tensor passes for a small one.

**Embedded engine.** {identical} give the very tokens of the unsplit model, {engine_refused} are refused when a stage
loads, {different} differ. The rest were not run: their structure is refused, or the unsplit model does not generate
from text alone.

**vLLM.** Not run by this script.

| class | family | layers | structure | embedded engine | vLLM | why not |
|---|---|---|---|---|---|---|
"""


def coverage_table(outcomes: Sequence[Outcome]) -> str:
    """The page for `outcomes`."""
    structure = Counter(outcome.structure for outcome in outcomes)
    embedded = Counter(outcome.embedded for outcome in outcomes)
    head = _HEAD.format(
        version=version("transformers"),
        count=len(outcomes),
        layers=LAYERS,
        stages=STAGES,
        right=structure["right"],
        refused=structure["refused"],
        wrong=structure["wrong"],
        unbuilt=structure["not built"],
        partly=sum(outcome.checked == "layers" for outcome in outcomes),
        unheld=sum(outcome.checked == "names" for outcome in outcomes),
        identical=embedded["identical"],
        engine_refused=embedded["refused"],
        different=embedded["different"],
    )
    return head + "".join(f"| {' | '.join(_cells(outcome))} |\n" for outcome in outcomes)


def _cells(outcome: Outcome) -> tuple[str, ...]:
    checked = "" if outcome.checked in ("", "all") else f" ({outcome.checked})"
    reason = outcome.reason.replace("|", "\\|").replace("<", "\\<")
    return (
        outcome.name,
        outcome.family,
        f"`{outcome.layers}`" if outcome.layers else "",
        outcome.structure + checked,
        outcome.embedded or "not run",
        "not run",
        reason,
    )
