# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that this user may not read is refused in one line that says so."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from checkpoints import write_checkpoint
from commands import typed_here
from conftest import Ran

from tests.strangers import as_another_user, needs_root, shared_directory
from zpptool.errors import ExitCode

pytestmark = [needs_root, pytest.mark.timeout(60)]

COMMANDS = {
    "split": ["split", "MODEL", "--num-stages", 2, "--dry-run"],
    "plan": ["plan", "MODEL", "--num-stages", 2],
    "validate": ["validate", "MODEL"],
    "validate-ranges": ["validate-ranges", "--model", "MODEL", "--ranges", "0-1", "1-4"],
}
LOCKED = {
    "the folder": ("", 0), "the folder may not be entered": ("", 0o744), "the config": ("config.json", 0),
    "the weights": ("model.safetensors", 0),
}  # fmt: skip


@pytest.fixture
def model() -> Iterator[Path]:
    with shared_directory() as shared:
        yield write_checkpoint(shared / "model")


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    return typed_here(monkeypatch, capsys)


def as_another(typed: Callable[..., Ran], words: Sequence[object], output: Path) -> tuple[int, str]:
    """The exit code and stderr of a command in another user's process."""
    output.touch()
    output.chmod(0o666)

    def run() -> int:
        try:
            ran = typed(*words)
        except BaseException as fault:
            output.write_text("".join(traceback.format_exception(fault)))
            raise
        output.write_text(ran.err)
        return ran.code

    return as_another_user(run), output.read_text()


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("locked", LOCKED)
def test_an_unreadable_file_is_one_line(typed: Callable[..., Ran], model: Path, name: str, locked: str) -> None:
    words = [model if word == "MODEL" else word for word in COMMANDS[name]]
    typed(*words)  # imports what the other user may not be able to read
    file, mode = LOCKED[locked]
    (model / file).chmod(mode)
    code, text = as_another(typed, words, model.parent / "errors")
    if name == "validate-ranges" and locked == "the weights":  # it does not read them
        assert (code, text) == (ExitCode.OK, "")
        return
    assert code == ExitCode.INVALID, text
    assert text.startswith("error: "), text
    assert "Permission denied" in text or (name == "validate" and "holds no stage_0" in text), text
    assert "Traceback" not in text


def test_a_folder_that_may_only_be_entered_is_not_called_empty(typed: Callable[..., Ran], model: Path) -> None:
    words = ["split", model, "--num-stages", 2, "--dry-run"]
    typed(*words)
    model.chmod(0o711)
    code, text = as_another(typed, words, model.parent / "errors")
    assert code == ExitCode.INVALID
    assert text.startswith(f"error: {model} cannot be read: Permission denied")
