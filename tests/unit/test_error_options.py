# SPDX-License-Identifier: Apache-2.0
"""Options that errors and their hints name exist: those of zpptool by its recorded flags, others by a list."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ERRORS = {"usage_error", "invalid_error", "address_error", "stage_error", "ZppError", "with_hint"}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
OF_OTHERS = {
    "--config", "--data-parallel-size", "--dequantize", "--help", "--no-enable-flash-late-interaction",
    "--pipeline-parallel-size",
}  # fmt: skip
"""vLLM's own, MLX's `--dequantize`, and the help of every command."""


def options_in_errors() -> dict[str, str]:
    """The options in texts of errors, each with a file that names it."""
    found = {}
    for path in (ROOT / "zpptool").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ERRORS:
                texts = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
                for text in texts:
                    found |= dict.fromkeys(OPTION.findall(text), path.name) if isinstance(text, str) else {}
    return found


def test_every_option_that_an_error_names_exists() -> None:
    flags = json.loads((ROOT / "tests/cli/flags.json").read_text())
    known = OF_OTHERS.union(*flags.values())
    found = options_in_errors()
    assert len(found) > 20
    assert {name: file for name, file in found.items() if name not in known} == {}
