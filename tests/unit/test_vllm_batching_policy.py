# SPDX-License-Identifier: Apache-2.0
"""The faster way of making steps is found, kept, and tried anew; by a clock that the test turns."""

from __future__ import annotations

import pytest

from zpptool.engines.vllm.core.batching_policy import TRY_AGAIN, BatchingPolicy


class Machine:
    """Computes steps of `running` sequences: each costs `fixed_s` and `token_s` a sequence, on each of two stages; two
    steps overlap where there are two, and the fixed part does not where the machine has one core."""

    def __init__(self, running: int, fixed_s: float, token_s: float, *, overlaps: bool) -> None:
        self.now = 0.0
        self.pace = BatchingPolicy(2, clock=lambda: self.now)
        self._running, self._fixed_s, self._token_s, self._overlaps = running, fixed_s, token_s, overlaps

    def run(self, steps: int) -> float:
        """Compute; which part of the steps' tokens came of shared steps."""
        shared = total = 0
        for _step in range(steps):
            shares = self.pace.shares(self._running)
            tokens = self._running // 2 if shares else self._running
            stages = 1 if shares and self._overlaps else 2
            self.now += stages * (self._fixed_s + tokens * self._token_s)
            self.pace.step_done(tokens)
            total += tokens
            shared += tokens if shares else 0
        return shared / total


def test_a_model_whose_steps_grow_with_what_they_hold_is_shared_out() -> None:
    machine = Machine(16, 0.001, 0.010, overlaps=True)
    machine.run(200)
    assert machine.run(2000) > 0.9


def test_a_model_whose_steps_cost_the_same_whatever_they_hold_is_not() -> None:
    machine = Machine(16, 0.005, 0.0, overlaps=False)
    machine.run(200)
    assert machine.run(2000) < 0.1


def test_of_two_ways_that_are_alike_the_one_with_fewer_steps_is_taken() -> None:
    machine = Machine(16, 0.010, 0.0, overlaps=True)
    machine.run(200)
    assert machine.run(2000) < 0.1


def test_a_machine_that_changes_is_followed() -> None:
    machine = Machine(16, 0.005, 0.0, overlaps=False)
    machine.run(500)
    machine._overlaps, machine._fixed_s, machine._token_s = True, 0.001, 0.010
    machine.run(40 * TRY_AGAIN)
    assert machine.run(1000) > 0.9


@pytest.mark.parametrize("disturb", ["prompts", "another number"])
def test_what_is_disturbed_is_not_learnt_from(disturb: str) -> None:
    machine = Machine(16, 0.001, 0.010, overlaps=True)
    machine.run(200)
    for _ in range(50):
        machine.run(3)
        if disturb == "prompts":
            machine.now += 100
            machine.pace.disturbed()
        else:
            machine.pace.shares(1)
            machine.now += 100
    assert machine.run(500) > 0.8
