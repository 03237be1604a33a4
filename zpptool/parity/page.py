# SPDX-License-Identifier: Apache-2.0
"""A trial's outcome as one HTML file for a person to look at: the verdict, the cause, and a map of layers by steps.

The file needs no other file, no network and no script.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from zpptool.parity.report import summary, where

MOST_STEPS = 400
"""How many steps the map shows."""
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem;color:#1b1f24;background:#fff}
h1{font-size:1.3rem}h2{font-size:1.05rem;margin-top:2rem}code,td.bits{font-family:ui-monospace,monospace;font-size:.9em}
.verdict{display:inline-block;padding:.1rem .6rem;border-radius:.3rem;font-weight:600;background:#fde2e1;color:#8c1d18}
.verdict.good{background:#dff3e4;color:#14532d}
table{border-collapse:collapse}td,th{padding:.15rem .6rem;text-align:left;vertical-align:top}
.map{overflow-x:auto}.map td{width:.85rem;min-width:.85rem;height:.85rem;padding:0;border:1px solid #fff}
.map th{font-weight:400;font-size:.8rem;color:#57606a;white-space:nowrap}
.equal{background:#b7dfc3}.some{background:#f2a65a}.all{background:#c0352b}.none{background:#eef0f2}
.first{outline:2px solid #1b1f24}.cut td,.cut th{border-top:2px solid #57606a}
@media (prefers-color-scheme:dark){body{background:#14171a;color:#e6e8ea}.none{background:#262b30}
.map td{border-color:#14171a}.equal{background:#2f6b45}.first{outline-color:#fff}}
"""


def page(outcome: Mapping[str, Any]) -> str:
    """The page.

    Args:
        outcome: the payload of a trial (`zpptool.parity.report.payload`).
    """
    return "\n".join(
        (
            '<!doctype html><html lang="en"><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            f"<title>zpptool test-pipeline: {escape(outcome['verdict'])}</title><style>{_STYLE}</style>",
            *_head(outcome),
            *_cause(outcome.get("cause")),
            *_map(outcome),
            *_prompts(outcome),
            "</html>",
            "",
        )
    )


def _head(outcome: Mapping[str, Any]) -> Iterator[str]:
    good = " good" if outcome["verdict"] in ("identical", "within tolerance") else ""
    yield f'<h1>zpptool test-pipeline <span class="verdict{good}">{escape(outcome["verdict"])}</span></h1>'
    stages = ", ".join(f"{start}-{end}" for start, end in (stage["layers"] for stage in outcome.get("stages", ())))
    yield f"<p>{outcome['num_stages']} stages ({escape(stages)}) on {escape(outcome['engine'])}</p>"
    if "error" in outcome:
        yield f"<p>{escape(outcome['error']['message'])}</p>"
    if "witness" in outcome:
        yield f"<p>{escape(summary(outcome))}</p>"


def _cause(cause: Mapping[str, Any] | None) -> Iterator[str]:
    if not cause:
        return
    yield f"<h2>The first difference</h2><p><b>{escape(where(cause))}</b><br>{escape(cause['cause'])}</p><table>"
    rows = {"kind of cause": cause["kind"], "rows that differ in this step": cause["rows"]}
    if cause["tensor"]:
        rows["weight"] = cause["tensor"]
    element = cause["element"]
    if element:
        rows |= {
            "first element": element["index"],
            "expected": f"{element['expected_bits']} = {element['expected']:.9g}",
            "got": f"{element['got_bits']} = {element['got']:.9g}",
            "apart": f"{element['absolute']:.3g}, {element['ulp']} units in the last place",
            "elements that differ": element["count"],
        }
    for name, value in rows.items():
        yield f'<tr><th>{escape(name)}<td class="bits">{escape(str(value))}'
    yield "</table>"
    if cause["transplants"]:
        yield "<h2>The layer again, with parts of the unsplit model's call</h2><table>"
        yield "<tr><th>part<th>differs<th>heals the output"
        for each in cause["transplants"]:
            words = ("yes" if each["differs"] else "no", "yes" if each["heals"] else "no")
            yield f"<tr><td>{escape(each['part'])}<td>{words[0]}<td>{words[1]}"
        yield "</table>"


def _map(outcome: Mapping[str, Any]) -> Iterator[str]:
    """The map: a row a layer, a column a step, all requests together."""
    witness = outcome.get("witness")
    if not witness or not witness["map"]:
        return
    cells = {(cell["layer"], cell["step"]): cell for cell in witness["map"]}
    layers = sorted({layer for layer, _step in cells})
    steps = range(min(max(step for _layer, step in cells) + 1, MOST_STEPS))
    firsts = {(each["layer"], each["step"]) for each in witness["first_differences"][:1]}
    starts = {stage["layers"][0] for stage in outcome.get("stages", ())}
    yield "<h2>Layers by steps</h2><p>A row is a layer, with a line where a stage begins; a column is a step, and"
    yield " step 0 has the prompts. Green: every hash is equal. Orange: some differ. Red: all differ.</p>"
    yield '<div class="map"><table>'
    for layer in layers:
        name = "embedding" if layer < 0 else "after the layers" if layer == layers[-1] else f"layer {layer}"
        cut = ' class="cut"' if layer in starts and layer > 0 else ""
        row = "".join(_cell(cells.get((layer, step)), (layer, step) in firsts) for step in steps)
        yield f"<tr{cut}><th>{name}{row}"
    yield "</table></div>"


def _cell(cell: Mapping[str, Any] | None, is_first: bool) -> str:
    if cell is None or not cell["hashes"]:
        return '<td class="none">'
    kind = "equal" if not cell["differing"] else "all" if cell["differing"] == cell["hashes"] else "some"
    title = f"layer {cell['layer']}, step {cell['step']}: {cell['differing']} of {cell['hashes']} hashes differ"
    return f'<td class="{kind}{" first" if is_first else ""}" title="{title}">'


def _prompts(outcome: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>Prompts</h2><table><tr><th>prompt<th>tokens<th>unsplit<th>pipeline"
    for prompt in outcome["prompts"]:
        verdict = "identical" if prompt["identical"] else f"different from token {prompt['first_difference']} on"
        yield f"<tr><td>{escape(prompt['prompt'])}<td>{verdict}<td>{escape(prompt['reference_text'])}"
        yield f"<td>{escape(prompt['text'])}"
    yield "</table>"
