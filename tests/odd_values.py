# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies for untrusted input: JSON values with a few places replaced by odd values."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FEW, MANY = 25, 1500
ODD_TEXT = [
    "", ".", "..", "/", "../../x", "/tmp/zpp-fuzz-outside", "a/../../b", "a\0b", "a\nb", "a\nExecStartPre=+/bin/x",
    "\x1b[2J", "$(id)", "${HOME}", "$$", "%h", "`id`", "a b", "x" * 300, "x" * 5000, "config.json", "zpp-stage.json",
    "model.safetensors", "-1", "1e999", "9" * 5000, "model.layers.0.x", "model.layers." + "9" * 4500 + ".x",
    "tcp://a/../b:1", "tcp://a:99999", "ipc:///x\ny", "hf://..", "fe80::1%../../x", "\u2028", "é", "[0-8]", "0\n-8",
]  # fmt: skip
ODD_NUMBERS = [0, 1, -1, 2, 255, 65536, 1 << 31, 1 << 53, (1 << 63) - 1, 1 << 63, 1 << 64, 10**39, 10**60, -(10**60)]


def _deep(levels: int) -> Any:
    value: Any = 0
    for _level in range(levels):
        value = [value]
    return value


ODD = st.one_of(
    st.sampled_from(ODD_TEXT),
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from([None, True, False, 0.5, -0.0, 1e308, float("inf"), float("nan"), [], {}, [[]], [{}], {"": {}}]),
    st.sampled_from([_deep(20), _deep(200), [1] * 500]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.integers(),
)


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> Any:
    """Draw `value` with one to four places replaced, removed, duplicated or added."""
    result = copy.deepcopy(value)
    for _change in range(draw(st.integers(1, 4))):
        holder, key = None, None
        place = result
        while isinstance(place, dict | list) and place and (holder is None or draw(st.integers(0, 3))):
            holder = place
            key = draw(st.sampled_from(sorted(place, key=str) if isinstance(place, dict) else range(len(place))))
            place = place[key]
        if holder is None:
            return copy.deepcopy(draw(ODD))
        what = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add", "double"]))
        if what == "replace":
            holder[key] = copy.deepcopy(draw(ODD))
        elif what == "remove":
            del holder[key]
        elif isinstance(holder, dict):
            holder[draw(st.sampled_from(ODD_TEXT)) if what == "add" else f"{key}x"] = copy.deepcopy(place)
        else:
            holder.append(copy.deepcopy(draw(ODD) if what == "add" else place))
    return result


few_or_many = pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.long)])
"""Number of examples of a fuzz test: few by default, many in long runs."""


def fuzz(count: int, strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Run `check` on `count` examples, each with a deadline of ten seconds."""
    quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]
    settings(max_examples=count, deadline=10_000, suppress_health_check=quiet, database=None)(given(strategy)(check))()


def listing(directory: Path) -> dict[str, bytes]:
    """Return the content of all files below a directory, by path."""
    return {str(path): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}
