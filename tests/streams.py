# SPDX-License-Identifier: Apache-2.0
"""Several streams of completions in progress at once, and their texts."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.served import READY_S

STREAMS = 8
TOKENS = 60


class Streams:
    """Streams in progress at once, every other one sampled.

    Attributes:
        pieces: the number of pieces that each has received.
    """

    def __init__(self, client: httpx.Client) -> None:
        self.pieces = [0] * STREAMS
        self._pool = ThreadPoolExecutor(STREAMS)
        self._answers = [self._pool.submit(self._ask, client, number) for number in range(STREAMS)]

    def begun(self) -> bool:
        return all(count >= 3 for count in self.pieces)

    def answers(self) -> list[str]:
        with self._pool:
            return [answer.result(READY_S) for answer in self._answers]

    def _ask(self, client: httpx.Client, number: int) -> str:
        body = {
            "prompt": f"one two {number}", "max_tokens": TOKENS, "ignore_eos": True, "temperature": number % 2,
            "seed": number, "stream": True,
        }  # fmt: skip
        text = ""
        with client.stream("POST", "/v1/completions", json=body) as got:
            assert got.status_code == httpx.codes.OK
            for line in got.iter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    assert "error" not in event, event
                    text += event["choices"][0]["text"]
                    self.pieces[number] += 1
        return text
