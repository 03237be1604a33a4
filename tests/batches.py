# SPDX-License-Identifier: Apache-2.0
"""Inputs of batches, file operations that fail, and a server that answers requests by their content alone."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from fronts import ReceivedRequest, ToyServer

from zpptool.batch.file_operations import FileOperations
from zpptool.batch.request_line import RawLine


def request(number: int, **body: Any) -> dict[str, Any]:
    """The request with that number."""
    full = {"model": "toy", "prompt": f"prompt {number}", "max_tokens": 4, **body}
    return {"custom_id": f"request-{number}", "method": "POST", "url": "/v1/completions", "body": full}


def write_input(path: Path, count: int, **body: Any) -> Path:
    """Write so many requests; return the path."""
    path.write_text("".join(json.dumps(request(number, **body)) + "\n" for number in range(count)))
    return path


def raw_lines(entries: Iterable[object]) -> Iterator[RawLine]:
    """The lines of an input with these entries; a text is a line as it is."""
    offset = 0
    for number, entry in enumerate(entries, 1):
        content = (entry if isinstance(entry, str) else json.dumps(entry)).encode()
        yield RawLine(number, offset, f"input, line {number}", content)
        offset += len(content) + 1


def entries(path: Path) -> list[dict[str, Any]]:
    """The entries of an output or of a file of errors."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def sorted_bytes(path: Path) -> list[bytes]:
    """The lines without what follows from the moment of the first start."""
    found = []
    for entry in entries(path):
        del entry["id"]
        entry["response"].pop("request_id")
        for name in ("id", "created"):
            entry["response"]["body"].pop(name, None)
        found.append(json.dumps(entry, sort_keys=True).encode())
    return sorted(found)


class Crash(BaseException):
    """The machine stops at this operation."""


class FaultyFiles(FileOperations):
    """File operations of which one fails or is the last, on real files.

    A crash loses what was not synced: every file is cut to a size between its synced one and its own, and a rename
    whose directory was not synced may be undone.

    Attributes:
        count: how many operations there were.

    Args:
        at: the number of the operation that fails, from 0; None for none.
        fault: a number of `errno`, `crash`, or `short` for a write of a part followed by a crash.
        chance: decides what a crash loses.
    """

    def __init__(self, at: int | None = None, fault: int | str = "crash", chance: random.Random | None = None) -> None:
        self._at, self._fault = at, fault
        self._random = chance or random.Random(0)
        self.count = 0
        self._paths: dict[int, Path] = {}
        self._synced: dict[Path, int] = {}
        self._renamed: dict[Path, Path] = {}

    def open(self, path: Path) -> int:
        self._step()
        descriptor = super().open(path)
        self._paths[descriptor] = path
        self._synced.setdefault(path, path.stat().st_size)
        return descriptor

    def write(self, descriptor: int, content: bytes | memoryview) -> int:
        if self.count == self._at and self._fault == "short":
            super().write(descriptor, bytes(content)[: len(content) // 2])
        self._step()
        return super().write(descriptor, content)

    def sync(self, descriptor: int) -> None:
        self._step()
        path = self._paths[descriptor]
        self._synced[path] = path.stat().st_size

    def truncate(self, descriptor: int, size: int) -> None:
        self._step()
        super().truncate(descriptor, size)
        path = self._paths[descriptor]
        self._synced[path] = min(self._synced[path], size)

    def replace(self, source: Path, target: Path) -> None:
        self._step()
        super().replace(source, target)
        self._synced[target] = self._synced.pop(source, 0)
        self._renamed[target] = source

    def sync_directory(self, path: Path) -> None:
        self._step()
        self._renamed = {target: source for target, source in self._renamed.items() if target.parent != path}

    def _step(self) -> None:
        self.count += 1
        if self.count - 1 != self._at:
            return
        if isinstance(self._fault, int):
            raise OSError(self._fault, os.strerror(self._fault))
        self.lose()
        raise Crash

    def lose(self) -> None:
        """Lose what was not synced."""
        for path, synced in self._synced.items():
            if path.exists() and path.stat().st_size > synced:
                os.truncate(path, self._random.randint(synced, path.stat().st_size))
        for target, source in self._renamed.items():
            if target.exists() and self._random.random() < 0.5:
                target.rename(source)


ERRNOS = (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT)


class AnsweringServer(ToyServer):
    """A server of completions. The answer to a request follows from its prompt and seed, its id and time do not.

    Attributes:
        seen: how often each prompt was asked for.
        delay_s: how long an answer takes.
        refused: prompts that are refused with 400.
        fatal: prompts at which the connection is closed without an answer.
        failing: how many further requests are answered with 500.
        most: the most requests that were in progress at once.
        room: how many requests it computes at once, by its metrics; None to have no such metrics.
        has_priorities: whether a request may have a priority.
        preemptions: how many it reports.
    """

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}
        self.bodies: dict[str, dict[str, Any]] = {}
        self.delay_s = 0.0
        self.refused: set[str] = set()
        self.fatal: set[str] = set()
        self.failing = 0
        self.most = self._now = 0
        self.room: int | None = None
        self.has_priorities = False
        self.preemptions = 0
        super().__init__(self._respond)

    def close(self) -> None:
        """Stop the server; a second call does nothing."""
        if not self._loop.is_closed():
            super().close()

    async def _respond(self, received: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        if received.path == "/v1/models":
            card = {"id": "toy", "object": "model", "owned_by": "zpptool", "root": "/toy", "max_model_len": 64}
            return reply(writer, 200, {"object": "list", "data": [card]})
        if received.path == "/metrics":
            return reply_text(writer, "" if self.room is None else load_metrics(self._now, self.room, self.preemptions))
        body = json.loads(received.body)
        prompt = body["prompt"]
        self._now += 1
        self.most = max(self.most, self._now)
        self.seen[prompt] = self.seen.get(prompt, 0) + 1
        self.bodies[prompt] = body
        try:
            await asyncio.sleep(self.delay_s)
        finally:
            self._now -= 1
        if body.get("priority") and not self.has_priorities:
            return reply(writer, 400, {"error": {"message": "priority: the server has none"}})
        if prompt in self.fatal:
            writer.close()
            return None
        if self.failing > 0:
            self.failing -= 1
            return reply(writer, 500, {"error": {"message": "out of luck"}})
        if prompt in self.refused:
            return reply(writer, 400, {"error": {"message": "too long", "type": "invalid_request_error"}})
        text = f"{prompt} seeded {body.get('seed')}"
        choice = {"index": 0, "text": text, "finish_reason": "length"}
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        identifier = f"cmpl-{random.getrandbits(64):x}"
        answer = {"id": identifier, "object": "text_completion", "created": random.getrandbits(30), "model": "toy"}
        return reply(writer, 200, {**answer, "choices": [choice], "usage": usage})


def reply(writer: asyncio.StreamWriter, status: int, body: object) -> None:
    """Answer with this status and JSON."""
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)


def reply_text(writer: asyncio.StreamWriter, text: str) -> None:
    """Answer with a text."""
    writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(text)}\r\n\r\n{text}".encode())


def load_metrics(requests: int, room: int, preemptions: int) -> str:
    """The metrics of a vLLM that has so many requests, and computes as many of them as it has room for."""
    running = min(requests, room)
    return (
        f'vllm:num_requests_running{{engine="0"}} {running}\nvllm:num_requests_waiting{{engine="0"}} '
        f'{requests - running}\nvllm:kv_cache_usage_perc{{engine="0"}} {running / room}\n'
        f'vllm:num_preemptions_total{{engine="0"}} {preemptions}\n'
    )


@contextmanager
def answering_server() -> Iterator[AnsweringServer]:
    """A server of completions for as long as the block lasts."""
    with closing(AnsweringServer()) as server:
        yield server
