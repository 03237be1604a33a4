# SPDX-License-Identifier: Apache-2.0
"""Renewed certificates are used without a restart: their files are looked at every few seconds."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from pathlib import Path

from zpptool.errors import ZppError
from zpptool.net.tls import load_certificate, server_tls

LOOK_EVERY_S = 5.0
Version = tuple[int, int, int]
"""Inode, size, and time of change in nanoseconds: what changes when a file is written or replaced."""

_log = logging.getLogger(__name__)


async def reload_certificates(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Load the files into the context whenever they have changed, for connections from then on. Runs until cancelled.

    Files that cannot be used, such as a certificate that was renewed a moment before its key, leave the context as it
    is, with a warning, and are tried again.

    Args:
        context: of the server.
        certificate: the PEM file that it was made with.
        key: the PEM file of its key.
    """
    loaded = _versions(certificate, key)
    while True:
        await asyncio.sleep(LOOK_EVERY_S)
        found = _versions(certificate, key)
        if found is None or found == loaded:
            continue
        try:
            server_tls(certificate, key)  # first a context of its own: a half-loaded one would refuse every client
            load_certificate(context, certificate, key)
        except ZppError as fault:
            _log.warning("the renewed certificate is not used yet: %s", fault.message)
            continue
        loaded = found
        _log.info("the renewed certificate %s is used for new connections", certificate)


def _versions(*files: Path) -> tuple[Version, ...] | None:
    """The versions of files; None while one is missing."""
    try:
        found = [os.stat(file) for file in files]
    except OSError:
        return None
    return tuple((each.st_ino, each.st_size, each.st_mtime_ns) for each in found)
