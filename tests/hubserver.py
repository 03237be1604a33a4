# SPDX-License-Identifier: Apache-2.0
"""A Hugging Face Hub for tests: a local HTTP server that serves directories as models, with ranges, commits and a cache
of what it has sent. It speaks what huggingface_hub 1 and 2 ask for, except Xet."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_REVISION = r"[^/?]+"


@dataclass
class Hub:
    """State of the server: what it serves, how, and what it has sent.

    Attributes:
        models: directories by `org/name`.
        cache: a directory for HF_HOME and ZPP_CACHE of the processes that use this hub.
        endpoint: the value for HF_ENDPOINT.
        branches: the commit that each branch means now.
        commits: directories by commit, where they differ from that in `models`.
        sent: (file, first byte, number of bytes) of each range that was sent.
        requests: method and path of every request.
        cut_after: close the connection once, after this many bytes of a longer response.
        ranges: support range requests; always send whole files otherwise.
        token: the token that clients must send; None for none.
        seconds_a_chunk: pause after each 64 KiB of a response.
        renamed: the new name of a model by its old name.
        more_names: file names listed in addition to the existing ones.
    """

    models: dict[str, Path]
    cache: Path
    endpoint: str = ""
    branches: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    commits: dict[str, Path] = field(default_factory=dict)
    sent: list[tuple[str, int, int]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    cut_after: int | None = None
    ranges: bool = True
    token: str | None = None
    seconds_a_chunk: float = 0.0
    renamed: dict[str, str] = field(default_factory=dict)
    more_names: list[str] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        """Environment variables for a process that uses this hub."""
        return {
            "HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0", "HF_TOKEN": "",
            "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(self.cache / "hf"), "ZPP_CACHE": str(self.cache / "zpp"),
        }  # fmt: skip

    def bytes_of(self, name: str) -> int:
        """Return how many bytes of a file were sent."""
        return sum(count for file, _start, count in self.sent if file == name)

    def forget(self) -> None:
        """Forget what was asked and sent."""
        self.sent.clear()
        self.requests.clear()

    def root(self, repo: str, commit: str) -> Path:
        """The directory of a model at a commit."""
        return self.commits.get(commit, self.models[repo])


@contextmanager
def serve_hub(models: dict[str, Path], cache: Path, host: str = "127.0.0.1") -> Iterator[Hub]:
    """Serve `models` on a free port of this machine, at one of its addresses."""
    hub = Hub(models, cache)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_arguments: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            path = self.path.partition("?")[0]
            old = next((name for name in hub.renamed if path.startswith((f"/{name}/", f"/api/models/{name}"))), None)
            if old is not None:
                return self._respond(307, b"", {"Location": self.path.replace(old, hub.renamed[old], 1)})
            if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self._respond(401, b"", {"X-Error-Code": "GatedRepo"})
            if match := re.fullmatch(rf"/api/models/([^/]+/[^/]+)/tree/({_REVISION})", path):
                return self._tree(match[1], match[2])
            if match := re.fullmatch(rf"/api/models/([^/]+/[^/]+)(?:/revision/({_REVISION}))?", path):
                return self._info(match[1], match[2] or "main")
            if match := re.fullmatch(rf"/([^/]+/[^/]+)/resolve/({_REVISION})/(.+)", path):
                return self._file(match[1], match[2], match[3])
            return self._respond(404, b"", {"X-Error-Code": "EntryNotFound"})

        def _commit(self, repo: str, revision: str) -> str | None:
            """The commit of a revision; None after an error was sent."""
            commit = hub.branches.get(revision, revision)
            if repo not in hub.models:
                self._respond(401, b"", {"X-Error-Code": "RepoNotFound"})
            elif commit not in {COMMIT, *hub.branches.values(), *hub.commits}:
                self._respond(404, b"", {"X-Error-Code": "RevisionNotFound"})
            else:
                return commit
            return None

        def _files(self, repo: str, commit: str) -> list[dict[str, Any]]:
            root = hub.root(repo, commit)
            found = sorted(path for path in root.rglob("*") if path.is_file())
            rows = [(path.relative_to(root).as_posix(), path.stat().st_size, etag_of(path)) for path in found]
            return [{"name": name, "size": size, "etag": etag} for name, size, etag in rows]

        def _info(self, repo: str, revision: str) -> None:
            commit = self._commit(repo, revision)
            if commit is None:
                return None
            siblings = [
                {"rfilename": file["name"], "size": file["size"], "blobId": file["etag"]}
                for file in self._files(repo, commit)
            ]
            siblings += [{"rfilename": name} for name in hub.more_names]
            info = {"id": repo, "sha": commit, "siblings": siblings}
            return self._respond(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

        def _tree(self, repo: str, revision: str) -> None:
            commit = self._commit(repo, revision)
            if commit is None:
                return None
            rows = [
                {"type": "file", "path": file["name"], "size": file["size"], "oid": file["etag"]}
                for file in self._files(repo, commit)
            ]
            return self._respond(200, json.dumps(rows).encode(), {"Content-Type": "application/json"})

        def _file(self, repo: str, revision: str, name: str) -> None:
            commit = self._commit(repo, revision)
            if commit is None:
                return None
            path = hub.root(repo, commit) / name
            if not path.is_file():
                return self._respond(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            total = path.stat().st_size
            facts = {"ETag": f'"{etag_of(path)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if self.command == "HEAD" or not hub.ranges or match is None:
                if self.command == "GET":
                    hub.sent.append((name, 0, total))
                return self._respond(200, path.read_bytes(), facts)
            start, end = int(match[1]), min(int(match[2] or total) + 1, total)
            if start >= total:
                return self._respond(416, b"", {"Content-Range": f"bytes */{total}"})
            with path.open("rb") as stream:
                stream.seek(start)
                content = stream.read(end - start)
            hub.sent.append((name, start, len(content)))
            return self._respond(206, content, {**facts, "Content-Range": f"bytes {start}-{end - 1}/{total}"})

        def _respond(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.cut_after is not None and len(content) > hub.cut_after:
                self.wfile.write(content[: hub.cut_after])
                hub.cut_after = None
                self.close_connection = True
                return
            if not hub.seconds_a_chunk:
                self.wfile.write(content)
                return
            for start in range(0, len(content), 1 << 16):
                try:
                    self.wfile.write(content[start : start + (1 << 16)])
                except OSError:
                    return
                time.sleep(hub.seconds_a_chunk)

    server = ThreadingHTTPServer((host, 0), Handler)
    server.daemon_threads = True
    hub.endpoint = f"http://{host}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def etag_of(path: Path) -> str:
    """A name of a file's content, as the Hub has one; it changes when the file is written."""
    stat = path.stat()
    return hashlib.sha1(f"{path.name} {stat.st_size} {stat.st_mtime_ns}".encode()).hexdigest()
