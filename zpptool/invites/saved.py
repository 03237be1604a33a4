# SPDX-License-Identifier: Apache-2.0
"""Tokens in files that only their user can read, and tokens as a user gives them: as the word itself or as a file."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from zpptool.errors import invalid_error
from zpptool.invites.invite import MAX_CHARACTERS, PREFIX, Invite, read_invite
from zpptool.ownership import refuse_unguarded
from zpptool.regular_file import open_regular, read_up_to


def invite_file(directory: Path, stage: int) -> Path:
    """Where `save_invites` writes the token of a stage."""
    return directory / f"stage_{stage}.invite"


def save_invites(invites: Sequence[Invite], directory: Path, *, force: bool = False) -> list[Path]:
    """Write each token into a file of its own with mode 0600, in a directory with mode 0700; their paths, in order.

    Args:
        invites: of every stage.
        directory: created if it does not exist.
        force: replace invites that are there already.

    Raises:
        ZppError: (INVALID) there are invites already, others can enter the directory, or it cannot be written.
    """
    paths = [invite_file(directory, invite.stage) for invite in invites]
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise invalid_error(f"others can enter {directory}", f"chmod 700 {directory}")
        present = sorted(directory.glob("stage_*.invite"))
        if present and not force:
            raise invalid_error(f"{present[0]} exists already", "Choose another --invite-dir, or give --force.")
        for path in present:
            path.unlink()
        for invite, path in zip(invites, paths, strict=True):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(handle, "w") as out:
                out.write(invite.to_text() + "\n")
    except OSError as cause:
        raise invalid_error(f"{directory} cannot be written: {cause.strerror}") from cause
    return paths


def is_token(given: str) -> bool:
    """Whether a value of --invite is a token, not the name of a file."""
    return given.strip().startswith(PREFIX)


def given_invite(given: str) -> Invite:
    """The token that a user gives.

    Args:
        given: the token, or the name of its file.

    Raises:
        ZppError: (INVALID) it is no token, or a file that cannot be read, or that others can read.
    """
    if is_token(given):
        return read_invite(given)
    path = Path(given)
    try:
        with open_regular(path) as opened:
            refuse_unguarded(path, os.fstat(opened.fileno()), "invite")
            content = read_up_to(opened, MAX_CHARACTERS, path, "invite")
    except OSError as cause:
        raise invalid_error(
            f"{given[:80]!r} is neither an invite nor a file of one: {cause.strerror}",
            f"An invite begins with {PREFIX}; zpptool plan --invite prints one for each stage.",
        ) from cause
    return read_invite(content.decode(errors="replace"))
