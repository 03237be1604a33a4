# SPDX-License-Identifier: Apache-2.0
"""Models on ModelScope, from a local server with the routes of its HTTP API: own bytes only, one state everywhere."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from checkpoints import HIDDEN, VOCAB, llama, llama_config, write_checkpoint
from conftest import Ran

from zpptool.errors import ZppError
from zpptool.sources.modelscope import ModelScopeSource
from zpptool.sources.names import ModelName, UrlId, parse_remote, served_name
from zpptool.sources.opened import open_model

NAME = "modelscope://org/name"


@dataclass
class Scope:
    """The server's state: directories by branch, which commit each file is of, and what was asked and sent."""

    branches: dict[str, Path]
    endpoint: str = ""
    requests: list[str] = field(default_factory=list)
    sent: dict[str, int] = field(default_factory=dict)
    commits: dict[str, Path] = field(default_factory=dict)
    more: list[dict[str, Any]] = field(default_factory=list)
    cut: bool = False


def files_of(directory: Path) -> dict[Path, str]:
    """The files of a directory, and the name of each in the repository."""
    return {path: path.relative_to(directory).as_posix() for path in sorted(directory.rglob("*")) if path.is_file()}


def rows(scope: Scope, directory: Path) -> list[dict[str, Any]]:
    """The listing of a branch, as ModelScope has it: each file with the commit that changed it last."""
    found = [{"Name": "docs", "Path": "docs", "Type": "tree", "Size": 0, "Revision": "x"}, *scope.more]
    for path, name in files_of(directory).items():
        commit = hashlib.sha1(name.encode() + path.read_bytes()).hexdigest()
        scope.commits[commit] = path
        row = {"Name": path.name, "Path": name, "Type": "blob", "Size": path.stat().st_size}
        found.append({**row, "Sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "Revision": commit})
    return found


@pytest.fixture
def scope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scope]:
    model = write_checkpoint(tmp_path / "model", llama(layers=4), llama_config(layers=4))
    state = Scope({"master": model})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            state.requests.append(self.path)
            parts = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            if parts.path == "/api/v1/models/org/name/repo/files" and query["Recursive"] == "true":
                directory = state.branches.get(query["Revision"])
                if directory is None:
                    return self.answer(404, json.dumps({"Code": 10010205001, "Message": "no such revision"}).encode())
                data = {"Files": rows(state, directory)}
                return self.answer(200, json.dumps({"Code": 200, "Data": data, "Message": "success"}).encode())
            if parts.path == "/api/v1/models/org/name/repo":
                path = state.commits[query["Revision"]]
                assert path.as_posix().endswith(query["FilePath"])
                if path.suffix == ".safetensors":  # large files are elsewhere
                    return self.answer(302, b"", {"Location": f"{state.endpoint}/lfs/{query['Revision']}"})
                return self.part(path)
            if parts.path.startswith("/lfs/"):
                return self.part(state.commits[parts.path.rpartition("/")[2]])
            return self.answer(404, b"{}")

        def part(self, path: Path) -> None:
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
            assert match is not None
            content = path.read_bytes()
            body = content[int(match[1]) : int(match[2]) + 1]
            state.sent[path.name] = state.sent.get(path.name, 0) + len(body)
            last = int(match[1]) + len(body) - 1
            cut, state.cut = state.cut and len(body) > 64, state.cut and len(body) <= 64
            header = {"Content-Range": f"bytes {match[1]}-{last}/{len(content)}"}
            self.answer(206, body, header, sends=len(body) // 2 if cut else len(body))

        def answer(
            self, code: int, body: bytes, headers: dict[str, str] | None = None, sends: int | None = None
        ) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[:sends])
            if sends is not None and sends < len(body):
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", state.endpoint)
    monkeypatch.setenv("ZPP_CACHE", str(tmp_path / "store"))
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_stage_fetches_its_own_bytes_once(scope: Scope, tmp_path: Path, zpptool: Callable[..., Ran]) -> None:
    large = {name: (dtype, [32 * size for size in shape]) for name, (dtype, shape) in llama(layers=4).items()}
    config = llama_config(layers=4, hidden_size=32 * HIDDEN, vocab_size=32 * VOCAB)
    scope.branches["master"] = write_checkpoint(tmp_path / "large", large, config)
    whole = sum(path.stat().st_size for path in scope.branches["master"].glob("*.safetensors"))
    scope.cut = True  # the first longer answer is cut off in the middle, and reading goes on
    ran = zpptool("fetch", NAME, "--num-stages", 2, "--stage", 1, "--json")
    assert ran.code == 0, ran.err
    assert 0 < sum(count for name, count in scope.sent.items() if name.endswith(".safetensors")) < whole
    scope.requests.clear()
    assert zpptool("fetch", NAME, "--num-stages", 2, "--stage", 1).code == 0
    assert scope.requests == []
    listed = zpptool("cache", "list", "--json").json
    assert json.dumps(listed).count(NAME) >= 1


def test_what_is_read_is_what_was_listed(scope: Scope, tmp_path: Path) -> None:
    source = ModelScopeSource(UrlId(NAME))
    before = {name.name: b"".join(source.read(name.name, 0, name.nbytes or 0)) for name in source.files}
    assert before == {name: path.read_bytes() for path, name in files_of(scope.branches["master"]).items()}
    assert source.served == "org/name"
    newer = write_checkpoint(tmp_path / "newer", llama(layers=6), llama_config(layers=6))
    scope.branches["master"] = newer  # the branch moves while it is read
    assert b"".join(source.read("config.json", 0, len(before["config.json"]))) == before["config.json"]
    size, first = source.begin("config.json", 10)
    assert (size, first) == (len(before["config.json"]), before["config.json"][:10])
    with pytest.raises(ZppError, match="has changed since"):
        ModelScopeSource(UrlId(*source.identity.split("#")))
    assert ModelScopeSource(UrlId(NAME)).identity != source.identity


def test_the_name_is_read_and_serves_as_the_models_name(scope: Scope) -> None:
    assert parse_remote(f"{NAME}@v1#abc") == UrlId(f"{NAME}@v1", "abc")
    assert served_name(f"{NAME}@v1#abc") == "org/name"
    with open_model(ModelName(NAME)) as opened:
        assert opened.served == "org/name"
        assert opened.identity.startswith(f"{NAME}#")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{NAME}@nothing", "cannot be listed"),
        ("modelscope://org/missing", "cannot be listed"),
        ("modelscope://name", "names no model on ModelScope"),
    ],
)
def test_what_is_not_there_is_refused_by_name(scope: Scope, name: str, message: str) -> None:
    with pytest.raises(ZppError, match=message):
        ModelScopeSource(UrlId(name))


@pytest.mark.parametrize("path", ["../../x", "/etc/passwd", "a\nb", 7])
def test_a_listed_name_that_leads_outside_is_refused(scope: Scope, path: object) -> None:
    scope.more.append({"Name": "x", "Path": path, "Type": "blob", "Size": 1, "Revision": "a"})
    with pytest.raises(ZppError, match="which is not valid"):
        ModelScopeSource(UrlId(NAME))
