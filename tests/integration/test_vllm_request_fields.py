# SPDX-License-Identifier: Apache-2.0
"""Requests with every field of vLLM's requests survive the loss of a stage and a rollout: the answers equal those of an
undisturbed run. `tests/requestfields.py` has the fields, and a unit test compares it with the installed vLLM."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("vllm")

import torch
from answers import same
from conftest import SPEAKER_SIZES, Ran
from requestfields import EMBEDS, LATE_WISHES, POOLED, PROMPT, SEEDED, WISHES, Wish, late_wishes
from stages import Stage
from test_embedded_rollout import run_directory
from test_vllm_recovery import BACK_S, Load, differences, pipeline

pytestmark = [pytest.mark.vllm, pytest.mark.model, pytest.mark.timeout(1500)]

TESTS = Path(__file__).resolve().parents[1]
RANGES = ("0-2", "2-4")
TOKENS = 96
ALONE = "logprob tokens"
"""vLLM 0.32 gives other requests in its batch the logprobs of its tokens, so it is sent without the others."""
ARGUMENTS = (
    "--max-num-batched-tokens", "96", "--kv-cache-memory-bytes", 96 << 20, "--enable-prompt-embeds",
    "--reasoning-config", '{"reasoning_start_str": "<|im_start|>", "reasoning_end_str": "<|im_end|>"}',
    "--logits-processors", "processors:EveryNth",
)  # fmt: skip


def embeds_wish() -> Wish:
    """A prompt of twelve embeddings, as a client encodes them."""
    saved = io.BytesIO()
    torch.save(torch.randn(12, SPEAKER_SIZES["hidden_size"], generator=torch.Generator().manual_seed(3)), saved)
    return Wish({"prompt": None, "prompt_embeds": base64.b64encode(saved.getvalue()).decode()}, SEEDED)


def words_of(client: httpx.Client, tokens: Sequence[int]) -> dict[int, str]:
    """The tokens that are the tokenizer's encoding of one word, and their words."""

    def ask(path: str, **body: Any) -> Any:
        answer = client.post(path, json={"model": "m", **body})
        assert answer.status_code == httpx.codes.OK, answer.text
        return answer.json()

    found = {}
    for token in dict.fromkeys(tokens):
        text = ask("/detokenize", tokens=[token])["prompt"]
        is_word = text.startswith(" ") and text.strip().isalpha()
        if is_word and ask("/tokenize", prompt=text, add_special_tokens=False)["tokens"] == [token]:
            found[token] = text.strip()
    return found


class Fields:
    """Requests that are sent at once, repeatedly.

    Args:
        client: the pipeline's.
        pool: its threads send the requests.
        wishes: the requests by name; by default all of the tables.
    """

    def __init__(
        self, client: httpx.Client, pool: ThreadPoolExecutor, wishes: Mapping[str, Wish] | None = None
    ) -> None:
        self._client, self._pool = client, pool
        wishes = wishes or all_wishes(client, pool)
        self._bodies = {name: {**wish.beside, **wish.asks} for name, wish in wishes.items()}
        self._plain = {name: wish.beside for name, wish in wishes.items()}
        self._undisturbed = self._send(self._bodies).answers()

    def without_effect(self) -> list[str]:
        """The names of the requests whose field has no effect on the answer, so that they would prove nothing."""
        plain = self._send(self._plain).answers()
        return [name for name in plain if _visible(plain[name]) == _visible(self._undisturbed[name])]

    def through(self, change: Callable[[], None]) -> list[str]:
        """The differences in answers during which `change` is called; a prompt is being computed at that time, too."""
        load = self._send(self._bodies)
        load.wait_until_midst()
        beginning = self._send({name: body for name, body in self._bodies.items() if name == "prompt logprobs"})
        time.sleep(0.1)
        change()
        first, second = load.answers(), beginning.answers()
        return [
            *differences(first, self._undisturbed),
            *differences(second, {name: self._undisturbed[name] for name in second}),
        ]

    def _send(self, bodies: dict[str, dict[str, Any]]) -> Load:
        return Load(self._client, self._pool, TOKENS, bodies)


def all_wishes(client: httpx.Client, pool: ThreadPoolExecutor) -> dict[str, Wish]:
    """All requests that can be sent at once."""
    plain = Load(client, pool, TOKENS, {"plain": SEEDED}).answers()["plain"][0]
    late = late_wishes(plain, words_of(client, plain["tokens"]))
    assert tuple(late) == LATE_WISHES
    return {name: wish for name, wish in {**WISHES, **late, EMBEDS: embeds_wish()}.items() if name != ALONE}


def _visible(choices: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(one["tokens"], one["text"], one["end"], len(one["logprobs"])) for one in choices]


@pytest.fixture
def processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `processors.EveryNth` importable in stages."""
    monkeypatch.syspath_prepend(TESTS)
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=":")


@pytest.fixture
def running(
    speaker: Path, tmp_path: Path, processors: None
) -> Iterator[tuple[list[Stage], httpx.Client, ThreadPoolExecutor]]:
    """Two stages, their client, and threads that send requests."""
    with (
        pipeline(tmp_path, speaker, RANGES, *ARGUMENTS) as (stages, client),
        ThreadPoolExecutor(2 * len(WISHES)) as pool,
    ):
        yield stages, client, pool


def test_every_field_survives_a_kill(running: tuple[list[Stage], httpx.Client, ThreadPoolExecutor]) -> None:
    """The last stage is killed: it samples, and keeps most of a request's state."""
    stages, client, pool = running
    fields = Fields(client, pool)
    assert fields.without_effect() == []
    assert fields.through(stages[1].worker().kill) == []
    assert "recovered: every stage knows the" in stages[0].text()


@pytest.mark.long
def test_every_field_survives_a_rollout_and_the_loss_of_either_stage(
    running: tuple[list[Stage], httpx.Client, ThreadPoolExecutor], zpptool: Callable[..., Ran]
) -> None:
    stages, client, pool = running
    directory = run_directory(stages)

    def roll_out() -> None:
        ran = zpptool("rollout", "--run-dir", directory, timeout_s=BACK_S)
        assert ran.code == 0, ran.err

    found = {}
    for group in (Fields(client, pool), Fields(client, pool, {ALONE: WISHES[ALONE]})):
        assert group.without_effect() == []
        for name, change in (
            ("rollout", roll_out),
            ("stage 0", lambda: stages[0].worker().kill()),
            ("stage 1", lambda: stages[1].worker().kill()),
        ):
            found[f"{name}, {len(found)}"] = group.through(change)
    assert not any(found.values()), f"different, by change: {json.dumps(found, indent=1)}"
    status = json.loads(zpptool("status", "--run-dir", directory, "--json").out)
    assert (status["planned"], status["recoveries"]) == (2 * len(RANGES), 4)


@pytest.mark.long
@pytest.mark.parametrize("task", ["embed", "token_embed"])
def test_vectors_survive_a_kill(speaker: Path, tmp_path: Path, task: str) -> None:
    """Long prompts in many small steps, so that the loss is in the middle of most of them. A server has a single
    task."""
    arguments = (
        "--pooler-config", json.dumps({"task": task}),
        "--runner", "pooling", "--max-num-batched-tokens", "64", "--hf-overrides", '{"is_matryoshka": true}',
        "--kv-cache-memory-bytes", 96 << 20,
    )  # fmt: skip
    prompts = [f"{number} {PROMPT * 70}" for number in range(6)]
    bodies = [
        {"model": "m", "input": prompt, **wish}
        for prompt in prompts
        for wish in POOLED.values()
        if wish["task"] == task
    ]
    with pipeline(tmp_path, speaker, RANGES, *arguments) as (stages, client), ThreadPoolExecutor(len(bodies)) as pool:

        def ask(body: dict[str, Any]) -> Any:
            path = "/v1/embeddings" if "dimensions" in body else "/pooling"  # /pooling has no such field
            answer = client.post(path, json={**body, "task": None} if "dimensions" in body else body)
            assert answer.status_code == httpx.codes.OK, answer.text
            return answer.json()["data"]

        undisturbed = list(pool.map(ask, bodies))
        assert len({str(answer) for answer in undisturbed}) == len(bodies)
        pending = [pool.submit(ask, body) for body in bodies]
        while not any(one.done() for one in pending):
            time.sleep(0.002)
        stages[1].worker().kill()
        assert not all(one.done() for one in pending)
        for body, one, expected in zip(bodies, pending, undisturbed, strict=True):
            same(expected, one.result(BACK_S), str({**body, "input": body["input"][:1]}))
        assert "recovered: every stage knows the" in stages[0].text()
