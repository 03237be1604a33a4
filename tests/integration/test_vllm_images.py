# SPDX-License-Identifier: Apache-2.0
"""Requests with images through two stages: the answers of stock vLLM, also after a stage was killed; and a 400 with a
reason for what is not carried.

In float32, so that the other sequences of a batch do not change a sequence's tokens.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from answers import metric
from content_parts import BROKEN_PARTS, refuses
from stages import Stage, free_base_port, started, wait_until_ready
from vision import ROOT, make_model, message, python_path

from zpptool.checkpoint.stage_tensors import load_plan
from zpptool.partition import LayerRange

pytest.importorskip("vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

START_S = 400
TOLERANCE = 1e-3
"""The greatest difference of two logprobs: batches differ, and with them the last bits."""
ENGINE = ("--enforce-eager", "--max-model-len", "1024", "--kv-cache-memory-bytes", 64 << 20, "--max-num-seqs", 8)
QUESTION = "What is this, and what is beside it?"
ASKED: dict[str, tuple[tuple[str | int, ...], dict[str, Any]]] = {
    "one image": ((0, QUESTION), {}),
    "another image": ((1, QUESTION), {}),
    "two images": (("Two: ", 0, " and ", 2, " now"), {}),
    "text alone": (("No image here",), {}),
    "seeded, twice": ((3, "n"), {"n": 2, "temperature": 0.9, "seed": 5}),
}
"""By name: the parts of the message, numbers for images, and the parameters."""
TOKENS = 200


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llava", tmp_path_factory.mktemp("llava") / "model")


@pytest.fixture(scope="module")
def vllms(llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[bytes]]:
    """A script that asks stock vLLM, unsplit, all of `ASKED` at once; `made` is the file of its answers."""
    made = tmp_path_factory.mktemp("vllm") / "answers.json"
    prompts = [
        [
            "".join("<image>" if isinstance(part, int) else part for part in parts),
            [part for part in parts if isinstance(part, int)],
            {"max_tokens": TOKENS, **given},
        ]
        for parts, given in ASKED.values()
    ]
    command = [sys.executable, str(ROOT / "tests/vision_script.py"), "vllm", str(llava), str(made)]
    with made.with_suffix(".log").open("wb") as log, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", python_path())
        process = subprocess.Popen([*command, json.dumps({"asked": [prompts]})], stdout=log, stderr=log)
    process.made = made  # type: ignore[attr-defined]
    yield process
    process.kill()


@pytest.fixture(scope="module")
def pipeline(
    llava: Path, vllms: object, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[list[Stage], httpx.Client]]:
    """Two stages that survive the loss of one, in steps that divide an image, and a client."""
    base = free_base_port(4)
    common = (
        *("--model", llava, "--ranges", "0-2", "2-4", "--dtype", "float32", "--base-port", base, "--port", base + 3),
        *("--recovery-deadline", START_S, "--start-timeout", START_S, "--beat-timeout", START_S, "--"),
        *(*ENGINE, "--served-model-name", "m", "--max-num-batched-tokens", "20", "--block-size", "32"),
        *("--limit-mm-per-prompt", '{"image": 3}'),
    )
    url = f"http://127.0.0.1:{base + 3}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", python_path())
        with (
            started(tmp_path_factory.mktemp("logs"), [("--stage-idx", stage, *common) for stage in range(2)]) as stages,
            httpx.Client(base_url=url, timeout=START_S, trust_env=False) as client,
        ):
            wait_until_ready(url, stages, START_S)
            yield stages, client


class Asked:
    """All of `ASKED` in flight.

    Attributes:
        received: one entry for each part of an answer that has arrived.
    """

    def __init__(self, client: httpx.Client, pool: ThreadPoolExecutor) -> None:
        self._client = client
        self.received: list[str] = []
        self._answers = [pool.submit(self._ask, parts, given) for parts, given in ASKED.values()]

    def answers(self) -> list[list[list[Any]]]:
        """As `vision_script.answers` gives them: for each request its choices, each with its tokens and logprobs."""
        return [answer.result(START_S) for answer in self._answers]

    def _ask(self, parts: tuple[str | int, ...], given: dict[str, Any]) -> list[list[Any]]:
        body = {
            "model": "m", "messages": [message(*parts)], "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True,
            "logprobs": True, "return_token_ids": True, "stream": True, **given,
        }  # fmt: skip
        choices: dict[int, list[list[Any]]] = {}
        with self._client.stream("POST", "/v1/chat/completions", json=body) as lines:
            assert lines.status_code == httpx.codes.OK, lines.read()
            for line in lines.iter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                assert "error" not in event, event
                for part in event["choices"]:
                    tokens, logprobs = choices.setdefault(part["index"], [[], []])
                    tokens += part.get("token_ids") or []
                    logprobs += [entry["logprob"] for entry in (part.get("logprobs") or {}).get("content") or ()]
                    self.received.append(line)
        return [choices[index] for index in sorted(choices)]


def assert_same(ours: list[list[list[Any]]], theirs: list[list[list[Any]]]) -> None:
    for name, own_choices, other_choices in zip(ASKED, ours, theirs, strict=True):
        for own, other in zip(own_choices, other_choices, strict=True):
            assert own[0] == other[0], name
            assert own[1] == pytest.approx(other[1], abs=TOLERANCE), name


def kill_and_compare(stages: list[Stage], client: httpx.Client, lost: int, theirs: Any) -> None:
    """Kill a stage in the middle of all answers; they have to be the same."""
    with ThreadPoolExecutor(len(ASKED)) as pool:
        asked = Asked(client, pool)
        while len(asked.received) < TOKENS:
            time.sleep(0.005)
        stages[lost].worker().kill()
        assert_same(asked.answers(), theirs)
    assert "recovered: every stage knows the" in stages[0].text()


def answers_of(vllms: Any) -> Any:
    """What stock vLLM has answered to `ASKED`."""
    vllms.wait(START_S)
    assert vllms.made.exists(), vllms.made.with_suffix(".log").read_text()[-3000:]
    (theirs,) = json.loads(vllms.made.read_text())
    assert theirs[0] != theirs[1], "the answer does not depend on the image: the test shows nothing"
    return theirs


def test_images_are_answered_as_by_stock_vllm_and_a_killed_stage_changes_nothing(
    pipeline: tuple[list[Stage], httpx.Client], vllms: Any
) -> None:
    """Several images, images and text in one batch, images divided by steps, n, seeds, streams, cached prefixes."""
    stages, client = pipeline
    with ThreadPoolExecutor(len(ASKED)) as pool:
        ours = Asked(client, pool).answers()
    theirs = answers_of(vllms)
    assert_same(ours, theirs)
    kill_and_compare(stages, client, 0, theirs)
    assert metric(client, "vllm:prefix_cache_hits_total") > 0


@pytest.mark.long
def test_a_later_stage_that_is_killed_changes_nothing(pipeline: tuple[list[Stage], httpx.Client], vllms: Any) -> None:
    kill_and_compare(*pipeline, 1, answers_of(vllms))


def test_a_structured_answer_about_an_image(pipeline: tuple[list[Stage], httpx.Client]) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]}
    format_ = {"type": "json_schema", "json_schema": {"name": "number", "schema": {**schema, "maxProperties": 1}}}
    body = {"messages": [message(0, QUESTION)], "response_format": format_, "temperature": 0, "max_tokens": 60}
    answer = pipeline[1].post("/v1/chat/completions", json=body).json()
    assert set(json.loads(answer["choices"][0]["message"]["content"])) == {"n"}


@pytest.mark.parametrize("name", BROKEN_PARTS)
def test_what_is_not_carried_is_a_400_and_the_engine_lives(
    name: str, pipeline: tuple[list[Stage], httpx.Client]
) -> None:
    _stages, client = pipeline
    refuses(client, [BROKEN_PARTS[name], {"type": "text", "text": "x"}])
    assert client.get("/health").status_code == httpx.codes.OK


def test_later_stages_have_no_byte_of_the_tower(llava: Path) -> None:
    partition = (LayerRange(0, 2), LayerRange(2, 4))
    first, later = ([tensor.name for tensor in load_plan(llava, stage, partition)] for stage in range(2))
    towers = ("vision_tower.", "multi_modal_projector.")
    assert sum(name.startswith(towers) for name in first) > 40
    assert not any(name.startswith(towers) for name in later)


def test_more_images_than_allowed_and_longer_prompts_than_fit_are_a_400(
    pipeline: tuple[list[Stage], httpx.Client],
) -> None:
    _stages, client = pipeline
    assert "At most 3 image(s)" in refuses(client, message(0, 1, 2, 3)["content"])
    refuses(client, [*message(0, 1)["content"], {"type": "text", "text": "x" * 2000}])
    answer = client.post(
        "/v1/chat/completions", json={"messages": [message(0, QUESTION)], "max_tokens": 2, "temperature": 0}
    )
    assert answer.status_code == httpx.codes.OK, answer.text
