# SPDX-License-Identifier: Apache-2.0
"""The faster way of batching is found, kept, and measured again, with a simulated clock."""

from __future__ import annotations

import pytest

from zpptool.engines.vllm.core.batching_policy import BatchingPolicy
from zpptool.engines.vllm.core.measured_choice import TRY_AGAIN


class Machine:
    """Simulates steps of `running` sequences. A step takes `fixed_s` seconds, and `token_s` for each sequence, on each
    of two stages. With `overlaps`, two divided steps are computed at the same time."""

    def __init__(self, running: int, fixed_s: float, token_s: float, *, overlaps: bool) -> None:
        self.now = 0.0
        self.policy = BatchingPolicy(2, clock=lambda: self.now)
        self._running, self._fixed_s, self._token_s, self._overlaps = running, fixed_s, token_s, overlaps

    def run(self, steps: int) -> float:
        """Compute steps; returns the fraction of their tokens that came from divided steps."""
        divided = total = 0
        for _step in range(steps):
            shares = self.policy.shares(self._running)
            tokens = self._running // 2 if shares else self._running
            stages = 1 if shares and self._overlaps else 2
            self.now += stages * (self._fixed_s + tokens * self._token_s)
            self.policy.step_done(tokens)
            total += tokens
            divided += tokens if shares else 0
        return divided / total


def test_steps_are_divided_where_their_cost_grows_with_their_size() -> None:
    machine = Machine(16, 0.001, 0.010, overlaps=True)
    machine.run(200)
    assert machine.run(2000) > 0.9


def test_steps_are_not_divided_where_their_cost_is_fixed() -> None:
    machine = Machine(16, 0.005, 0.0, overlaps=False)
    machine.run(200)
    assert machine.run(2000) < 0.1


def test_of_two_equally_fast_modes_the_one_with_fewer_steps_is_chosen() -> None:
    machine = Machine(16, 0.010, 0.0, overlaps=True)
    machine.run(200)
    assert machine.run(2000) < 0.1


def test_the_policy_adapts_to_a_machine_that_changes() -> None:
    machine = Machine(16, 0.005, 0.0, overlaps=False)
    machine.run(500)
    machine._overlaps, machine._fixed_s, machine._token_s = True, 0.001, 0.010
    machine.run(40 * TRY_AGAIN)
    assert machine.run(1000) > 0.9


@pytest.mark.parametrize("disturb", ["prompts", "another number"])
def test_a_disturbed_measurement_is_discarded(disturb: str) -> None:
    machine = Machine(16, 0.001, 0.010, overlaps=True)
    machine.run(200)
    for _ in range(50):
        machine.run(3)
        if disturb == "prompts":
            machine.now += 100
            machine.policy.disturbed()
        else:
            machine.policy.shares(1)
            machine.now += 100
    assert machine.run(500) > 0.8
