# SPDX-License-Identifier: Apache-2.0
"""Draw a plan, memory and time of each stage as bars: `zpptool plan ... --json | scripts/plan_picture.py FILE.svg`.

docs/images/plan.svg is the picture of examples/devices.yaml and the 135M model of `make model`.
"""

from __future__ import annotations

import json
import sys
from html import escape
from pathlib import Path
from typing import Any

WIDTH, ROW, LABEL, BAR = 760, 58, 150, 560
PARTS = (("weight", "#4c78a8", "weights"), ("cache", "#f58518", "KV"), ("workspace", "#b279a2", "workspace"))
FREE, TIME = "#e4e4e4", "#54a24b"


def picture(report: dict[str, Any]) -> str:
    """The plan as SVG. Bars of memory are drawn to one scale, and so are those of time.

    Args:
        report: the object `planner` of `zpptool plan --devices --json`.
    """
    stages = report["stages"]
    most = max(stage["memory_bytes"] for stage in stages)
    rows = [_row(stage, most, 46 + number * ROW) for number, stage in enumerate(stages)]
    height = 46 + ROW * len(stages) + 8
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
            'font-size="12" role="img">',
            "<title>Stages of a plan: memory and time of a step</title>",
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
            *_legend(),
            *rows,
            "</svg>\n",
        )
    )


def _legend() -> list[str]:
    entries = [(colour, words) for _part, colour, words in PARTS]
    lines, x = [], LABEL
    for colour, words in (*entries, (FREE, "free"), (TIME, "time of a step, as a part of the period")):
        lines.append(f'<rect x="{x}" y="14" width="12" height="12" fill="{colour}"/>')
        lines.append(f'<text x="{x + 17}" y="24">{words}</text>')
        x += 40 + 7 * len(words)
    return lines


def _row(stage: dict[str, Any], most: int, top: int) -> str:
    first, end = stage["layers"]
    lines = [
        f'<text x="8" y="{top + 14}" font-weight="bold">{stage["stage"]}: {escape(stage["host"])}</text>',
        f'<text x="8" y="{top + 31}">layers {first} to {end - 1}</text>',
    ]
    x = float(LABEL)
    parts = [(stage[f"{part}_bytes"], colour) for part, colour, _words in PARTS]
    for size, colour in (*parts, (stage["free_bytes"], FREE)):
        width = BAR * size / most
        lines.append(f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="18" fill="{colour}"/>')
        x += width
    lines.append(
        f'<rect x="{LABEL}" y="{top + 22}" width="{BAR * stage["share"]:.1f}" height="12" fill="{TIME}"/>'
        f'<text x="{LABEL + BAR * stage["share"] + 5:.1f}" y="{top + 32}">{stage["share"]:.0%}</text>'
    )
    return "\n".join(lines)


def main() -> None:
    """Read a plan's JSON from stdin, and write its picture."""
    if len(sys.argv) != 2:
        sys.exit("usage: zpptool plan MODEL --devices FILE --json | python scripts/plan_picture.py FILE.svg")
    Path(sys.argv[1]).write_text(picture(json.load(sys.stdin)["planner"]))


if __name__ == "__main__":
    main()
