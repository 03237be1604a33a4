# SPDX-License-Identifier: Apache-2.0
"""The command line in this process, for the many lines that differ little: a process of its own takes half a second."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

import pytest
from conftest import Ran

from zpptool.cli.app import main
from zpptool.log import FORMAT_VARIABLE, LEVEL_VARIABLE


def typed_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """A function that runs `zpptool` with these words, as the fixture `zpptool` does."""

    def run(*words: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["zpptool", *map(str, words)])
        capsys.readouterr()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        logging_before = {name: os.environ.get(name) for name in (LEVEL_VARIABLE, FORMAT_VARIABLE)}
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for name, value in logging_before.items():  # a process sets them for its children
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
        printed = capsys.readouterr()
        return Ran(int(ended.value.code or 0), printed.out, printed.err)

    return run
