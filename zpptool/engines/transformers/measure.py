# SPDX-License-Identifier: Apache-2.0
"""The process that measures a part of a transformers model.

Started as `python -m zpptool.engines.transformers.measure SPEC SOCKET STORE RANK`; this engine uses neither of the last
two.
"""

from __future__ import annotations

import sys
from pathlib import Path

from zpptool.config.stage_spec import spec_from_argv
from zpptool.engines.transformers.measured_part import TransformersPart
from zpptool.process.child import end_on_sigterm, run_child
from zpptool.process.measuring import answer_questions


def main() -> None:
    """Answer the questions of the process that started this one."""
    spec, path = spec_from_argv(sys.argv), Path(sys.argv[2])
    end_on_sigterm()
    answer_questions(path, TransformersPart(spec))


if __name__ == "__main__":
    run_child(f"layers {spec_from_argv(sys.argv).layers}", main)
