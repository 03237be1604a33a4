# SPDX-License-Identifier: Apache-2.0
"""The picture of a plan: one bar of memory and one of time for each stage, to scale."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from xml.etree import ElementTree

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/plan_picture.py"
SVG = "{http://www.w3.org/2000/svg}"


def test_bars_are_as_long_as_what_they_stand_for() -> None:
    spec = importlib.util.spec_from_file_location("plan_picture", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sizes = {"weight_bytes": 40, "cache_bytes": 20, "workspace_bytes": 10, "free_bytes": 30, "memory_bytes": 100}
    stages = [
        {"stage": 0, "host": "a<b", "layers": [0, 3], "share": 0.5, **sizes},
        {"stage": 1, "host": "c", "layers": [3, 4], "share": 1.0, **sizes},
    ]
    drawn = ElementTree.fromstring(module.picture({"stages": stages}))
    texts = [text.text for text in drawn.iter(f"{SVG}text")]
    assert "0: a<b" in texts
    assert "layers 3 to 3" in texts
    bars = {(rect.get("fill"), float(rect.get("width", 0)) / module.BAR) for rect in drawn.iter(f"{SVG}rect")}
    assert {(module.PARTS[0][1], 0.4), (module.PARTS[1][1], 0.2), (module.FREE, 0.3)} <= bars
    assert {(module.TIME, 0.5), (module.TIME, 1.0)} <= bars
