# SPDX-License-Identifier: Apache-2.0
"""The embedded engine as real processes on tiny models: parity, many requests at once, refusals, every kind of end."""

from __future__ import annotations

import html
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from xml.etree import ElementTree

import psutil
import pytest

pytest.importorskip("transformers")
pytest.importorskip("httpx")

import httpx

from tests.conftest import Ran
from tests.stages import END_S, Stage, completion, free_base_port, started, wait_until_ready
from zpptool.config.engine_kind import Engine
from zpptool.config.stage_spec import StageSpec

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]

READY_S = 120
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
LIVELY = {"initializer_range": 0.5}
"""At the usual scale a random model with tied embeddings repeats its last token, whatever its layers compute."""
PROMPTS = ("--test-input", "one two", "--test-input", "déjà vu", "--max-new-tokens", 12)


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., Path]) -> Path:
    """Sequences may be long enough that an answer is still in progress when a test needs one."""
    return tiny_model("llama", layers=4, max_position_embeddings=8192, **LIVELY)


@pytest.fixture(scope="module")
def stages(model: Path, tmp_path_factory: pytest.TempPathFactory, zpptool: Callable[..., Ran]) -> Path:
    """The tiny model in three stages."""
    out = tmp_path_factory.mktemp("split") / "stages"
    done = zpptool("split", model, "--num-stages", 3, "--output-dir", out)
    assert done.code == 0, done.err
    return out


def running_on(directory: Path) -> list[psutil.Process]:
    """The processes of this machine with a path in `directory` on their command line. Those that have been killed get a
    moment to end."""
    own = os.getpid()
    found = [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.pid != own and any(str(directory) in word for word in process.info["cmdline"] or ())
    ]
    return psutil.wait_procs(found, timeout=1)[1]


def commands(stages: Path, base_port: int, api_port: int, order: tuple[int, ...] = (0, 1, 2)) -> list[list[object]]:
    """The command lines of the pre-split stages, in this order."""
    common = ["--engine", "transformers", "--base-port", base_port, "--port", api_port, "--recovery-deadline", 0]
    return [[stages / f"stage_{stage}", *common] for stage in order]


@contextmanager
def pipeline(
    stages: Path, logs: Path, order: tuple[int, ...] = (0, 1, 2)
) -> Iterator[tuple[list[Stage], httpx.Client]]:
    """The three stages, started in this order, and a client of their API once it answers. Sorted by stage."""
    base_port = free_base_port(5)
    url = f"http://127.0.0.1:{base_port + 4}"
    with started(logs, commands(stages, base_port, base_port + 4, order)) as running:
        wait_until_ready(url, running, READY_S)
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            yield (
                [stage for _place, stage in sorted(zip(order, running, strict=True), key=lambda pair: pair[0])],
                client,
            )


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_pre_split_stages_give_the_unsplit_tokens(
    model_type: str, tiny_model: Callable[..., Path], tmp_path: Path, zpptool: Callable[..., Ran]
) -> None:
    """Three uneven stages over ipc, without the source: the unsplit model is joined from the stages."""
    stages = tmp_path / "stages"
    source = tiny_model(model_type, layers=5, **LIVELY)
    assert zpptool("split", source, "--ranges", "0-1", "1-4", "4-5", "--output-dir", stages).code == 0
    done = zpptool("test-pipeline", "--pipeline-dir", stages, *PROMPTS, "--json", timeout_s=200, env=ONE_THREAD)
    assert done.code == 0, done.err
    outcome = done.json
    assert (outcome["verdict"], outcome["engine"], outcome["num_stages"]) == ("identical", "transformers", 3)
    assert [stage["layers"] for stage in outcome["stages"]] == [[0, 1], [1, 4], [4, 5]]
    assert (outcome["witness"]["verdict"], outcome["witness"]["wrong_weights"]) == ("identical", [])
    assert [prompt["prompt_tokens"] for prompt in outcome["prompts"]] == [7, 9, 150, 300]
    for prompt in outcome["prompts"]:
        assert prompt["token_ids"] == prompt["reference_token_ids"]
    assert len({token for prompt in outcome["prompts"] for token in prompt["token_ids"]}) > 8
    assert running_on(tmp_path) == []


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_stages_that_load_their_own_layers_give_the_unsplit_tokens(
    model_type: str, tiny_model: Callable[..., Path], tmp_path: Path, zpptool: Callable[..., Ran]
) -> None:
    """Two even stages over tcp, from a checkpoint of several files, with machine-readable reports."""
    source = tiny_model(model_type, layers=4, shard_size="30KB", **LIVELY)
    report, junit, logs = tmp_path / "report.json", tmp_path / "junit.xml", tmp_path / "logs"
    done = zpptool(
        *("test-pipeline", source, "--num-stages", 2, "--base-port", free_base_port(3), *PROMPTS, "--no-long-prompts"),
        *("--report", report, "--junit", junit, "--log-dir", logs),
        timeout_s=200,
        env=ONE_THREAD,
    )
    assert done.code == 0, done.err
    assert "verdict: identical" in done.out
    outcome = json.loads(report.read_text())
    assert outcome["verdict"] == "identical"
    assert [prompt["prompt"] for prompt in outcome["prompts"]] == ["one two", "déjà vu"]
    assert len({token for prompt in outcome["prompts"] for token in prompt["token_ids"]}) > 4
    suite = ElementTree.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "0", "0")
    assert outcome["witness"]["verdict"] == "identical"
    assert outcome["witness"]["differing"] == 0 < outcome["witness"]["hashes"]
    assert sorted(path.name for path in logs.iterdir()) == ["head.log", "reference.log", "stage-0.log", "stage-1.log"]
    assert running_on(source) == []


def test_a_pipeline_with_wrong_weights_differs_from_the_unsplit_model(
    stages: Path, model: Path, tmp_path: Path, zpptool: Callable[..., Ran]
) -> None:
    """One stage's weights are changed: the comparison must detect it (exit 4), name the weight, and fail in every
    report."""
    wrong = tmp_path / "stages"
    for directory in stages.iterdir():
        if directory.is_dir():
            (wrong / directory.name).mkdir(parents=True)
            for file in directory.iterdir():
                (wrong / directory.name / file.name).write_bytes(file.read_bytes())
    weights = next((wrong / "stage_1").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-4000:] = bytes(4000)
    weights.write_bytes(content)
    junit, page = tmp_path / "junit.xml", tmp_path / "page.html"
    done = zpptool(
        *("test-pipeline", "--pipeline-dir", wrong, "--model", model, *PROMPTS, "--no-long-prompts", "--json"),
        *("--junit", junit, "--page", page),
        timeout_s=200,
        env=ONE_THREAD,
    )
    assert done.code == 4, done.err
    assert done.json["verdict"] == "different"
    different = [prompt for prompt in done.json["prompts"] if not prompt["identical"]]
    for prompt in different:
        first = prompt["first_difference"]
        assert prompt["token_ids"][:first] == prompt["reference_token_ids"][:first]
        assert prompt["token_ids"][first : first + 1] != prompt["reference_token_ids"][first : first + 1]
    assert ElementTree.parse(junit).getroot().get("failures") == str(len(different) + 1) != "1"
    cause = done.json["cause"]
    zeroed = [f"self_attn.{name}.weight" for name in ("q_proj", "v_proj")]
    assert (cause["kind"], cause["stage"], cause["layer"], cause["step"]) == ("weights", 1, 2, 0)
    assert (cause["tap"], cause["tensor"]) == ("self_attn.q_proj", zeroed[0])
    assert cause["cause"] == f"layer 2's weight {zeroed[0]} differs in 16 of 32 rows"
    assert (cause["element"]["got"], cause["element"]["got_bits"]) == (0.0, "0x00000000")
    assert {part["part"]: (part["differs"], part["heals"]) for part in cause["transplants"]} == {
        "input": (False, False), "weights": (True, True), "positions": (False, False),
    }  # fmt: skip
    wrong_weights = [weight["name"] for weight in done.json["witness"]["wrong_weights"]]
    assert wrong_weights == [f"model.layers.2.{name}" for name in zeroed]
    assert cause["cause"] in html.unescape(page.read_text())


SCORED = {
    "prompt": "again and again", "n": 3, "seed": 5, "temperature": 1.2, "min_p": 0.01, "logprobs": 3, "max_tokens": 12,
    "presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.5,
}  # fmt: skip
"""A request for several sequences, whose choices depend on the tokens before."""


def test_many_requests_at_once_give_the_unsplit_models_answers(stages: Path, model: Path, tmp_path: Path) -> None:
    """Seeded and streamed, with stages started in any order. An answer does not depend on the others in flight."""
    requests = [
        {"prompt": f"number {n}", "seed": n, "temperature": 0.9, "top_k": 40, "top_p": 0.9, "max_tokens": 4 + n % 9}
        for n in range(24)
    ]
    options = {"return_token_ids": True, "ignore_eos": True}
    with pipeline(stages, tmp_path, (2, 0, 1)) as (running, client):
        began = time.monotonic()
        with ThreadPoolExecutor(len(requests)) as pool:
            together = list(pool.map(lambda body: completion(client, **body, **options), requests))
        print(f"{sum(len(choice['token_ids']) for choice in together)} tokens in {time.monotonic() - began:.2f} s")
        several = client.post(
            "/v1/completions", json={**requests[3], **options, "prompt": ["number 3", "number 9"]}
        ).json()

        streamed = []
        with client.stream("POST", "/v1/completions", json={**requests[5], **options, "stream": True}) as response:
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    streamed += json.loads(line[6:])["choices"][0]["token_ids"]
        with client.stream(
            "POST", "/v1/completions", json={"prompt": "x", "stream": True, "max_tokens": 8000, "ignore_eos": True}
        ) as response:
            next(response.iter_lines())  # and disconnect
        scored = client.post("/v1/completions", json={**SCORED, **options}).json()["choices"]
        refused = client.post("/v1/completions", json={"prompt": "x", "best_of": 2})
        chat = client.post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        )
        assert [choice["token_ids"] for choice in together[:3]] == [
            completion(client, **body, **options)["token_ids"] for body in requests[:3]
        ]

        for stage in running:
            stage.look()
        with ThreadPoolExecutor(1) as pool:
            unfinished = pool.submit(
                client.post, "/v1/completions", json={"prompt": "x", "max_tokens": 8000, "ignore_eos": True}
            )
            time.sleep(0.3)
            running[0].process.send_signal(signal.SIGINT)
            assert [stage.wait() for stage in running] == [130, 0, 0], [stage.text()[-2000:] for stage in running]
            assert unfinished.result(1).json()["error"]["code"] == "pipeline_stopping"
        assert [process for stage in running for process in stage.left_behind()] == []

    with unsplit(model, tmp_path) as client:
        expected = [completion(client, **body, **options) for body in requests]
        alone = [completion(client, **{**SCORED, **options, "n": 1, "seed": SCORED["seed"] + n}) for n in range(3)]
    assert [choice["token_ids"] for choice in together] == [choice["token_ids"] for choice in expected]
    assert [choice["text"] for choice in together] == [choice["text"] for choice in expected]
    assert streamed == expected[5]["token_ids"]
    assert several["choices"][0]["token_ids"] == expected[3]["token_ids"]
    assert len({tuple(choice["token_ids"]) for choice in together}) > 20, "different seeds give different answers"
    assert [{**choice, "index": 0} for choice in scored] == alone, "log probabilities too"
    assert len({tuple(choice["token_ids"]) for choice in scored}) == 3
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "best_of")
    assert "no chat template" in chat.json()["error"]["message"]


@contextmanager
def unsplit(model: Path, logs: Path) -> Iterator[httpx.Client]:
    """A client of the process that serves the unsplit model for comparisons."""
    port = free_base_port()
    spec = StageSpec(
        engine=Engine.TRANSFORMERS, model=str(model), partition=((0, 4),), stage=0, bind="", connect="", api_port=port
    )
    with (logs / "reference.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "zpptool.engines.transformers.reference", spec.to_json()],
            env={**os.environ, **ONE_THREAD},
            stderr=log,
        )
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", [], READY_S)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            yield client
    finally:
        process.terminate()
        assert process.wait(END_S) == 128 + signal.SIGTERM


@pytest.mark.parametrize("lost", [1, 2])
def test_a_killed_stage_is_named_and_nothing_is_left_running(stages: Path, tmp_path: Path, lost: int) -> None:
    """SIGKILL of a worker in the middle of an answer: every stage ends with 6, and the head names the stage."""
    with pipeline(stages, tmp_path) as (running, client), ThreadPoolExecutor(1) as pool:
        body = {"prompt": "once", "max_tokens": 8000, "ignore_eos": True}
        answer = pool.submit(client.post, "/v1/completions", json=body)
        time.sleep(0.5)
        assert not answer.done(), answer.result().text
        for stage in running:
            stage.look()
        began = time.monotonic()
        running[lost].worker().kill()
        assert answer.result(END_S).status_code in (500, 503)
        codes = [stage.wait() for stage in running]
        assert time.monotonic() - began < END_S
        assert codes[0] == codes[lost] == 6, [stage.text()[-2000:] for stage in running]
        assert [process for stage in running for process in stage.left_behind()] == []
        assert f"stage {lost} was killed by SIGKILL" in running[lost].text()
        assert re.search(rf"error: head: \w+( \d)? has lost stage {lost} at", running[0].text())


def test_a_trial_whose_stage_dies_names_it(stages: Path, tmp_path: Path) -> None:
    """`test-pipeline` ends with 6, names the stage that was killed, shows its log, and leaves nothing running."""
    report = tmp_path / "report.json"
    trial = subprocess.Popen(
        [
            *(sys.executable, "-m", "zpptool", "test-pipeline", "--pipeline-dir", stages),
            *("--test-input", "x", "--no-long-prompts", "--report", report),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **ONE_THREAD},
    )
    find_child(trial.pid, "zpptool.engines.transformers.worker", stages / "stage_1").kill()
    _out, err = trial.communicate(timeout=END_S + 10)
    assert trial.returncode == 6, err
    assert "error: stage 1 was killed by SIGKILL" in err
    assert json.loads(report.read_text())["verdict"] == "error"
    assert running_on(stages) == []


def test_an_interrupted_trial_leaves_nothing_running(stages: Path) -> None:
    trial = subprocess.Popen(
        [sys.executable, "-m", "zpptool", "test-pipeline", "--pipeline-dir", stages],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **ONE_THREAD},
    )
    find_child(trial.pid, "zpptool.engines.transformers.worker", stages / "stage_2")
    trial.send_signal(signal.SIGINT)
    assert trial.wait(END_S + 5) == 130
    assert running_on(stages) == []


def find_child(parent: int, module: str, directory: Path) -> psutil.Process:
    """Wait for the child that runs this module on this directory."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        for child in psutil.Process(parent).children():
            with suppress(psutil.Error):  # it has ended meanwhile
                command = child.cmdline()
                if module in command and f'"{directory}"' in command[-1]:
                    return child
        time.sleep(0.1)
    raise AssertionError(f"no {module} on {directory}")


def test_another_model_at_one_stage_is_refused_by_name(
    stages: Path, tiny_model: Callable[..., Path], tmp_path: Path, zpptool: Callable[..., Ran]
) -> None:
    other = tmp_path / "other"
    assert (
        zpptool("split", tiny_model("llama", layers=4, tied=False, **LIVELY), "--num-stages", 3, "-o", other).code == 0
    )
    base_port = free_base_port(5)
    lines = commands(stages, base_port, base_port + 4)
    lines[1][0] = other / "stage_1"
    with started(tmp_path, lines) as running:
        assert [stage.wait(READY_S) for stage in running] == [3, 3, 3], [stage.text() for stage in running]
        for stage in running:
            assert "stage 1 (" in stage.text()
            assert "has model digest" in stage.text()
            assert "loading layers" not in stage.text()


def test_another_dtype_at_one_stage_is_refused_by_name(stages: Path, tmp_path: Path) -> None:
    base_port = free_base_port(5)
    lines = commands(stages, base_port, base_port + 4)
    lines[2] += ["--dtype", "bfloat16"]
    with started(tmp_path, lines) as running:
        assert [stage.wait(READY_S) for stage in running] == [3, 3, 3]
        assert "has dtype bfloat16, the head has float32" in running[0].text()


@pytest.mark.parametrize("taken", ["the forward port of stage 1", "the API's port"])
def test_a_port_in_use_is_reported_before_anything_is_loaded(stages: Path, tmp_path: Path, taken: str) -> None:
    base_port = free_base_port(5)
    stage, port = (1, base_port + 1) if "forward" in taken else (0, base_port + 4)
    with (
        socket.create_server(("127.0.0.1", port)),
        started(tmp_path, commands(stages, base_port, base_port + 4)) as running,
    ):
        assert running[stage].wait(READY_S) == 5, running[stage].text()
        assert f"127.0.0.1:{port}" in running[stage].text()
        assert "loading layers" not in running[stage].text()


def test_arguments_of_another_engine_are_refused(model: Path, zpptool: Callable[..., Ran]) -> None:
    done = zpptool("test-pipeline", model, "--num-stages", 2, "--", "--enforce-eager", timeout_s=100)
    assert done.code == 2
    assert "--enforce-eager" in done.err


@pytest.mark.model
def test_the_real_model_in_five_uneven_stages(real_model: Path, zpptool: Callable[..., Ran]) -> None:
    """Over tcp; each stage reads its own tensors. A chat prompt, and two long ones."""
    done = zpptool(
        *("test-pipeline", real_model, "--ranges", "0-1", "1-2", "2-17", "17-29", "29-30", "--chat", "--json"),
        *("--base-port", free_base_port(6), "--test-input", "What is the capital of France?", "--max-new-tokens", 16),
        timeout_s=250,
        env=ONE_THREAD,
    )
    assert done.code == 0, done.err
    assert done.json["verdict"] == "identical"
    assert [prompt["prompt_tokens"] for prompt in done.json["prompts"]] == [37, 150, 300]
    assert "Paris" in done.json["prompts"][0]["text"]
