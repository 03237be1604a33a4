# SPDX-License-Identifier: Apache-2.0
"""Starts `zpptool run-batch` many times quickly: this process has imported everything, and forks for each start.

Each line of standard input is a number of seconds and the words of a command, as JSON; the command is killed with
SIGKILL when it still runs after so long. The answer is its exit code, negative for a signal, on a line of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Forks:
    """A process that starts commands.

    Args:
        process: this module, run as a program.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, kill_after_s: float, *words: object) -> int:
        """Run a command; return its exit code, -9 if it was killed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([kill_after_s, *map(str, words)]) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@contextmanager
def forks(log: Path) -> Iterator[Forks]:
    """A process that starts commands, whose output goes to a file."""
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, text=True
        )
    try:
        yield Forks(process)
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Start commands until standard input ends."""
    import zpptool.batch.command
    import zpptool.cli.run_batch  # noqa: F401
    from zpptool.cli.app import main as command

    for line in sys.stdin:
        kill_after_s, *words = json.loads(line)
        child = os.fork()
        if child == 0:
            os.dup2(2, 1)
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, 0)
            sys.stdin = open(0)  # noqa: SIM115
            sys.argv = ["zpptool", *words]
            try:
                command()
            except SystemExit as ended:
                os._exit(int(ended.code or 0))
            except BaseException:
                os._exit(99)
            os._exit(0)
        timer = threading.Timer(kill_after_s, os.kill, (child, signal.SIGKILL))
        timer.start()
        status = os.waitpid(child, 0)[1]
        timer.cancel()
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
