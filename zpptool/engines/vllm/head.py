# SPDX-License-Identifier: Apache-2.0
"""The head process: vLLM's own OpenAI server and scheduler, with the ring as their executor.

Started beside stage 0 as `python -m zpptool.engines.vllm.head SPEC`.
"""

from __future__ import annotations

import os
import sys

import uvloop
import vllm

from zpptool.config.stage_spec import spec_from_argv
from zpptool.engines.vllm.compat import access as hooks
from zpptool.engines.vllm.compat.source_check import version_warning
from zpptool.engines.vllm.compat.unsupported import vllms_refusal
from zpptool.engines.vllm.core.executor import SPEC_VARIABLE, RingExecutor, end_file, fault_file
from zpptool.errors import ZppError, stage_error
from zpptool.log import say
from zpptool.process.child import run_child


def main() -> None:
    """Serve the OpenAI API until told to stop.

    The API server ends by itself, and as if all were well, when its engine core has died.

    Raises:
        ZppError: (STAGE) the pipeline broke; (USAGE) vLLM refuses its arguments; (FAILURE) the engine core has died.
    """
    spec = spec_from_argv(sys.argv)
    hooks.prepare_environment(spec)
    warning = version_warning(vllm.__version__)
    if warning:
        say("head", warning)
    os.environ[SPEC_VARIABLE] = spec.to_json()
    end_file(spec).unlink(missing_ok=True)
    try:
        uvloop.run(hooks.run_server(hooks.serve_arguments(spec, RingExecutor)))
    except Exception as cause:
        refusal = vllms_refusal(cause)
        if refusal is None:
            raise
        raise refusal from cause
    finally:
        word = fault_file(spec)
        if word.exists():
            raise stage_error(word.read_text())
    last = end_file(spec).read_text() if end_file(spec).exists() else "it left no word"
    if last:
        raise ZppError(f"vLLM's engine core has died: {last}")  # whoever keeps the head up starts it anew


if __name__ == "__main__":
    run_child("head", main)
