# SPDX-License-Identifier: Apache-2.0
"""What may import what: the floors of the house hold, and the light commands load nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from zpptool.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "vllm", "safetensors", "numpy")


def loaded_by(words: list[str]) -> set[str]:
    """The top-level modules that are loaded once `zpptool` has run with these words."""
    script = (
        "import sys, atexit\n"
        "atexit.register(lambda: print('LOADED', *{name.partition('.')[0] for name in sys.modules}))\n"
        f"sys.argv = ['zpptool', *{words!r}]\n"
        "from zpptool.cli.app import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("LOADED")[2].split())


def command_names() -> list[str]:
    return sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_help_loads_nothing_heavy() -> None:
    heavy = {*HEAVY, "httpx", "huggingface_hub", "psutil", "pydantic", "starlette", "zmq"}
    assert loaded_by(["--help"]).isdisjoint(heavy)


@pytest.mark.parametrize("name", command_names())
def test_the_help_of_a_command_loads_nothing_heavy(name: str) -> None:
    assert loaded_by([name, "--help"]).isdisjoint(HEAVY)


def test_checking_ranges_and_ports_loads_nothing_heavy() -> None:
    for words in (["validate-ranges", "0-8", "--total-layers", "8"], ["plan-ports", "--num-stages", "2", "--json"]):
        assert loaded_by(words).isdisjoint({*HEAVY, "zmq"})


def test_a_floor_imports_only_floors_below_it() -> None:
    script = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_llm_class_without_vllm_says_what_to_install() -> None:
    script = "import sys; sys.modules['vllm'] = None; sys.path.insert(0, '.'); import zpptool; zpptool.LLM"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert "ImportError: zpptool.LLM needs vllm, which is not installed: pip install 'zpptool[vllm]'" in done.stderr
