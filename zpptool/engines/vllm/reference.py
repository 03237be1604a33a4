# SPDX-License-Identifier: Apache-2.0
"""The unsplit model for a comparison: what `vllm serve MODEL` runs, with the comparison's arguments and no code of
zpptool in it.

Started as `python -m zpptool.engines.vllm.reference SPEC`.
"""

from __future__ import annotations

import sys

from zpptool.config.stage_spec import spec_from_argv
from zpptool.engines.vllm.compat.arguments import serve_arguments
from zpptool.engines.vllm.compat.server import serve_openai_api
from zpptool.process.child import run_child


def main() -> None:
    """Serve the OpenAI API until a signal ends it."""
    serve_openai_api(serve_arguments(spec_from_argv(sys.argv), None))


if __name__ == "__main__":
    run_child("reference", main)
