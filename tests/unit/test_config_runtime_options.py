# SPDX-License-Identifier: Apache-2.0
"""Options of how a stage runs that contradict each other are refused."""

from __future__ import annotations

import pytest

from zpptool.config.runtime_options import RuntimeOptions, refuse_idle_standby
from zpptool.errors import ExitCode, ZppError


def test_spares_need_a_pipeline_that_survives_a_loss() -> None:
    refuse_idle_standby(0, RuntimeOptions().recovery_deadline_s)
    refuse_idle_standby(2, 1.0)
    with pytest.raises(ZppError, match="--standby is for a pipeline that survives the loss of a stage") as refused:
        refuse_idle_standby(1, 0.0)
    assert refused.value.exit_code is ExitCode.USAGE
