# SPDX-License-Identifier: Apache-2.0
"""Stages of real vLLM are killed under load: no request fails, and every answer equals that of an undisturbed run.

In float32, so that the other sequences of a batch do not change a sequence's tokens.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from adapters import write_adapter
from served import Served
from stages import Stage, completion, free_base_port, started, wait_until_ready

pytest.importorskip("vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.model, pytest.mark.timeout(1500)]

BACK_S = 600
"""How long a stage may take to import vLLM and load, on a busy machine."""
LOGPROB_TOLERANCE = 2e-3
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
}
PROMPT = "The capital of France is Paris. The capital of Spain is"
REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 0.8, "seed": 5},
    "truncated": {"temperature": 1.1, "seed": 6, "top_p": 0.9, "top_k": 40, "min_p": 0.01},
    "n": {"temperature": 0.9, "seed": 7, "n": 3},
    "penalties": {"presence_penalty": 1.0, "frequency_penalty": 0.5},
    "repetition": {"repetition_penalty": 1.4},
    "logprobs": {"logprobs": 3},
    "schema": {"structured_outputs": {"json": SCHEMA}, "temperature": 0.7, "seed": 8},
    "stop": {"stop": ["zebra"], "include_stop_str_in_output": True},
    "long": {"prompt": PROMPT * 20},
    "adapter": {"model": "tuned"},
    "adapter and seed": {"model": "tuned", "temperature": 0.9, "seed": 9},
}


class Load:
    """Many requests at once.

    Args:
        client: the pipeline's.
        pool: its threads send the requests.
        tokens: the number of tokens of each answer, unless a schema ends it.
        requests: bodies by name.
    """

    def __init__(
        self,
        client: httpx.Client,
        pool: ThreadPoolExecutor,
        tokens: int,
        requests: Mapping[str, dict[str, Any]] = REQUESTS,
    ) -> None:
        self._client = client
        self.seen: list[int] = []
        """One entry for each token that was received."""
        self._tokens = tokens
        self._answers = {name: pool.submit(self._ask, {"model": "m", **request}) for name, request in requests.items()}

    def wait_until_midst(self) -> None:
        """Wait until most requests are in the middle of their answers."""
        while len(self.seen) < self._tokens // 4 * len(self._answers):
            time.sleep(0.005)
        assert not all(answer.done() for answer in self._answers.values())

    def answers(self) -> dict[str, list[dict[str, Any]]]:
        """The choices of the answer to each request."""
        return {name: answer.result(BACK_S) for name, answer in self._answers.items()}

    def _ask(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        body = {
            "prompt": PROMPT, "max_tokens": self._tokens, "temperature": 0, "return_token_ids": True,
            "ignore_eos": "structured_outputs" not in request, **request,
        }  # fmt: skip
        choices: dict[int, dict[str, Any]] = {}
        with self._client.stream("POST", "/v1/completions", json={**body, "stream": True}) as lines:
            assert lines.status_code == httpx.codes.OK
            for line in lines.iter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    assert "error" not in event, event
                    for part in event["choices"]:
                        choice = choices.setdefault(part["index"], {"tokens": [], "text": "", "logprobs": []})
                        self._append(choice, part)
        assert len(choices) == request.get("n", 1)
        assert all(choice["end"] for choice in choices.values()), choices
        return [choices[index] for index in sorted(choices)]

    def _append(self, choice: dict[str, Any], part: dict[str, Any]) -> None:
        tokens = part.get("token_ids") or []
        self.seen.extend(tokens)
        choice["tokens"] += tokens
        choice["text"] += part["text"]
        logprobs = part.get("logprobs") or {"token_logprobs": [], "top_logprobs": []}
        for own, top in zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True):
            choice["logprobs"] += [own or 0.0, *((top or {})[word] for word in sorted(top or {}))]
        choice["end"] = part["finish_reason"]


def _first_difference(ones: list[float], others: list[float]) -> str:
    """Where two lists of logprobs begin to differ."""
    if len(ones) != len(others):
        return f"{len(ones)} and {len(others)} of them"
    pairs = enumerate(zip(ones, others, strict=True))
    at, (one, other) = next(pair for pair in pairs if abs(pair[1][0] - pair[1][1]) > LOGPROB_TOLERANCE)
    return f"from number {at} of {len(ones)}: {one} and {other}"


def differences(ones: dict[str, list[dict[str, Any]]], others: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Every choice that differs, and its first different token."""
    found = []
    for name in others:
        for index, (ours, theirs) in enumerate(zip(ones[name], others[name], strict=True)):
            pairs = zip(ours["tokens"], theirs["tokens"], strict=False)
            at = next((at for at, (one, other) in enumerate(pairs) if one != other), -1)
            if at >= 0 or len(ours["tokens"]) != len(theirs["tokens"]):
                sizes = f"{len(ours['tokens'])} and {len(theirs['tokens'])} tokens"
                found.append(f"{name} [{index}]: from token {at} of {sizes}")
            elif (ours["text"], ours["end"]) != (theirs["text"], theirs["end"]):
                found.append(f"{name} [{index}]: {ours} is not {theirs}")
            elif ours["logprobs"] != pytest.approx(theirs["logprobs"], abs=LOGPROB_TOLERANCE):
                found.append(f"{name} [{index}]: logprobs {_first_difference(ours['logprobs'], theirs['logprobs'])}")
    return found


@contextmanager
def pipeline(
    directory: Path, model: Path, ranges: Sequence[str], *arguments: object, spares: int = 0
) -> Iterator[tuple[list[Stage], httpx.Client]]:
    """Stages of a model with an adapter, which survive the loss of a stage, and a client of them."""
    tuned = write_adapter(directory / "tuned", model, seed=0)
    base = free_base_port(len(ranges) + 2)
    port = base + len(ranges) + 1
    arguments_of_all = (
        *("--model", model, "--ranges", *ranges, "--dtype", "float32", "--base-port", base, "--port", port),
        *("--recovery-deadline", BACK_S, "--start-timeout", BACK_S, "--beat-timeout", BACK_S),
        *("--standby", spares, "--"),
        *("--enforce-eager", "--max-model-len", "1024", "--served-model-name", "m", *arguments),
        *("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"tuned={tuned}"),
    )
    url = f"http://127.0.0.1:{port}"
    commands = [("--stage-idx", stage, *arguments_of_all) for stage in range(len(ranges))]
    with started(directory, commands) as stages, httpx.Client(base_url=url, timeout=BACK_S, trust_env=False) as client:
        wait_until_ready(url, stages, BACK_S)
        yield stages, client


def kill_under_load(stages: list[Stage], client: httpx.Client, tokens: int, losses: Sequence[tuple[int, ...]]) -> None:
    """Kill stages, one loss after the other, each under a load of its own, and compare the answers."""
    found: dict[str, list[str]] = {}
    with ThreadPoolExecutor(len(REQUESTS)) as pool:
        undisturbed = Load(client, pool, tokens).answers()
        found["nothing"] = differences(Load(client, pool, tokens).answers(), undisturbed)
        for lost in losses:
            load = Load(client, pool, tokens)
            load.wait_until_midst()
            for stage in lost:
                stages[stage].worker().kill()
            found[str(lost)] = differences(load.answers(), undisturbed)
    assert not any(found.values()), f"different, by loss: {json.dumps(found, indent=1)}"
    assert stages[0].text().count("recovered: every stage knows the") >= len(losses)
    for stage in stages:
        assert stage.process.poll() is None


@pytest.mark.long
def test_stages_killed_under_load_change_no_answer(speaker: Path, tmp_path: Path) -> None:
    """Each stage in turn, then two at once; their commands restart them. Prompts are computed in several steps."""
    limits = ("--max-num-batched-tokens", "64", "--kv-cache-memory-bytes", 64 << 20)
    with pipeline(tmp_path, speaker, ("0-1", "1-2", "2-4"), *limits) as (stages, client):
        kill_under_load(stages, client, 96, [(0,), (1,), (2,), (0, 2)])


@pytest.mark.long
def test_a_spare_process_takes_the_place_of_a_stage(speaker: Path, tmp_path: Path) -> None:
    limits = ("--max-num-batched-tokens", "64", "--kv-cache-memory-bytes", 64 << 20)
    with pipeline(tmp_path, speaker, ("0-2", "2-4"), *limits, spares=1) as (stages, client):
        for stage in stages:
            while "a spare process is ready" not in stage.text():
                assert stage.process.poll() is None
                time.sleep(0.1)
        kill_under_load(stages, client, 96, [(0,), (1,)])
        for index, stage in enumerate(stages):
            (pid,) = re.findall(rf"a spare process becomes stage {index} \(pid (\d+)\)", stage.text())
            assert int(pid) in {process.pid for process in stage.look()}


@pytest.mark.long
def test_stages_of_the_real_model_killed_under_load_change_no_answer(real_model: Path, tmp_path: Path) -> None:
    limits = ("--max-num-batched-tokens", "128", "--kv-cache-memory-bytes", 256 << 20)
    with pipeline(tmp_path, real_model, ("0-10", "10-20", "20-30"), *limits) as (stages, client):
        kill_under_load(stages, client, 32, [(0,), (1,), (2,), (0, 2)])


@pytest.mark.long
def test_a_compiled_stage_restarts_without_compiling_again(
    speaker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    logs = tmp_path / "logs"
    one = Served(
        tmp_path, speaker, "--num-stages", 2, "--engine", "vllm", "--dtype", "float32", "--served-model-name", "m",
        "--log-dir", logs, "--start-timeout", BACK_S, "--recovery-deadline", BACK_S, "--beat-timeout", BACK_S,
        "--", "--max-model-len", 256, "--kv-cache-memory-bytes", 64 << 20,
    )  # fmt: skip
    try:
        one.until_ready(within_s=BACK_S)
        with httpx.Client(base_url=one.url, timeout=BACK_S, trust_env=False) as client:
            before = completion(client, prompt=PROMPT, max_tokens=64)
            one.look()["stage 1"].kill()
            assert completion(client, prompt=PROMPT, max_tokens=64) == before
        first, second = ((logs / f"epoch-{epoch}/stage-1.log").read_text() for epoch in (1, 2))
        assert "for the compilation" in first
        assert "for the compilation" in second
        assert "Compiling model again" not in second
    finally:
        one.close()
