# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face Hub for tests: a local HTTP server that serves directories as models and supports range requests."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """State of the server: what it serves, how, and what it has sent.

    Attributes:
        models: directories by `org/name`.
        endpoint: the value for HF_ENDPOINT.
        sent: (file, first byte, number of bytes) of each range that was sent.
        cut_after: close the connection once, after this many bytes of a longer response.
        ranges: support range requests; always send whole files otherwise.
        token: the token that clients must send; None for none.
        more_names: file names listed in addition to the existing ones.
    """

    models: dict[str, Path]
    endpoint: str = ""
    sent: list[tuple[str, int, int]] = field(default_factory=list)
    cut_after: int | None = None
    ranges: bool = True
    token: str | None = None
    more_names: list[str] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        """Environment variables for a process that uses this hub."""
        return {"HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0"}

    def bytes_of(self, name: str) -> int:
        """Return how many bytes of a file were sent."""
        return sum(count for file, _start, count in self.sent if file == name)


@contextmanager
def serve_hub(models: dict[str, Path]) -> Iterator[Hub]:
    """Serve `models` on a free port of this machine."""
    hub = Hub(models)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                self._respond(401, b"", {"X-Error-Code": "GatedRepo"})
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^?]+))?(\?.*)?", self.path):
                self._info(match[1], match[2])
            elif match := re.fullmatch(rf"/([^/]+/[^/]+)/resolve/{COMMIT}/(.+)", self.path):
                self._file(hub.models[match[1]] / match[2], match[2])
            else:
                self._respond(404, b"", {"X-Error-Code": "EntryNotFound"})

        def _info(self, repo: str, revision: str | None) -> None:
            if repo not in hub.models:
                return self._respond(401, b"", {"X-Error-Code": "RepoNotFound"})
            if revision not in (None, "main", COMMIT):
                return self._respond(404, b"", {"X-Error-Code": "RevisionNotFound"})
            root = hub.models[repo]
            names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
            info = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in [*names, *hub.more_names]]}
            return self._respond(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

        def _file(self, path: Path, name: str) -> None:
            total = path.stat().st_size
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if not hub.ranges or match is None:
                return self._respond(200, path.read_bytes(), {})
            start, end = int(match[1]), min(int(match[2]) + 1, total)
            if start >= total:
                return self._respond(416, b"", {"Content-Range": f"bytes */{total}"})
            with path.open("rb") as stream:
                stream.seek(start)
                content = stream.read(end - start)
            hub.sent.append((name, start, len(content)))
            return self._respond(206, content, {"Content-Range": f"bytes {start}-{end - 1}/{total}"})

        def _respond(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if hub.cut_after is not None and len(content) > hub.cut_after:
                self.wfile.write(content[: hub.cut_after])
                hub.cut_after = None
                self.close_connection = True
                return
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
