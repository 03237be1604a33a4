# SPDX-License-Identifier: Apache-2.0
"""Requests to an OpenAI server: many at once, their tokens, and how fast they are."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

REQUESTS = 32
TOKENS = 128


def complete(url: str, model: str, number: int, tokens: int, timeout_s: float) -> list[int]:
    """The token ids of one greedy answer to a prompt that only this number has."""
    body = {
        "model": model, "prompt": [2 + number, 50, 60 + number, 7], "max_tokens": tokens, "ignore_eos": True,
        "temperature": 0, "return_token_ids": True,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=timeout_s) as answer:
        ids: list[int] = json.load(answer)["choices"][0]["token_ids"]
    return ids


def complete_many(
    url: str, model: str, timeout_s: float, meanwhile: Callable[[], object] = lambda: None
) -> list[list[int]]:
    """The answers of `REQUESTS` requests at once.

    Args:
        meanwhile: called when all of them have been sent.
    """
    with ThreadPoolExecutor(REQUESTS) as pool:
        pending = [pool.submit(complete, url, model, number, TOKENS, timeout_s) for number in range(REQUESTS)]
        meanwhile()
        return [answer.result() for answer in pending]


def tokens_per_second(url: str, model: str, timeout_s: float) -> dict[str, Any]:
    """How many tokens a second the server makes for `REQUESTS` requests at once, after as many to warm up."""
    complete_many(url, model, timeout_s)
    began = time.perf_counter()
    answers = complete_many(url, model, timeout_s)
    took_s = time.perf_counter() - began
    return {"tokens_per_s": round(sum(map(len, answers)) / took_s, 1)}
