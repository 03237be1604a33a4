# SPDX-License-Identifier: Apache-2.0
"""The unsplit model for a trial: what `vllm serve MODEL` runs, with the trial's arguments and nothing of ours in it.

Started as `python -m zpptool.engines.vllm.reference SPEC`.
"""

from __future__ import annotations

import sys

import uvloop

from zpptool.config.stage_spec import spec_from_argv
from zpptool.engines.vllm.compat import access as hooks
from zpptool.process.child import run_child


def main() -> None:
    """Serve the OpenAI API until told to stop."""
    uvloop.run(hooks.run_server(hooks.serve_arguments(spec_from_argv(sys.argv), None)))


if __name__ == "__main__":
    run_child("reference", main)
