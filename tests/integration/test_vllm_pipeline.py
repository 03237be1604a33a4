# SPDX-License-Identifier: Apache-2.0
"""Real vLLM on the CPU with the real small model in real processes: parity, the OpenAI API, and every kind of end."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import Ran
from stages import END_S, Stage, completion, free_base_port, started, wait_until_ready

pytest.importorskip("vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.model, pytest.mark.timeout(900)]

ENGINE_ARGUMENTS = ("--", "--enforce-eager", "--kv-cache-memory-bytes", "268435456", "--max-model-len", "1024")
RANGES = ("0-7", "7-19", "19-30")
READY_S = 500


@pytest.fixture(scope="module")
def stages(real_model: Path, tmp_path_factory: pytest.TempPathFactory, zpptool: Callable[..., Ran]) -> Path:
    """The real model in three uneven stages."""
    out = tmp_path_factory.mktemp("split") / "stages"
    done = zpptool("split", real_model, "--ranges", *RANGES, "--output-dir", out)
    assert done.code == 0, done.err
    return out


@contextmanager
def running(
    stages: Path, tmp_path: Path, order: tuple[int, ...], **sources: tuple[object, ...]
) -> Iterator[tuple[list[Stage], httpx.Client]]:
    """All three stages, started in this order, and a client of their API; `stage_1=(...)` replaces a stage's
    arguments."""
    base = free_base_port(5)
    api = base + 4
    links = ("--base-port", base, "--port", api, "--recovery-deadline", 0, *ENGINE_ARGUMENTS)
    commands = [(*sources.get(f"stage_{stage}", (stages / f"stage_{stage}",)), *links) for stage in order]
    url = f"http://127.0.0.1:{api}"
    with (
        started(tmp_path, commands) as running_stages,
        httpx.Client(base_url=url, timeout=120, trust_env=False) as client,
    ):
        wait_until_ready(url, running_stages, READY_S)
        for stage in running_stages:
            stage.look()
        yield [running_stages[order.index(stage)] for stage in range(len(order))], client


def test_three_uneven_pre_split_stages_give_the_unsplit_tokens(
    stages: Path, real_model: Path, tmp_path: Path, zpptool: Callable[..., Ran]
) -> None:
    """Over ipc; one prompt is longer than a KV block, one has more tokens than a step."""
    done = zpptool(
        *("test-pipeline", "--pipeline-dir", stages, "--model", real_model, "--engine", "vllm", "--num-stages", 3),
        *("--test-input", "Water boils at", "--test-input", "def add(a, b):", "--max-new-tokens", 24, "--json"),
        *("--report", tmp_path / "report.json", "--junit", tmp_path / "junit.xml", "--log-dir", tmp_path / "logs"),
        timeout_s=800,
    )
    assert done.code == 0, done.err
    outcome = done.json
    assert outcome["verdict"] == "identical"
    assert (outcome["engine"], outcome["num_stages"], len(outcome["prompts"])) == ("vllm", 3, 4)
    assert sorted(prompt["prompt_tokens"] for prompt in outcome["prompts"])[-2:] == [150, 300]
    for prompt in outcome["prompts"]:
        assert prompt["token_ids"] == prompt["reference_token_ids"] != []
    assert json.loads((tmp_path / "report.json").read_text())["verdict"] == "identical"
    assert 'failures="0"' in (tmp_path / "junit.xml").read_text()
    for stage, layers in enumerate(RANGES):
        assert f"loading layers {layers}" in (tmp_path / "logs" / f"stage-{stage}.log").read_text()


@pytest.mark.long
def test_two_stages_that_load_their_own_layers_give_the_unsplit_tokens(
    real_model: Path, zpptool: Callable[..., Ran]
) -> None:
    """Over tcp, from the full checkpoint. Both sides batch freely, in a dtype in which batching changes no token."""
    done = zpptool(
        *("test-pipeline", real_model, "--ranges", "0-11", "11-30", "--engine", "vllm", "--json"),
        *("--batched", "--dtype", "float32"),
        *("--base-port", free_base_port(3), "--max-new-tokens", 16),
        timeout_s=800,
    )
    assert done.code == 0, done.err
    assert done.json["verdict"] == "identical"


def test_the_openai_api_of_a_mixed_pipeline_and_a_clean_end(stages: Path, real_model: Path, tmp_path: Path) -> None:
    """Stages in any order, one of them from the full checkpoint: chat, streaming, logprobs, a schema, many at once.

    In float32, so that the other sequences of a batch do not change a sequence's tokens.
    """
    exact = ("--dtype", "float32")
    dynamic = (real_model, "--stage-idx", 1, "--total-stages", 3, "--layer-range", "7-19", *exact)
    own = {f"stage_{stage}": (stages / f"stage_{stage}", *exact) for stage in (0, 2)}
    with running(stages, tmp_path, (2, 0, 1), stage_1=dynamic, **own) as (running_stages, client):
        chat = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
        answer = client.post("/v1/chat/completions", json={**chat, "max_tokens": 16}).json()
        assert "Paris" in answer["choices"][0]["message"]["content"]

        with client.stream("POST", "/v1/chat/completions", json={**chat, "max_tokens": 16, "stream": True}) as lines:
            events = [json.loads(line[6:]) for line in lines.iter_lines() if line.startswith("data: {")]
        streamed = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
        assert streamed == answer["choices"][0]["message"]["content"]

        scored = completion(client, prompt="The sky is", logprobs=3, max_tokens=4)["logprobs"]
        for token, chosen, top in zip(scored["tokens"], scored["token_logprobs"], scored["top_logprobs"], strict=True):
            assert max(top.values()) == chosen == top[token] < 0

        schema = {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
            "required": ["name", "age"],
            "additionalProperties": False,
        }
        person_format = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
        limits = {"max_tokens": 64, "response_format": person_format}
        person = client.post("/v1/chat/completions", json={**chat, **limits}).json()
        assert set(json.loads(person["choices"][0]["message"]["content"])) == {"name", "age"}

        alone = [completion(client, prompt=f"Number {n}:", seed=n, temperature=0.8)["text"] for n in range(8)]
        with ThreadPoolExecutor(8) as pool:
            pending = [
                pool.submit(completion, client, prompt=f"Number {n}:", seed=n, temperature=0.8) for n in range(8)
            ]
            together = [answer.result()["text"] for answer in pending]
        assert together == alone

        last = running_stages[2]
        began = time.monotonic()
        last.process.send_signal(signal.SIGINT)
        assert last.wait(END_S) == 130
        for stage in running_stages[:2]:
            assert stage.wait(END_S) == 6, stage.text()[-2000:]
        assert time.monotonic() - began < END_S
        assert [process for stage in running_stages for process in stage.left_behind()] == []
        assert "has lost stage 2" in running_stages[0].text()  # reported by the head or by stage 1, whichever is first


@pytest.mark.long
def test_a_killed_stage_is_named_and_nothing_is_left_running(stages: Path, tmp_path: Path) -> None:
    with running(stages, tmp_path, (0, 1, 2)) as (running_stages, client), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(
            client.post, "/v1/completions", json={"prompt": "Once", "max_tokens": 900, "ignore_eos": True}
        )
        time.sleep(1.5)
        began = time.monotonic()
        running_stages[1].worker().kill()
        assert answer.result(END_S).status_code == 500
        assert [stage.wait(END_S) for stage in running_stages] == [6, 6, 6]
        assert time.monotonic() - began < END_S
        assert [process for stage in running_stages for process in stage.left_behind()] == []
        assert "stage 1 was killed by SIGKILL" in running_stages[1].text()
        assert re.search(r"error: head: stage [02] has lost stage 1", running_stages[0].text())  # either may be first


@pytest.mark.long
def test_the_terminal_of_the_head_is_killed(stages: Path, tmp_path: Path) -> None:
    """SIGKILL of the foreground process of stage 0 ends its worker, head and engine core, and the other stages."""
    with running(stages, tmp_path, (0, 1, 2)) as (running_stages, _client):
        running_stages[0].process.kill()
        for stage in running_stages[1:]:
            assert stage.wait(END_S) in (0, 6), stage.text()[-2000:]
        processes = [process for stage in running_stages for process in stage._seen]
        ended, alive = psutil.wait_procs(processes, timeout=END_S)
        assert alive == []
        assert len(ended) >= 6


@pytest.mark.long
def test_stages_that_do_not_fit_are_refused_before_anything_is_loaded(stages: Path, tmp_path: Path) -> None:
    base = free_base_port(5)
    other = (*ENGINE_ARGUMENTS[:-1], "512")
    commands = [
        (stages / f"stage_{stage}", "--base-port", base, "--port", base + 4, "--recovery-deadline", 0, *arguments)
        for stage, arguments in enumerate((ENGINE_ARGUMENTS, other, ENGINE_ARGUMENTS))
    ]
    with started(tmp_path, commands) as refused:
        assert refused[1].wait(READY_S) == 3
        assert refused[2].wait() == 3
        assert refused[0].wait(2 * END_S) == 3
        for stage in refused:
            assert "has max_model_len 512, the head has 1024" in stage.text()
            assert "loading layers" not in stage.text()
