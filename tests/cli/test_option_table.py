# SPDX-License-Identifier: Apache-2.0
"""docs/configuration.md names every option of every command, by the flags that tests/cli/flags.json records."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ON_EVERY_COMMAND = {"--install-completion", "--show-completion", "--version"}


def option_rows() -> list[str]:
    """The rows that the table should have."""
    flags = json.loads((ROOT / "tests/cli/flags.json").read_text())
    rows = []
    for command, options in flags.items():
        names = [f"`{name}`" for name in options if name.startswith("--") and name not in ON_EVERY_COMMAND]
        rows.append(f"| `{command}` | {', '.join(names)} |")
    return rows


def test_the_table_of_options_is_complete_and_current() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    table = page[page.index("## Options by command") :]
    found = [line for line in table.splitlines() if line.startswith("| `")]
    assert found == option_rows(), "the rows should be:\n" + "\n".join(option_rows())
