# SPDX-License-Identifier: Apache-2.0
"""The embedded engine's HTTP API in front of a scripted model."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from zpptool.engines.transformers.api.front import Front
from zpptool.engines.transformers.api.served import ServedModel, served_model
from zpptool.engines.transformers.sampling import Choice, SamplingParams, TokenLogprobs
from zpptool.errors import stage_error

EOS = 1
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)


@dataclass
class Scripted:
    """Answers every prompt with `reply`, repeated where an answer may be longer, and records its calls.

    Attributes:
        reply: token ids.
        fails_after: the number of tokens of an answer before an error; None for no error.
        parties: answers that must be in progress at once before any of them continues.
        asked: the calls: prompt, greatest number of tokens, sampling.
        media: what the last call has for images.
        closed: the number of sequences that have ended.
        gate: every step waits until it is set.
    """

    reply: list[int] = field(default_factory=list)
    fails_after: int | None = None
    parties: threading.Barrier | None = None
    asked: list[tuple[list[int], int, SamplingParams]] = field(default_factory=list)
    media: Any = None
    closed: int = 0
    healthy: bool = True
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def generate(
        self,
        prompt_ids: Sequence[int],
        max_new_tokens: int,
        stop_ids: Collection[int],
        sampling: SamplingParams,
        media: Any = None,
    ) -> ScriptedSequence:
        self.media = media
        self.asked.append((list(prompt_ids), max_new_tokens, sampling))
        return ScriptedSequence(self, max_new_tokens, stop_ids, sampling)


class ScriptedSequence:
    """One answer of the script. The log probability of each token is that of a uniform distribution over four."""

    def __init__(
        self, script: Scripted, max_new_tokens: int, stop_ids: Collection[int], sampling: SamplingParams
    ) -> None:
        self._script, self._stop_ids, self._sampling = script, stop_ids, sampling
        self._left = max_new_tokens
        self._position = 0

    def __iter__(self) -> ScriptedSequence:
        return self

    def __next__(self) -> Choice:
        if self._left < 1:
            raise StopIteration
        script, position = self._script, self._position
        if position == script.fails_after:
            raise stage_error("stage 1: step failed: out of memory")
        if script.parties is not None:
            script.parties.wait(10)
        assert script.gate.wait(10)
        token = script.reply[position % len(script.reply)]
        self._position += 1
        self._left = 0 if token in self._stop_ids else self._left - 1
        if self._sampling.logprobs is None:
            return Choice(token)
        top = [(token, -1.5), (50, -2.0), (51, float("-inf"))][: self._sampling.logprobs]
        return Choice(token, TokenLogprobs(-1.5, top))

    def close(self) -> None:
        self._left = 0
        self._script.closed += 1


@dataclass
class ScriptedApi:
    """A client of the API, the served model behind it, and the script that it follows."""

    client: TestClient
    served: ServedModel
    script: Scripted

    def ids(self, text: str) -> list[int]:
        """The token ids of a text: its bytes, one token each."""
        return list(self.served.detokenizer.encode(text))

    def complete(self, **body: Any) -> dict[str, Any]:
        response = self.client.post("/v1/completions", json={"prompt": "ask", **body})
        assert response.status_code == 200, response.text
        return response.json()

    def chat(self, *messages: dict[str, Any], **body: Any) -> dict[str, Any]:
        response = self.client.post("/v1/chat/completions", json={"messages": messages, **body})
        assert response.status_code == 200, response.text
        return response.json()

    def refusal(self, path: str = "/v1/completions", status: int = 400, **body: Any) -> dict[str, Any]:
        response = self.client.post(path, json=body)
        assert response.status_code == status, response.text
        return error_of(response.json(), status)

    def events(self, path: str = "/v1/completions", **body: Any) -> list[dict[str, Any]]:
        asked = body if "messages" in body else {"prompt": "ask", **body}
        response = self.client.post(path, json={**asked, "stream": True})
        assert response.headers["content-type"].startswith("text/event-stream"), response.text
        lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]


@contextmanager
def scripted_api(directory: Path) -> Iterator[ScriptedApi]:
    """The API of a checkpoint, of which only config and tokenizer are used."""
    script = Scripted()
    served = served_model(directory, script.generate, lambda: script.healthy, "tiny")
    served.tokenizer.chat_template = TEMPLATE
    with TestClient(Front(served).app()) as client:
        yield ScriptedApi(client, served, script)


def error_of(body: dict[str, Any], status: int) -> dict[str, Any]:
    """The error in a response, whose form is checked."""
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == status
    return error
