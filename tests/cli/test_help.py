# SPDX-License-Identifier: Apache-2.0
"""Every command and every option has help, and every command has examples that its parser accepts."""

from __future__ import annotations

import importlib.metadata
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.core
import typer.main
from conftest import Ran

from zpptool import __version__
from zpptool.cli.app import app
from zpptool.cli.examples import EXAMPLES


def every_command(group: typer.core.TyperGroup, before: str = "") -> dict[str, typer.core.TyperCommand]:
    """The commands by name, those of groups too: `keys generate`."""
    found = {}
    for name, command in group.commands.items():
        found[before + name] = command
        if hasattr(command, "commands"):
            found |= every_command(command, f"{before}{name} ")
    return found


COMMANDS = every_command(typer.main.get_command(app))  # type: ignore[arg-type]

# The flags of the fork's own command lines, under the command that does their work here. Scripts carry them.
PRIOR_ART_FLAGS = {
    "validate-ranges": ["--total-layers", "--ranges", "--model", "--num-stages"],
    "split": ["--model", "--pipeline-parallel-size", "--output-dir"],
    "test-pipeline": ["--pipeline-dir", "--num-stages", "--test-input", "--device", "--multiprocess"],
    "run-stage": [
        "--pipeline-stage-mode", "--pipeline-stage-idx", "--pipeline-total-stages", "--pipeline-layer-range",
        "--pipeline-local-bind-port", "--pipeline-prev-stage-service-addr", "--pipeline-prev-stage-addr",
        "--pipeline-next-stage-addr", "--external-pp-worker", "--tensor-parallel-size", "--port",
    ],
}  # fmt: skip


def test_the_versions_are_those_that_are_installed(zpptool) -> None:
    own, *others = zpptool("--version").out.splitlines()
    assert own == f"zpptool {__version__}"
    shown = dict(line.split(" ", 1) for line in others)
    assert list(shown) == ["vllm", "torch", "transformers", "pyzmq"]
    assert shown["pyzmq"] == importlib.metadata.version("pyzmq")


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_examples_of_a_command_are_under_its_help_and_are_taken(name: str, zpptool) -> None:
    shown = " ".join(zpptool(*name.split(), "--help").out.split())
    for line in EXAMPLES[name]:
        assert line in shown
        words = shlex.split(line)
        own = words[1 + len(name.split()) : words.index("--") if "--" in words else None]
        assert shlex.join(words[1:]).startswith(name)
        COMMANDS[name].make_context(name, own)


def test_every_command_has_examples() -> None:
    groups = {name for name, command in COMMANDS.items() if hasattr(command, "commands")}
    assert set(COMMANDS) - groups == set(EXAMPLES)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_and_all_its_options_have_help(name: str, zpptool) -> None:
    command = COMMANDS[name]
    assert command.help
    for parameter in command.params:
        assert parameter.hidden or parameter.help, f"{name} {parameter.opts} has no help"
    ran: Ran = zpptool(*name.split(), "--help")
    assert ran.code == 0
    assert name in ran.out


@pytest.mark.parametrize("name", sorted(PRIOR_ART_FLAGS))
def test_the_flags_of_the_prior_art_are_still_taken(name: str) -> None:
    taken = {flag for parameter in COMMANDS[name].params for flag in parameter.opts}
    assert set(PRIOR_ART_FLAGS[name]) <= taken


def test_short_help_works_for_commands_too(zpptool) -> None:
    assert "zpptool plan-ports" in zpptool("plan-ports", "-h").out


def test_an_unknown_command_is_a_usage_error(zpptool) -> None:
    ran = zpptool("nonsense")
    assert ran.code == 2
    assert "nonsense" in ran.err
    assert not ran.out


def run_without(packages: tuple[str, ...], *words: object) -> subprocess.CompletedProcess[str]:
    """Run the command line as in an installation that lacks these packages."""
    script = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {packages!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from zpptool.cli.app import main\n"
        "main()\n"
    )
    argv = [sys.executable, "-c", script, *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "words", [("serve", "MODEL"), ("status",), ("top",), ("rollout", "--url", "http://127.0.0.1:1")], ids=" ".join
)
def test_a_command_that_needs_an_extra_says_which(words: tuple[str, ...]) -> None:
    ran = run_without(("httpx", "starlette", "uvicorn"), *words)
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    assert "which is not installed" in ran.stderr
    assert "pip install 'zpptool[serve]'" in ran.stderr


@pytest.mark.parametrize("words", [("run-stage", "--stage-idx", "0"), ("serve", "--port", "0")], ids=" ".join)
def test_without_vllm_the_other_engine_is_named(words: tuple[str, ...], tiny_model: Callable[..., Path]) -> None:
    pytest.importorskip("transformers")
    ran = run_without(("vllm",), *words, "--model", tiny_model("llama"), "--num-stages", 2)
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
    assert "the engine vllm needs vllm, which is not installed" in ran.stderr
    assert "Use --engine transformers, which is installed" in ran.stderr
