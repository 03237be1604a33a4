# SPDX-License-Identifier: Apache-2.0
"""Tokens per second from samples of a counter."""

from __future__ import annotations

from collections import deque

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

from zpptool.serve.throughput import WINDOW_S, add_sample, rate_of


def test_the_rate_covers_the_window_and_a_restart_of_the_counter() -> None:
    samples: deque[tuple[float, float]] = deque()
    assert rate_of(samples) is None
    for second in range(20):
        add_sample(samples, float(second), 10.0 * second)
    assert rate_of(samples) == pytest.approx(10.0)
    assert samples[0][0] >= 19 - WINDOW_S - 1
    add_sample(samples, 20.0, 5.0)
    assert rate_of(samples) is None
    add_sample(samples, 21.0, 8.0)
    assert rate_of(samples) == pytest.approx(3.0)
