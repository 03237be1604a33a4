# SPDX-License-Identifier: Apache-2.0
"""Run a module as a child of the process that started it.

Usage: `python -m zpptool.process.run_module MODULE ARGUMENT...`.

The invariant: the parent is watched from the beginning. An engine takes many seconds to be imported, and a parent that
is killed meanwhile must not leave a child that has yet to learn of it.
"""

from __future__ import annotations

import runpy
import sys

from zpptool.process.child import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
