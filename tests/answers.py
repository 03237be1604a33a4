# SPDX-License-Identifier: Apache-2.0
"""Sends requests to two servers and compares their answers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

LOGPROB_TOLERANCE = 1e-4
"""The greatest difference between a logprob of the pipeline and the unsplit engine's: batches differ, and with them the
last bits."""


def same(one: Any, other: Any, where: str = "choices") -> None:
    """Assert that both are equal, floats to `LOGPROB_TOLERANCE`."""
    if isinstance(one, float) and isinstance(other, float):
        assert one == pytest.approx(other, abs=LOGPROB_TOLERANCE), where
    elif isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys(), where
        for key, item in one.items():
            same(item, other[key], f"{where}.{key}")
    elif isinstance(one, list) and isinstance(other, list):
        assert len(one) == len(other), where
        for index, item in enumerate(one):
            same(item, other[index], f"{where}[{index}]")
    else:
        assert one == other, where


def metric(client: httpx.Client, name: str) -> float:
    """The sum of one metric over its labels."""
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(name)]
    assert lines, f"no metric {name}"
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def together(client: httpx.Client, requests: list[dict[str, Any]], *, at_once: int) -> list[list[int]]:
    """The token ids of each completion; `at_once` requests are sent in parallel."""

    def tokens(request: dict[str, Any]) -> list[int]:
        answer = client.post("/v1/completions", json=request)
        assert answer.status_code == httpx.codes.OK, answer.text
        return answer.json()["choices"][0]["token_ids"]

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(tokens, requests))
