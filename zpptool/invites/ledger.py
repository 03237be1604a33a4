# SPDX-License-Identifier: Apache-2.0
"""Who has redeemed which token: a journal that is synced to disk before a stage is answered.

The file stays open, and a record is appended to it: recording takes no file descriptor, of which strangers may hold
all. A last line that a crash has cut off was not answered, and is ignored.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import msgspec

from zpptool.errors import invalid_error
from zpptool.ownership import refuse_unguarded

LEDGER = "ledger"
MAX_BYTES = 1 << 22


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One event: a stage has redeemed its token with a key, or has stored its neighbours' keys."""

    stage: int
    public: str
    has_joined: bool = False


class Ledger:
    """The journal. Use as a context manager.

    Args:
        directory: of this user alone; the journal is created in it if there is none.

    Attributes:
        redeemed: the public key of each stage that has redeemed its token.
        joined: the stages that have stored their neighbours' keys.

    Raises:
        ZppError: (INVALID) others can change it, or it is not a journal; OSError: it cannot be opened.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / LEDGER
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            refuse_unguarded(path, os.fstat(self._handle), "journal of invites")
            self.redeemed: dict[int, str] = {}
            self.joined: set[int] = set()
            content = os.pread(self._handle, MAX_BYTES, 0)
            whole = content[: content.rfind(b"\n") + 1]
            if len(whole) < len(content):
                os.ftruncate(self._handle, len(whole))
            for line in whole.splitlines():
                self._take(msgspec.json.decode(line, type=Record))
        except msgspec.MsgspecError as cause:
            os.close(self._handle)
            raise invalid_error(f"{path} is not a journal of invites: {cause}", "Make new invites.") from cause
        except BaseException:
            os.close(self._handle)
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._handle)

    def record(self, stage: int, public: str, *, has_joined: bool = False) -> None:
        """Record an event, on disk when this returns; raises OSError if it cannot be."""
        record = Record(stage, public, has_joined)
        os.write(self._handle, msgspec.json.encode(record) + b"\n")
        os.fsync(self._handle)
        self._take(record)

    def _take(self, record: Record) -> None:
        if record.has_joined:
            self.joined.add(record.stage)
        else:
            self.redeemed[record.stage] = record.public
