# SPDX-License-Identifier: Apache-2.0
"""The coverage table as Markdown, generated from the outcomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from families.case import STAGES, Outcome
from families.record import Record
from families.tiny import LAYERS
from families.vllm_outcome import FAILED, IDENTICAL, VERDICTS, VllmOutcome

_HEAD = """\
<!-- SPDX-License-Identifier: Apache-2.0 -->
<!-- Written by scripts/coverage_report.py: do not edit. -->
# Coverage

Every causal-LM and image-text-to-text class of transformers, made with random weights
and {layers} decoder layers (towers get as many), saved, its structure inferred, split into {stages} stages,
validated against the source, and run on the embedded engine against the unsplit model, with each of these releases:

| release of transformers | tried | structure right | refused | wrong | not built | identical | refused | differ | |
|---|---|---|---|---|---|---|---|---|---|
{releases}
`make upstream` tries the oldest release that is allowed and the newest one, and prints what has changed;
`python scripts/coverage_report.py` tries the installed one. Both keep their outcomes in a file for each release,
`docs/coverage-transformers-VERSION.jsonl`, from which this page is made.

**Structure.** *Not built*: no tiny model of it could be made here. *Right* is measured on the running model: a recorder
notes which parameters it reads before, in and after which decoder layer, and parameters are filled with numbers that
can be recognised in the saved tensors (`scripts/families/truth.py`). Marked *layers*: the tiny model does not run on
text alone, and only the tensors in its layers are verified. Marked *names*: not even these are, because transformers
does not keep its layers in one list of the config's length. While the structure is inferred, every matrix is treated
as large, so that no tensor is accepted because it is small.

**Embedded engine.** *Identical*: it generates the same tokens as the unsplit model. *Refused*: when a stage loads.
*Not run*: its structure is refused, or the unsplit model does not generate from text alone.

**Images**, on the embedded engine. *Images run*: a tiny model with the published models' processor answers prompts with
one image, with two and without any as the unsplit model does, in three stages. *Text alone*: images were not run,
because no processor could be made here. *Refused*: when a stage loads. Empty: the class takes no images.

Where releases differ, a cell names the release before its outcome. A release that is not named does not have the class,
or it was not tried there yet. The reason is the newest release's.

**vLLM.** {vllm}

| class | family | layers | structure | embedded engine | images | vLLM | why not |
|---|---|---|---|---|---|---|---|
"""
_VLLM = """\
{count} classes, {first} to {last}, with {versions}, by
`python scripts/vllm_coverage.py`, which stores its records in [coverage-vllm.jsonl](coverage-vllm.jsonl): unsplit stock
vLLM against two stages in separate processes over zpptool's links; float32 (bfloat16 where vLLM's linear attention
requires it), greedy, eager, three prompts in flight at once, one of them longer than a step. A tiny model has no
processor, so prompts are text only, and vLLM skips the towers. A class without an implementation in vLLM runs with
transformers' code there, as the cell shows.

{verdicts}"""


def coverage_table(records: Mapping[str, Record], on_vllm: Mapping[str, VllmOutcome]) -> str:
    """The page for each release's outcomes, from the oldest release to the newest, and the outcomes on vLLM."""
    names = sorted({name for record in records.values() for name in record})
    head = _HEAD.format(
        layers=LAYERS,
        stages=STAGES,
        releases="".join(f"| {' | '.join(map(str, _counts(*entry)))} |\n" for entry in records.items()),
        vllm=_vllm_words([on_vllm[name] for name in names if name in on_vllm]),
    )
    found = {name: {version: record[name] for version, record in records.items() if name in record} for name in names}
    rows = (_cells(outcomes, len(records), on_vllm.get(name)) for name, outcomes in found.items())
    return head + "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def _counts(release: str, record: Record) -> tuple[str | int, ...]:
    """The row of one release in the table of releases."""
    structure = Counter(outcome.structure for outcome in record.values())
    embedded = Counter(outcome.embedded for outcome in record.values())
    dates = sorted(outcome.date for outcome in record.values())
    tried = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return (
        release, len(record), structure["right"], structure["refused"], structure["wrong"], structure["not built"],
        embedded["identical"], embedded["refused"], embedded["different"], tried,
    )  # fmt: skip


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
    return _plain(f"{outcome.verdict}{runs_as}{why}")


def _plain(text: str) -> str:
    """Text with Markdown's special characters escaped, in one line."""
    return text.replace("|", "\\|").replace("<", "\\<").replace("\n", " ")


def _cells(outcomes: Mapping[str, Outcome], num_releases: int, on_vllm: VllmOutcome | None) -> tuple[str, ...]:
    """The row of one class, from its outcomes by release."""
    newest = list(outcomes.values())[-1]
    is_everywhere = len(outcomes) == num_releases
    return (
        newest.name,
        newest.family,
        f"`{newest.layers}`" if newest.layers else "",
        _by_release(outcomes, _structure, is_everywhere),
        _by_release(outcomes, lambda outcome: outcome.embedded or "not run", is_everywhere),
        newest.images,
        vllm_cell(on_vllm),
        _plain(newest.reason),
    )


def _structure(outcome: Outcome) -> str:
    return outcome.structure + ("" if outcome.checked in ("", "all") else f" ({outcome.checked})")


def _by_release(outcomes: Mapping[str, Outcome], words: Callable[[Outcome], str], is_everywhere: bool) -> str:
    """One cell: the outcome alone if every release has it, else each with its release."""
    found = {release: words(outcome) for release, outcome in outcomes.items()}
    if is_everywhere and len(set(found.values())) == 1:
        return next(iter(found.values()))
    return ", ".join(f"{release} {outcome}" for release, outcome in found.items())
