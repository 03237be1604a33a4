# SPDX-License-Identifier: Apache-2.0
"""Which of vLLM's two model runners the processes of a pipeline use: V1, unless the user chooses V2.

On CUDA, vLLM 0.32 and 0.33 use V2 by default. Stages run both. No stage has run V2 on a GPU yet, and so V1 is the
default here. A variable of the environment decides, and every process of a pipeline inherits it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from zpptool.errors import usage_error

VARIABLE = "VLLM_USE_V2_MODEL_RUNNER"
"""vLLM's own: 0 for V1, 1 for V2; without it vLLM chooses by device and features."""


def runner_environment(env: Mapping[str, str]) -> dict[str, str]:
    """What is added to the environment of a process of a pipeline: V1, unless `env` decides.

    Args:
        env: the environment that the process inherits.
    """
    return {} if env.get(VARIABLE) else {VARIABLE: "0"}


def check_runner_choice(env: Mapping[str, str]) -> None:
    """Refuse an environment whose choice is neither V1 nor V2.

    Raises:
        ZppError: (USAGE) the variable is set, and to neither 0 nor 1.
    """
    value = env.get(VARIABLE, "")
    if value not in ("", "0", "1"):
        raise usage_error(
            f"{VARIABLE}={value} is neither of vLLM's model runners",
            "Unset it or set it to 0 for V1, or to 1 for V2.",
        )


def choose_runner() -> None:
    """Decide for V1 in this process, for good, where nothing has decided yet.

    Raises:
        ZppError: (USAGE) the environment names neither runner.
    """
    check_runner_choice(os.environ)
    os.environ.update(runner_environment(os.environ))
