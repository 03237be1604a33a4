# SPDX-License-Identifier: Apache-2.0
"""A stage that joins and starts nothing: a process with the token's file as its argument, and its own state directory.

It prints the path of its key file, and goes on until its standard input ends, as stage 0 does beside its listener.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from zpptool.errors import ZppError
from zpptool.invites.join import joined
from zpptool.invites.saved import given_invite
from zpptool.log import configure


class Joining:
    """One such process.

    Args:
        invite: the token's file.
        home: its XDG_STATE_HOME.
        log: where its messages go.
    """

    def __init__(self, invite: Path, home: Path, log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(invite)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, text=True,
                env={**os.environ, "XDG_STATE_HOME": str(home)},
            )  # fmt: skip

    def key_file(self) -> Path:
        """Its key file, once it has joined; fails if it has not."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log.read_text()
        return Path(line.strip())

    def failure(self, timeout_s: float = 30) -> tuple[int, str]:
        """The exit code and the messages of one that cannot join."""
        self.process.wait(timeout_s)
        return self.process.returncode, self.log.read_text()

    def close(self) -> None:
        """End it, and what it has started: one that has not joined would go on waiting."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            self.process.wait(20)


if __name__ == "__main__":
    configure(place="join")
    try:
        with joined(given_invite(sys.argv[1])) as found:
            print(found.keys, flush=True)
            sys.stdin.read()
    except ZppError as fault:
        print(fault.message, file=sys.stderr)
        sys.exit(fault.exit_code)
