# SPDX-License-Identifier: Apache-2.0
"""Two faults at the edges of recovery: a stage that is lost while many clients disconnect, and a head that is killed
three times in a row. No answer of a client that stays is lost in the first; none that has not begun in the second.

For some seconds by default; the tests marked `long` take `ZPP_CHAOS_SECONDS` (300).
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
from killer import Killer, ServeCommand
from served import Served, serving, wait_for

pytest.importorskip("torch")

SHORT_S = 2.0
LONG_S = float(os.environ.get("ZPP_CHAOS_SECONDS", "300"))
STAGES = 3
PROMPTS = 8
TOKENS = 24
STAYING, LEAVING = 4, 12
"""Clients that wait for their answers, and clients that disconnect in the middle of theirs."""
DEADLINE_S = 60
FEWEST_KILLS = 2
HEADS = 3
"""How many stages are killed at least, and how many heads in a row."""
pytestmark = pytest.mark.timeout(LONG_S + 240)


@dataclass
class Outcome:
    """One request that was not answered in full.

    Attributes:
        error: what the client saw.
        tokens: how many it had received.
    """

    error: str
    tokens: int


@dataclass
class Clients:
    """Clients in threads that send one request after the other until they are stopped.

    Attributes:
        url: of the front.
        answers: of the requests that were answered in full, with the numbers of their prompts.
        failed: the others.
        aborted: how many requests were ended by their clients.
    """

    url: str
    answers: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    failed: list[Outcome] = field(default_factory=list)
    aborted: int = 0
    _over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self, staying: int, leaving: int = 0) -> None:
        """Start clients of both kinds."""
        for number in range(staying + leaving):
            run = self._stay if number < staying else self._leave
            thread = threading.Thread(target=run, args=(random.Random(number),), daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Let the requests in progress end, and no more begin."""
        self._over.set()
        for thread in self._threads:
            thread.join(2 * DEADLINE_S)
            assert not thread.is_alive(), "a client hangs"

    def wait_for_an_answer(self) -> None:
        """Wait until one more request has been answered in full."""
        answered = len(self.answers)
        wait_for(lambda: len(self.answers) > answered, 2 * DEADLINE_S)

    def answer(self, client: httpx.Client, number: int) -> tuple[int, ...] | Outcome:
        """The tokens of one answer, or how it failed."""
        tokens: list[int] = []
        try:
            for piece in pieces(client, number):
                tokens += piece
        except (httpx.HTTPError, RefusedError) as fault:
            return Outcome(repr(fault), len(tokens))
        return tuple(tokens) if len(tokens) == TOKENS else Outcome(f"ended after {len(tokens)} tokens", len(tokens))

    def _stay(self, chance: random.Random) -> None:
        with open_client(self.url) as client:
            while not self._over.is_set():
                number = chance.randrange(PROMPTS)
                answer = self.answer(client, number)
                with self._lock:
                    if isinstance(answer, Outcome):
                        self.failed.append(answer)
                    else:
                        self.answers.append((number, answer))

    def _leave(self, chance: random.Random) -> None:
        while not self._over.is_set():
            with open_client(self.url) as client:
                try:
                    for count, _piece in enumerate(pieces(client, chance.randrange(PROMPTS))):
                        if count >= chance.randrange(TOKENS):
                            break
                except (httpx.HTTPError, RefusedError) as fault:
                    with self._lock:
                        self.failed.append(Outcome(repr(fault), 0))
            with self._lock:
                self.aborted += 1


class RefusedError(Exception):
    """The front has answered with an error, as a status or as an event of a stream."""


def open_client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=2 * DEADLINE_S, trust_env=False)


def pieces(client: httpx.Client, number: int) -> Iterator[list[int]]:
    """The tokens of a streamed answer, event by event."""
    body = {
        "prompt": [2 + number, 50, 60 + number, 7], "max_tokens": TOKENS, "ignore_eos": True, "seed": number,
        "temperature": number % 2, "stream": True, "return_token_ids": True,
    }  # fmt: skip
    with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != httpx.codes.OK:
            raise RefusedError(f"status {response.status_code}: {response.read()[:200]!r}")
        for line in response.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                if "error" in event:
                    raise RefusedError(str(event["error"]))
                yield event["choices"][0].get("token_ids") or []


@pytest.fixture(scope="module")
def served(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    model = tiny_model("llama", layers=6, initializer_range=0.5)
    directory = tmp_path_factory.mktemp("edges")
    options = ("--num-stages", STAGES, "--recovery-deadline", DEADLINE_S, "--beat-timeout", 2)
    with serving(directory, model, *options) as command:
        yield command


@pytest.fixture(scope="module")
def undisturbed(served: Served) -> dict[int, tuple[int, ...]]:
    clients = Clients(served.url)
    with open_client(served.url) as client:
        answers = {number: clients.answer(client, number) for number in range(PROMPTS)}
    assert not [answer for answer in answers.values() if isinstance(answer, Outcome)]
    return answers  # type: ignore[return-value]


def compare(clients: Clients, undisturbed: dict[int, tuple[int, ...]]) -> int:
    """How many answers differ from those of the undisturbed pipeline."""
    return sum(answer != undisturbed[number] for number, answer in clients.answers)


@pytest.mark.parametrize("seconds", [SHORT_S, pytest.param(LONG_S, marks=pytest.mark.long)], ids=["short", "long"])
def test_stages_are_killed_while_many_clients_disconnect(
    seconds: float,
    served: Served,
    undisturbed: dict[int, tuple[int, ...]],
    record_property: Callable[[str, object], None],
) -> None:
    clients, killer = Clients(served.url), Killer(ServeCommand(served), STAGES, random.Random(1))
    clients.start(STAYING, LEAVING)
    end = time.monotonic() + seconds
    kills = 0
    while time.monotonic() < end or kills < FEWEST_KILLS or clients.aborted < 2 * LEAVING:
        time.sleep(killer.random.uniform(0.1, 1.0))
        killer.kill_one()
        kills += 1
        clients.wait_for_an_answer()
    clients.stop()
    with open_client(served.url) as client:
        status = client.get("/pipeline/status").json()
        wait_for(lambda: client.get("/pipeline/status").json()["requests"]["in_flight"] == 0, DEADLINE_S)
    record_property("stages killed", kills)
    record_property("requests aborted by their clients", clients.aborted)
    record_property("other requests", len(clients.answers))
    record_property("of these failed", len(clients.failed))
    record_property("answers that differ", compare(clients, undisturbed))
    assert clients.failed == []
    assert compare(clients, undisturbed) == 0
    assert len(clients.answers) > STAYING
    assert status["replicas"][0]["recoveries"] >= 1


def kill_heads_in_a_row(served: Served) -> None:
    """Kill the head, and twice more the one that has replaced it, before it is ready."""
    killed: set[int] = set()

    def next_head() -> psutil.Process | None:
        head = served.look().get("head")
        return head if head is not None and head.pid not in killed else None

    for _ in range(HEADS):
        head = wait_for(next_head, DEADLINE_S)
        assert head is not None
        killed.add(head.pid)
        head.kill()


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.long)], ids=["short", "long"])
def test_three_heads_killed_in_a_row_lose_no_request_that_has_not_begun(
    rounds: int,
    served: Served,
    undisturbed: dict[int, tuple[int, ...]],
    record_property: Callable[[str, object], None],
) -> None:
    clients = Clients(served.url)
    clients.start(2 * STAYING)
    with open_client(served.url) as client:
        for _ in range(rounds):
            clients.wait_for_an_answer()
            kill_heads_in_a_row(served)
            wait_for(lambda: client.get("/readyz").status_code == httpx.codes.OK, DEADLINE_S)
        clients.wait_for_an_answer()
    clients.stop()
    lost = [failure for failure in clients.failed if failure.tokens == 0]
    record_property("heads killed", rounds * HEADS)
    record_property("requests", len(clients.answers) + len(clients.failed))
    record_property("streams cut, each with an error event", len(clients.failed) - len(lost))
    record_property("requests lost that had not begun", len(lost))
    record_property("answers that differ", compare(clients, undisturbed))
    assert lost == []
    assert all("error" in failure.error.lower() for failure in clients.failed), clients.failed
    assert compare(clients, undisturbed) == 0
