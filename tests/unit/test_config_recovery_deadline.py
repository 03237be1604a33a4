# SPDX-License-Identifier: Apache-2.0
"""The time that a lost stage has: the user's, or one that depends on the device."""

from __future__ import annotations

from zpptool.config.recovery_deadline import CPU_S, GPU_S, recovery_deadline_s


def test_a_gpu_has_longer_unless_the_user_says() -> None:
    assert recovery_deadline_s(None, on_cpu=True) == CPU_S == 120
    assert recovery_deadline_s(None, on_cpu=False) == GPU_S > CPU_S
    for on_cpu in (True, False):
        assert recovery_deadline_s(0.0, on_cpu=on_cpu) == 0.0
        assert recovery_deadline_s(7.0, on_cpu=on_cpu) == 7.0
