# SPDX-License-Identifier: Apache-2.0
"""The coverage table as Markdown, generated from the outcomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from families.case import STAGES, Outcome
from families.tiny import LAYERS
from families.vllm_outcome import CAUSES, FAILED, IDENTICAL, VERDICTS, WRONG, VllmOutcome

_HEAD = """\
<!-- SPDX-License-Identifier: Apache-2.0 -->
<!-- Written by scripts/coverage_report.py: do not edit. -->
# Coverage

Every causal-LM and image-text-to-text class of transformers {version}, {count} in all, made with random weights
and {layers} decoder layers (towers get as many), saved, its structure inferred, split into {stages} stages,
validated against the source, and run on the embedded engine against the unsplit model. Made by
`python scripts/coverage_report.py`, which takes about five minutes on two cores.

**Structure.** {right} right, {refused} refused with a reason, {wrong} wrong, {unbuilt} not tried (no tiny model of it
could be made here). *Right* is measured on the running model: a recorder notes which parameters it reads before,
in and after which decoder layer, and parameters are filled with numbers that can be recognised in the saved
tensors (`scripts/families/truth.py`). Marked *layers* ({partly}): the tiny model does not run on text alone, and only
the tensors in its layers are verified. Marked *names* ({unheld}): not even these are, because transformers
does not keep its layers in one list of the config's length. While the structure is inferred, every matrix is treated
as large, so that no tensor is accepted because it is small.

**Embedded engine.** {identical} generate the same tokens as the unsplit model, {engine_refused} are refused
when a stage loads, {different} differ. The rest were not run: their structure is refused, or the unsplit
model does not generate from text alone.

**vLLM.** {vllm}

| class | family | layers | structure | embedded engine | vLLM | why not |
|---|---|---|---|---|---|---|
"""
_VLLM = """\
{count} classes, {first} to {last}, with {versions}, by
`python scripts/vllm_coverage.py`, which stores its records in [coverage-vllm.jsonl](coverage-vllm.jsonl): unsplit stock
vLLM against two stages in separate processes over zpptool's links; float32 (bfloat16 where vLLM's linear attention
requires it), greedy, eager, three prompts in flight at once, one of them longer than a step. A tiny model has no
processor, so prompts are text only, and vLLM skips the towers. A class without an implementation in vLLM runs with
transformers' code there, as the cell shows.

{verdicts}"""


def coverage_table(outcomes: Sequence[Outcome], on_vllm: Mapping[str, VllmOutcome]) -> str:
    """The page for `outcomes`, and their records on vLLM by class name."""
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
        vllm=_vllm_words([on_vllm[outcome.name] for outcome in outcomes if outcome.name in on_vllm]),
    )
    return head + "".join(f"| {' | '.join(_cells(outcome, on_vllm.get(outcome.name)))} |\n" for outcome in outcomes)


def _vllm_words(tried: Sequence[VllmOutcome]) -> str:
    """The paragraph on vLLM: what was tried, with which versions, and the outcomes."""
    if not tried:
        return "Not run."
    count = Counter(outcome.verdict for outcome in tried)
    versions = "; ".join(sorted({outcome.versions for outcome in tried}))
    dates = sorted({outcome.date for outcome in tried})
    listed = (f"* *{verdict}* ({count[verdict]}): {meaning}" for verdict, meaning in VERDICTS.items() if count[verdict])
    verdicts = ";\n".join(listed) + "."
    return _VLLM.format(count=len(tried), versions=versions, first=dates[0], last=dates[-1], verdicts=verdicts)


def vllm_cell(outcome: VllmOutcome | None) -> str:
    """The table's cell of one class on vLLM."""
    if outcome is None:
        return "not run"
    runs_as = f" (as {outcome.runs_as})" if outcome.runs_as and outcome.verdict in (IDENTICAL, FAILED) else ""
    why = "" if outcome.verdict == IDENTICAL or not outcome.reason else f": {outcome.reason}"
    cause = f" ({CAUSES[outcome.name]})" if outcome.verdict in WRONG and outcome.name in CAUSES else ""
    return _plain(f"{outcome.verdict}{runs_as}{why}{cause}")


def _plain(text: str) -> str:
    """Text with Markdown's special characters escaped, in one line."""
    return text.replace("|", "\\|").replace("<", "\\<").replace("\n", " ")


def _cells(outcome: Outcome, on_vllm: VllmOutcome | None) -> tuple[str, ...]:
    checked = "" if outcome.checked in ("", "all") else f" ({outcome.checked})"
    return (
        outcome.name,
        outcome.family,
        f"`{outcome.layers}`" if outcome.layers else "",
        outcome.structure + checked,
        outcome.embedded or "not run",
        vllm_cell(on_vllm),
        _plain(outcome.reason),
    )
