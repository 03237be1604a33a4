# SPDX-License-Identifier: Apache-2.0
"""Whether an engine can be used on this machine."""

from __future__ import annotations

import importlib.util
import os

from zpptool.config.engine_kind import ENGINES, Engine
from zpptool.config.runner_choice import refuse_v2_runner
from zpptool.engines.vllm.compat.source_check import require_hooks
from zpptool.errors import usage_error


def check_engine(engine: Engine) -> None:
    """Refuse an engine that is not installed, or a vLLM that lacks what zpptool relies on. The engine is not imported.

    Raises:
        ZppError: (USAGE) the engine is not installed, or the environment chooses vLLM's V2 model runner; (FAILURE) it
            is a release with which zpptool cannot work.
    """
    modules = ENGINES[engine]
    if importlib.util.find_spec(modules.requires) is None:
        raise usage_error(
            f"the engine {engine} needs {modules.requires}, which is not installed",
            f"pip install zpptool[{modules.extra}]",
        )
    if engine is Engine.VLLM:
        refuse_v2_runner(os.environ)
        require_hooks()
