# SPDX-License-Identifier: Apache-2.0
"""The figures of a trial under load, from times that are known."""

from __future__ import annotations

import pytest

pytest.importorskip("httpx")

from zpptool.net.load_trial import Load, Timing, result_of

LOAD = Load("m", num_prompts=3, input_len=10, output_len=3, concurrency=2)


def test_the_figures_are_those_of_the_answers_that_came() -> None:
    timings = [Timing((0.1, 0.2, 0.3)), Timing((0.3, 0.5, 0.7)), Timing((0.1,), "broke off")]
    result = result_of(timings, LOAD, 2.0)
    assert (result["completed"], result["failed"]) == (2, 1)
    assert result["total_output_tokens"] == 6
    assert result["output_throughput"] == 3.0
    assert result["request_throughput"] == 1.0
    assert result["total_token_throughput"] == 13.0
    assert result["mean_ttft_ms"] == pytest.approx(200)
    assert result["mean_tpot_ms"] == pytest.approx(150)
    assert result["median_itl_ms"] == pytest.approx(150)
    assert result["p99_e2el_ms"] == pytest.approx(700)


def test_a_trial_without_an_answer_has_no_times() -> None:
    assert "mean_ttft_ms" not in result_of([Timing((), "refused")], LOAD, 1.0)
