# SPDX-License-Identifier: Apache-2.0
"""Every command line in the docs is run, in the order of its page, beside a tiny checkpoint called MODEL.

What would run for hours, needs other machines or fetches from the Hub is parsed by the command itself. Of others
the shell checks the syntax, and only known ones may be named. Output that follows from the command alone is compared.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import typer.main
import yaml
from checkpoints import llama, llama_config, write_checkpoint
from commands import typed_here
from conftest import Ran
from typer.core import TyperGroup

from zpptool.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted(ROOT.glob("docs/**/*.md"))
PAGES = sorted([*DOCS, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"))])
RUN = {"split", "join", "keys", "validate", "validate-ranges", "plan-ports", "plan", "deploy", "config"}
EXACT = {"plan-ports", "validate-ranges"}
"""Commands whose output depends on their arguments alone."""
OTHER_PROGRAMS = {
    "pip", "make", "rsync", "curl", "docker", "kubectl", "systemctl", "useradd", "install", ".venv/bin/python",
}  # fmt: skip
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#:\s]+)(#[\w-]+)?\)")


@dataclass
class Line:
    """One command line of a page, and the output that is shown below it."""

    text: str
    output: list[str] = field(default_factory=list)

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    @property
    def environment(self) -> dict[str, str]:
        """What is set before the program's name."""
        return dict(word.split("=", 1) for word in self.words[: self.words.index(self.program)])

    @property
    def program(self) -> str:
        return next(word for word in self.words if not re.match(r"[A-Z_]+=", word))

    @property
    def arguments(self) -> list[str]:
        return self.words[self.words.index(self.program) + 1 :]


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in _BLOCK.findall(page.read_text()) if kind == language]


def lines(page: Path) -> list[Line]:
    """The command lines of a page; a backslash at the end continues a line."""
    found: list[Line] = []
    for block in blocks(page, "console"):
        continued = False
        for text in block.splitlines():
            if text.startswith("$ "):
                found.append(Line(text[2:]))
            elif continued:
                found[-1].text += "\n" + text
            else:
                found[-1].output.append(text)
            continued = (text.startswith("$ ") or continued) and text.endswith("\\")
    return found


def parse(arguments: list[str]) -> None:
    """Parse a command line with zpptool's own parser, without running it; raises the parser's own error."""
    command = typer.main.get_command(app)
    words = arguments[: arguments.index("--")] if "--" in arguments else list(arguments)
    context = command.make_context("zpptool", list(words))
    while words and words[0].startswith("-"):  # options of zpptool itself, each with a value
        del words[: 1 if "=" in words[0] else 2]
    while words and isinstance(command, TyperGroup):
        name = words.pop(0)
        if name not in command.commands:
            raise typer.BadParameter(f"No such command {name!r}.")
        command = command.commands[name]
        if not isinstance(command, TyperGroup):
            command.make_context(name, words, parent=context)


def runs(line: Line) -> bool:
    """Whether a line can be run beside a tiny checkpoint, on any machine."""
    arguments = line.arguments
    remote = any(word.startswith("hf://") for word in arguments)
    return not remote and "--check" not in arguments and any(word in RUN for word in arguments[:3])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_line_of_a_page_is_taken(page: Path) -> None:
    for line in lines(page):
        if line.program == "zpptool":
            if page not in DOCS or not runs(line):  # the others are run below
                parse(line.arguments)
        else:
            assert line.program in OTHER_PROGRAMS, f"{page.name}: {line.text}"
            checked = subprocess.run(["bash", "-n", "-c", line.text], capture_output=True, timeout=30, check=False)
            assert checked.returncode == 0, line.text


def test_a_line_that_is_wrong_is_not_taken() -> None:
    wrong = {
        "No such command": ["plan-prts"],
        "No such option": ["plan-ports", "--num-stage-count", "2"],
        "valid integer": ["plan-ports", "--num-stages", "two"],
        "Missing (option|parameter)": ["plan-ports"],
    }
    for message, arguments in wrong.items():
        with pytest.raises(Exception, match=message):
            parse(arguments)


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_the_commands_of_a_page_do_what_it_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_checkpoint(tmp_path / "MODEL", llama(), llama_config(num_attention_heads=2))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copy(ROOT / "examples/devices.yaml", tmp_path)
    for text in blocks(page, "yaml"):
        if named := re.match(r"# (\S+\.yaml)\n", text):
            (tmp_path / named[1]).write_text(text)
    run: Callable[..., Ran] = typed_here(monkeypatch, capsys)
    for line in lines(page):
        if line.program != "zpptool" or not runs(line):
            continue
        # A page may show one command twice, with other options; each is run on its own.
        writes = set(line.arguments) & {"split", "plan", "deploy", "generate"} and "-h" not in line.arguments
        again = ["--force"] if writes else []
        own = line.arguments.index("--") if "--" in line.arguments else len(line.arguments)
        with monkeypatch.context() as environment:
            for name, value in line.environment.items():
                environment.setenv(name, value)
            ran = run(*line.arguments[:own], *again, *line.arguments[own:])
        assert ran.code == 0, f"{page.name}: {line.text}\n{ran.err}"
        if line.output and line.arguments[0] in EXACT:
            assert ran.out.rstrip().splitlines() == [text.rstrip() for text in line.output], line.text


@pytest.mark.model
def test_the_readme_shows_what_split_prints(
    real_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = next(line for line in lines(ROOT / "README.md") if line.program == "zpptool" and line.output)
    assert shown.arguments[0] == "split"
    (tmp_path / shown.arguments[1]).parent.mkdir(parents=True)
    (tmp_path / shown.arguments[1]).symlink_to(real_model)
    monkeypatch.chdir(tmp_path)
    printed = typed_here(monkeypatch, capsys)(*shown.arguments).out
    assert printed.split() == " ".join(shown.output).split()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_has_a_target(page: Path) -> None:
    for target, part in _LINK.findall(page.read_text()):
        other = page.parent / target
        assert other.exists(), f"{page.name} links to {target}"
        if part:
            titles = re.findall(r"^#+ (.+)$", other.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert part[1:] in anchors, f"{page.name} links to {target}{part}"


def test_every_command_has_its_section_and_every_page_its_place() -> None:
    sections = set(re.findall(r"^## ([\w-]+)$", (ROOT / "docs/commands.md").read_text(), re.MULTILINE))
    assert sections == set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())

    def pages(items: object) -> list[str]:
        if isinstance(items, str):
            return [items]
        parts = items.values() if isinstance(items, dict) else items
        return [page for part in parts for page in pages(part)]  # type: ignore[union-attr]

    docs = ROOT / "docs"
    assert sorted(pages(site["nav"])) == sorted(str(path.relative_to(docs)) for path in docs.glob("**/*.md"))
