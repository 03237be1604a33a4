# SPDX-License-Identifier: Apache-2.0
"""Whether an engine can be used on this machine."""

from __future__ import annotations

import importlib.util
import os

from zpptool.config.engine_kind import ENGINES, Engine
from zpptool.config.runner_choice import check_runner_choice
from zpptool.engines.vllm.compat.source_check import require_hooks
from zpptool.errors import usage_error


def check_engine(engine: Engine) -> None:
    """Refuse an engine that is not installed, or a vLLM that lacks what zpptool relies on. The engine is not imported.

    Raises:
        ZppError: (USAGE) the engine is not installed, or the environment names no model runner of vLLM; (FAILURE) it
            is a release with which zpptool cannot work.
    """
    modules = ENGINES[engine]
    if not _is_installed(engine):
        other = next((each for each in Engine if each is not engine and _is_installed(each)), None)
        instead = f"Use --engine {other}, which is installed, or: " if other else ""
        raise usage_error(
            f"the engine {engine} needs {modules.requires}, which is not installed",
            f"{instead}{modules.install}",
        )
    if engine is Engine.VLLM:
        check_runner_choice(os.environ)
        require_hooks()


def _is_installed(engine: Engine) -> bool:
    try:
        return importlib.util.find_spec(ENGINES[engine].requires) is not None
    except (ImportError, ValueError):  # ValueError: its entry in sys.modules is None
        return False
