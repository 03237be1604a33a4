# SPDX-License-Identifier: Apache-2.0
"""A renewed certificate is used without a restart; one that cannot be used changes nothing."""

from __future__ import annotations

import hashlib
import shutil
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from starlette.applications import Starlette

from tests.certificates import certificate
from zpptool.net import certificate_reload
from zpptool.net.http_server import HttpServer

pytestmark = pytest.mark.timeout(60)


def shown_by(server: HttpServer) -> str:
    """The digest of the certificate that a new connection gets."""
    host, _, port = server.url.removeprefix("https://").partition(":")
    found = ssl.get_server_certificate((host, int(port)), timeout=10)
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(found)).hexdigest()


def digest_of(file: Path) -> str:
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(file.read_text())).hexdigest()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_renewed_certificate_is_used_for_new_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(certificate_reload, "LOOK_EVERY_S", 0.05)
    (tmp_path / "new").mkdir()
    files, renewed = certificate(tmp_path), certificate(tmp_path / "new")
    old, new = digest_of(files[0]), digest_of(renewed[0])
    with HttpServer("127.0.0.1", 0, *files) as server:
        server.start(Starlette())
        assert shown_by(server) == old
        shutil.copy(renewed[0], files[0])  # without its key, as for a moment during a renewal
        wait_for(lambda: "is not used yet" in caplog.text)
        assert shown_by(server) == old
        shutil.copy(renewed[1], files[1])
        wait_for(lambda: shown_by(server) == new)
        files[1].write_text("no key")
        before = caplog.text.count("is not used yet")
        wait_for(lambda: caplog.text.count("is not used yet") > before)
        assert shown_by(server) == new
