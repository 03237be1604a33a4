# SPDX-License-Identifier: Apache-2.0
"""vLLM's OpenAI server."""

from __future__ import annotations

import argparse

import uvloop
from vllm.entrypoints.launchers.api_server.entry import run_server


def serve_openai_api(args: argparse.Namespace) -> None:
    """Serve until a signal ends it, or its engine core dies.

    Args:
        args: as `serve_arguments` returns them.
    """
    uvloop.run(run_server(args))
