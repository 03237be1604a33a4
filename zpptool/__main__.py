# SPDX-License-Identifier: Apache-2.0
"""`python -m zpptool` and the `zpptool` script: an interrupt ends in one line also while Python imports the package."""

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
TRUE = ("1", "true", "t", "yes", "y", "on")
"""Values of ZPP_JSON that ask for JSON, as in `zpptool.cli.refusals`, which is not imported yet."""
_OBJECT = (
    b'{"schema_version": 1, "error": {"message": "interrupted", "hint": null, "exit_code": 130}}\n'  # as console.error
)


def main() -> NoReturn:
    """Run the command line. Ctrl-C and SIGTERM end the process at once until the command line handles them itself.

    Nothing has been started or written then. A `KeyboardInterrupt` would be lost in some imports, and be a traceback in
    others. A signal that the parent process ignores stays ignored.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    from zpptool.cli.app import main as command_line

    command_line()


def _end(_number: int, _frame: FrameType | None) -> None:
    """Report the interrupt, with --json as an object too, and end the process."""
    own = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    try:
        if "--json" in own or os.environ.get("ZPP_JSON", "").lower() in TRUE:
            os.write(1, _OBJECT)
        os.write(2, b"interrupted\n")
    finally:
        os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
