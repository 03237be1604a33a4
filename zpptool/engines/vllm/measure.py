# SPDX-License-Identifier: Apache-2.0
"""The process that measures a part of a model on vLLM.

Started as `python -m zpptool.engines.vllm.measure SPEC SOCKET STORE RANK`. The tensor-parallel ranks of a part find
each other through the file STORE.
"""

from __future__ import annotations

import sys
from pathlib import Path

from zpptool.config.stage_spec import spec_from_argv
from zpptool.engines.vllm.measured.part import VllmPart
from zpptool.process.child import end_on_sigterm, run_child
from zpptool.process.measuring import answer_questions


def main() -> None:
    """Answer the questions of the process that started this one."""
    spec, path = spec_from_argv(sys.argv), Path(sys.argv[2])
    end_on_sigterm()
    answer_questions(path, VllmPart(spec, f"file://{sys.argv[3]}", int(sys.argv[4])))


if __name__ == "__main__":
    run_child(f"layers {spec_from_argv(sys.argv).layers}", main)
