# SPDX-License-Identifier: Apache-2.0
"""The client of `pipeline.py`: many requests at once of fixed length, and when each piece of each answer came."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

_STEPS = re.compile(r"^vllm:iteration_tokens_total_count\{.*\} (\S+)$", re.MULTILINE)


@dataclass
class Taken:
    """What one turn of one side took.

    Attributes:
        tokens_per_s: answer tokens of all requests, from the first question to the last answer.
        steps_per_s: engine steps, likewise.
        gap_s: the median time between two pieces of an answer.
        slow_gap_s: 99 of 100 are shorter.
        first_s: the median time to the first piece.
        processor_ms: processor time of all its processes for one token.
    """

    tokens_per_s: float
    steps_per_s: float
    gap_s: float
    slow_gap_s: float
    first_s: float
    processor_ms: float = 0.0


def ask(url: str, requests: int, prompt_tokens: int, answer_tokens: int, seed: int) -> Taken:
    """Put `requests` questions at once and wait for all answers. Prompts are token ids, other ones for each seed."""
    return asyncio.run(_ask(url, requests, prompt_tokens, answer_tokens, seed))


async def _ask(url: str, requests: int, prompt_tokens: int, answer_tokens: int, seed: int) -> Taken:
    timeout = aiohttp.ClientTimeout(total=1200)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        steps = await _steps(session, url)
        began = time.monotonic()
        prompts = [_prompt(seed * 1000 + number, prompt_tokens) for number in range(requests)]
        pieces = await asyncio.gather(*(_one(session, url, prompt, answer_tokens) for prompt in prompts))
        took = time.monotonic() - began
        steps = await _steps(session, url) - steps
    gaps = sorted(after - before for times in pieces for before, after in itertools.pairwise(times))
    firsts = sorted(times[0] - began for times in pieces)
    return Taken(
        requests * answer_tokens / took, steps / took, _at(gaps, 0.5), _at(gaps, 0.99), firsts[len(firsts) // 2]
    )


async def _one(session: aiohttp.ClientSession, url: str, prompt: list[int], answer_tokens: int) -> list[float]:
    """When each piece of the answer came."""
    body = {
        "prompt": prompt, "max_tokens": answer_tokens, "temperature": 0, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    times: list[float] = []
    answered: dict[str, Any] = {}
    async with session.post(f"{url}/v1/completions", json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"{url}: {await response.text()}")
        async for line in response.content:
            if line.startswith(b"data: {"):
                event = msgspec.json.decode(line[6:])
                if event.get("choices"):
                    times.append(time.monotonic())
                else:
                    answered = event.get("usage", event)
    if answered.get("completion_tokens") != answer_tokens:
        raise RuntimeError(f"{url} answered other than {answer_tokens} tokens: {answered}")
    return times


async def _steps(session: aiohttp.ClientSession, url: str) -> float:
    """How many steps the engine has made."""
    async with session.get(f"{url}/metrics") as response:
        found = _STEPS.search(await response.text())
    return float(found[1]) if found else 0.0


def _prompt(seed: int, tokens: int) -> list[int]:
    """Token ids of a vocabulary of 256 at least."""
    return [2 + (seed * 7919 + place * place * 31 + place) % 250 for place in range(tokens)]


def _at(values: list[float], part: float) -> float:
    return values[min(int(len(values) * part), len(values) - 1)] if values else 0.0
