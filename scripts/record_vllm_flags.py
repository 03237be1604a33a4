# SPDX-License-Identifier: Apache-2.0
"""Record the flags of `vllm serve` of the installed release, so that zpptool can check them without vLLM.

    python scripts/record_vllm_flags.py

Writes zpptool/config/vllm_flags/RELEASE.json: each flag, and how many values it takes. Run it once for each release.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import vllm

from zpptool.config.engine_flags import RECORDS, FlagKind, release_of
from zpptool.engines.vllm.compat.arguments import serve_parser

NOT_FOR_STAGES = {"-h", "--help", "--config"}
"""vLLM's help, and its own file of flags, which zpptool reads as --vllm-config."""


def kind_of(action: argparse.Action) -> FlagKind:
    """How many values a flag takes."""
    if action.nargs == 0:
        return FlagKind.NONE
    return {None: FlagKind.ONE, 1: FlagKind.ONE, "?": FlagKind.MAYBE}.get(action.nargs, FlagKind.MANY)


def main() -> None:
    flags = {
        name: kind_of(action).value
        for action in serve_parser()._actions
        for name in action.option_strings
        if name not in NOT_FOR_STAGES
    }
    release = release_of(vllm.__version__)
    path = Path(RECORDS) / f"{release}.json"
    path.write_text(json.dumps({"vllm": release, "flags": dict(sorted(flags.items()))}, indent=1) + "\n")
    print(f"{path}: {len(flags)} flags")


if __name__ == "__main__":
    main()
