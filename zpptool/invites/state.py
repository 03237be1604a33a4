# SPDX-License-Identifier: Apache-2.0
"""What a stage that was invited keeps on its machine: its own keys, the plan, and at the end its key file.

All of it is in one directory of this user's alone, below `$XDG_STATE_HOME/zpptool/invites` (`~/.local/state` by
default), whose name follows from the invite. The stage's own keys are stored before they are used, so a stage that is
started again joins with the same ones, and one that has joined needs neither its invite's time nor the listener.
"""

from __future__ import annotations

import os
import secrets
import stat
from datetime import UTC, datetime
from pathlib import Path

from zpptool.config.plan import PipelinePlan, load_plan_file
from zpptool.errors import ZppError, invalid_error
from zpptool.invites.invite import Invite
from zpptool.ownership import distrusted_directory
from zpptool.wire.security.key_files import (
    KEYS_VERSION,
    KeyFile,
    file_name,
    new_pair,
    own_places,
    read_key_file,
    write_key_files,
)

PLAN_FILE = "zpp.yaml"
INVITE_FILE = "invite"
_PRIVATE = stat.S_IRWXG | stat.S_IRWXO


class StageState:
    """The directory of one invited stage, created if there is none.

    Args:
        invite: of the stage.

    Attributes:
        directory: its path.

    Raises:
        ZppError: (INVALID) other users can enter it; (FAILURE) it cannot be created.
    """

    def __init__(self, invite: Invite) -> None:
        self._invite = invite
        self.directory = invites_directory() / invite.pipeline / f"stage_{invite.stage}"
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            fault = distrusted_directory(self.directory)
            if fault is None and self.directory.stat().st_mode & _PRIVATE:
                fault = f"other users can enter {self.directory}"
        except OSError as cause:
            raise ZppError(
                f"{self.directory} cannot be created: {cause.strerror}", "Set XDG_STATE_HOME to a writable directory."
            ) from cause
        if fault is not None:
            raise invalid_error(f"{fault}, and the keys of a stage would be in it", f"chmod 700 {self.directory}")

    @property
    def plan_file(self) -> Path:
        """The plan."""
        return self.directory / PLAN_FILE

    @property
    def key_file(self) -> Path:
        """The stage's key file; it exists once the stage has joined."""
        return self.directory / "keys" / file_name(self._invite.stage)

    @property
    def has_joined(self) -> bool:
        """Whether plan and key file are here."""
        return self.key_file.is_file() and self.plan_file.is_file()

    def own_keys(self) -> KeyFile:
        """The stage's own keys, made the first time; without those of its neighbours. They never leave this machine.

        Raises:
            ZppError: as `read_key_file` and `write_key_files`.
        """
        directory = self.directory / "own"
        path = directory / file_name(self._invite.stage)
        if not path.is_file():
            made = KeyFile(
                schema_version=KEYS_VERSION,
                pipeline=secrets.token_hex(8),
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                stage=self._invite.stage,
                num_stages=self._invite.num_stages,
                own=tuple(new_pair(place) for place in own_places(self._invite.stage)),
                peers={},
            )
            write_key_files((made,), directory)
        return read_key_file(path)

    def keep_plan(self, text: bytes) -> PipelinePlan:
        """Store the plan, and return it.

        Args:
            text: the content of its file.

        Raises:
            ZppError: (INVALID) it is not the plan that the invite is for; (FAILURE) it cannot be stored.
        """
        self._write(PLAN_FILE, text)
        plan = load_plan_file(self.plan_file)
        if plan.digest != self._invite.terms.plan or len(plan.stages) != self._invite.num_stages:
            self.plan_file.unlink()
            raise invalid_error(
                f"stage 0 has another plan than the invite of stage {self._invite.stage} is for",
                "Start every stage with an invite of the same zpptool plan --invite, and the same release of zpptool.",
            )
        return plan

    def keep_invite(self) -> Path:
        """Store the invite for the listener, which runs in a process of its own; its path."""
        return self._write(INVITE_FILE, self._invite.to_text().encode())

    def keep_keys(self, own: KeyFile, pipeline: str, created: str, peers: dict[str, str]) -> Path:
        """Write the stage's key file, and return its path.

        Args:
            own: its own keys.
            pipeline, created, peers: as in `KeyFile`.

        Raises:
            ZppError: (INVALID) a neighbour's key is none; or as `write_key_files`.
        """
        whole = KeyFile(
            schema_version=own.schema_version,
            pipeline=pipeline,
            created=created,
            stage=own.stage,
            num_stages=own.num_stages,
            own=own.own,
            peers=peers,
        )
        (path,) = write_key_files((whole,), self.key_file.parent, force=True)
        try:
            read_key_file(path)
        except ZppError:
            path.unlink()
            raise
        return path

    def _write(self, name: str, content: bytes) -> Path:
        path, draft = self.directory / name, self.directory / f".{name}.{secrets.token_hex(4)}"
        try:
            handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(handle, "wb") as out:
                out.write(content)
                out.flush()
                os.fsync(out.fileno())
            draft.replace(path)
        except OSError as cause:
            draft.unlink(missing_ok=True)
            raise ZppError(f"{path} cannot be written: {cause.strerror}") from cause
        return path


def invites_directory() -> Path:
    """Where the directories of invited stages are."""
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home and Path(home).is_absolute() else Path.home() / ".local" / "state") / "zpptool/invites"
