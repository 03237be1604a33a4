# SPDX-License-Identifier: Apache-2.0
"""The man pages say what --help says, and groff accepts them; completion comes from the same commands."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from zpptool.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import man_pages  # noqa: E402

PAGES = dict(man_pages.pages(typer.main.get_command(app)))


def test_there_is_a_page_for_every_command() -> None:
    assert {"zpptool.1", "zpptool-split.1", "zpptool-keys-generate.1"} <= set(PAGES)
    assert "zpptool\\-split" in PAGES["zpptool.1"]
    assert "\\-\\-num\\-stages" in PAGES["zpptool-split.1"]
    assert "zpptool split MODEL \\-\\-num\\-stages 4" in PAGES["zpptool-split.1"]


def test_what_roff_would_interpret_is_escaped() -> None:
    assert man_pages.escaped(".cache it's a\\b -x") == "\\&.cache it\\(aqs a\\eb \\-x"


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff")
def test_groff_formats_every_page_without_a_warning() -> None:
    command = ["groff", "-man", "-Tutf8", "-ww", "-z"]
    text = "".join(PAGES.values())
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_the_command(shell: str, zpptool) -> None:
    ran = zpptool("--show-completion", shell)
    assert ran.code == 0
    assert "_ZPPTOOL_COMPLETE" in ran.out
