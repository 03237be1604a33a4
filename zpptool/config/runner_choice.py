# SPDX-License-Identifier: Apache-2.0
"""Which of vLLM's two model runners the processes of a pipeline use: V1, the one whose steps zpptool carries.

On CUDA, vLLM 0.32 and 0.33 take V2 by default. Its last stage returns tokens in another form and sends them to the
other stages in a way of its own, so that a pipeline would end at its first token. A variable of the environment
decides, and every process of a pipeline inherits it.
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


def refuse_v2_runner(env: Mapping[str, str]) -> None:
    """Refuse an environment in which vLLM would take V2, or that vLLM could not read.

    Raises:
        ZppError: (USAGE) the variable is set, and not to 0.
    """
    value = env.get(VARIABLE, "")
    if value not in ("", "0"):
        raise usage_error(
            f"{VARIABLE}={value}: zpptool does not carry vLLM's V2 model runner yet",
            f"Unset it, or set {VARIABLE}=0: vLLM then uses its V1 model runner.",
        )


def choose_v1_runner() -> None:
    """Decide for V1 in this process, for good, where nothing has decided yet.

    Raises:
        ZppError: (USAGE) the user has decided for V2.
    """
    refuse_v2_runner(os.environ)
    os.environ.update(runner_environment(os.environ))
