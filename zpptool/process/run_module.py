# SPDX-License-Identifier: Apache-2.0
"""Run a module as a child of the process that started it.

Usage: `python -m zpptool.process.run_module MODULE ARGUMENT...`.

The invariant: the parent is watched from the beginning. Importing an engine takes many seconds, and a child whose
parent is killed meanwhile has to end too.
"""

from __future__ import annotations

import runpy
import sys

from zpptool.process.child import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
