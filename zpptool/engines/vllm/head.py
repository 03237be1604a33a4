# SPDX-License-Identifier: Apache-2.0
"""The head process: vLLM's own OpenAI server and scheduler, with the ring as their executor.

Started beside stage 0 as `python -m zpptool.engines.vllm.head SPEC`.
"""

from __future__ import annotations

import sys

import vllm

from zpptool.config.stage_spec import spec_from_argv
from zpptool.engines.vllm.compat.arguments import serve_arguments
from zpptool.engines.vllm.compat.env_variables import set_layer_partition
from zpptool.engines.vllm.compat.input_processor import refuse_requests
from zpptool.engines.vllm.compat.media import failed_loads_are_client_errors
from zpptool.engines.vllm.compat.server import serve_openai_api
from zpptool.engines.vllm.compat.source_check import version_warning
from zpptool.engines.vllm.compat.unsupported import vllms_refusal
from zpptool.engines.vllm.core.executor import RingExecutor, end_file, fault_file
from zpptool.engines.vllm.request_check import check_request
from zpptool.errors import ZppError, stage_error
from zpptool.log import place_logger
from zpptool.places import HEAD
from zpptool.process.child import run_child
from zpptool.process.environment import set_head_spec
from zpptool.process.signals import on_end_of_requests

_log = place_logger(__name__, HEAD)


def main() -> None:
    """Serve the OpenAI API until a signal ends it.

    When vLLM's engine core has died, vLLM's API server returns as it does after an orderly shutdown; the files of the
    engine core tell the two apart.

    Raises:
        ZppError: (STAGE) the pipeline broke; (USAGE) vLLM refuses its arguments; (FAILURE) the engine core has died.
    """
    on_end_of_requests()
    spec = spec_from_argv(sys.argv)
    set_layer_partition(spec)
    warning = version_warning(vllm.__version__)
    if warning:
        _log.warning(warning)
    set_head_spec(spec)
    end_file(spec).unlink(missing_ok=True)
    refuse_requests(check_request)
    failed_loads_are_client_errors()
    try:
        serve_openai_api(serve_arguments(spec, RingExecutor))
    except Exception as cause:  # vLLM raises many types for arguments that it refuses
        refusal = vllms_refusal(cause)
        if refusal is None:
            raise
        raise refusal from cause
    finally:
        fault = fault_file(spec)
        if fault.exists():
            raise stage_error(fault.read_text())
    error = end_file(spec).read_text() if end_file(spec).exists() else "it reported no error"
    if error:
        raise ZppError(f"vLLM's engine core has died: {error}")  # FAILURE: the supervisor restarts the head


if __name__ == "__main__":
    run_child("head", main)
