# SPDX-License-Identifier: Apache-2.0
"""Requests with images to the embedded engine: what is taken, what is a 400 and why, and a pipeline that takes them."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from conftest import Ran
from content_parts import BROKEN_PARTS
from stages import free_base_port, started, wait_until_ready
from vision import data_url, make_model, message
from vision_models import picture

pytest.importorskip("torch")
pytest.importorskip("transformers")

from starlette.testclient import TestClient

from zpptool.engines.transformers.api import images
from zpptool.engines.transformers.api.front import Front
from zpptool.engines.transformers.api.served import served_model
from zpptool.engines.transformers.reference import UnsplitModel
from zpptool.engines.transformers.unsplit import load_unsplit

pytestmark = [pytest.mark.torch, pytest.mark.timeout(400)]

QUESTION = "What is this, and what is beside it?"
READY_S = 240


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llava", tmp_path_factory.mktemp("llava") / "model")


@pytest.fixture(scope="module")
def api(llava: Path) -> Iterator[TestClient]:
    """The unsplit model, which fetches images from this host."""
    unsplit = UnsplitModel(load_unsplit(llava, dtype="float32"))
    served = served_model(llava, unsplit.generate, lambda: True, "tiny", ["127.0.0.1"])
    with TestClient(Front(served).app()) as client:
        yield client


def ask(client: Any, *messages: dict[str, Any], **body: Any) -> list[int]:
    """The tokens of a greedy answer."""
    answer = client.post(
        "/v1/chat/completions",
        json={"messages": messages, "temperature": 0, "max_tokens": 12, "ignore_eos": True, "return_token_ids": True}
        | body,
    )
    assert answer.status_code == httpx.codes.OK, answer.text
    tokens: list[int] = answer.json()["choices"][0]["token_ids"]
    return tokens


def refusal(client: TestClient, content: Any) -> str:
    """The reason for which a message is refused with 400."""
    answer = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": content}]})
    assert answer.status_code == httpx.codes.BAD_REQUEST, f"{answer.status_code}: {answer.text[:300]}"
    reason: str = answer.json()["error"]["message"]
    return reason


def image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def test_answers_depend_on_the_images_and_on_their_order(api: TestClient) -> None:
    asked = [message(0, QUESTION), message(1, QUESTION), message(0, 1, "Two"), message(1, 0, "Two"), message(QUESTION)]
    assert len({tuple(ask(api, one)) for one in asked}) == len(asked)


def test_a_prompt_with_an_image_is_counted_as_tokenize_shows_it(api: TestClient) -> None:
    chat = {"messages": [message(0, "x")]}
    tokens = api.post("/tokenize", json=chat).json()["tokens"]
    assert tokens.count(258) == 16, "a token for each patch"
    usage = api.post("/v1/chat/completions", json={**chat, "max_tokens": 1}).json()["usage"]
    assert usage["prompt_tokens"] == len(tokens)


@pytest.mark.parametrize("name", BROKEN_PARTS)
def test_every_part_that_is_not_taken_is_a_400_with_its_reason(name: str, api: TestClient) -> None:
    assert refusal(api, [BROKEN_PARTS[name], {"type": "text", "text": "x"}])


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("data:image/png;base64,AAAA", "image 1: it is none of the formats"),
        ("data:image/png,AAAA", "image 1: the data: URL is not in base64"),
        (data_url(0)[:222], "image 1: it is broken"),
        ("file:///etc/hostname", "image 1: only data: URLs, and URLs of http and https, are taken"),
        ("http://example.org/x.png", "image 1: images are not fetched from example.org; --allowed-media-domains"),
        ("http://127.0.0.1@example.org/x.png", "image 1: images are not fetched from example.org"),
        ("http://[", "image 1: the URL cannot be read"),
    ],
)
def test_the_reason_names_the_image_and_what_is_wrong(url: str, reason: str, api: TestClient) -> None:
    assert reason in refusal(api, [image_part(url)])


def test_too_many_images_and_too_many_pixels_are_refused(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    part = image_part(data_url(0))
    assert "65 images; a request may have at most 64" in refusal(api, [part] * (images.MAX_IMAGES + 1))
    monkeypatch.setattr(images, "MAX_PIXELS", 40 * 28 + 1)
    assert ask(api, message(0, "x"))
    assert "image 2: with 40 x 28 pixels, the request has more than" in refusal(api, [part, part])


def test_words_that_stand_for_an_image_do_not_count_as_one(api: TestClient) -> None:
    assert "the model's processor refuses them" in refusal(
        api, [image_part(data_url(0)), {"type": "text", "text": "<image>"}]
    )


class _Pictures(BaseHTTPRequestHandler):
    """Serves an image, a redirect to it, and nothing else."""

    def do_GET(self) -> None:
        self.send_response({"/a.png": 200, "/moved.png": 302}.get(self.path, 404))
        self.send_header("location", "/a.png")
        self.end_headers()
        if self.path == "/a.png":
            self.wfile.write(base64.b64decode(data_url(0).partition(",")[2]))

    def log_message(self, *_args: Any) -> None:
        """Print nothing."""


def test_images_are_fetched_from_the_allowed_hosts_alone(api: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Pictures) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        by_url = {"role": "user", "content": [image_part(f"{url}/a.png"), {"type": "text", "text": QUESTION}]}
        assert ask(api, by_url) == ask(api, message(0, QUESTION))
        assert "the server of its URL answers 404" in refusal(api, [image_part(f"{url}/none.png")])
        assert "the server of its URL answers 302" in refusal(api, [image_part(f"{url}/moved.png")])
        port = server.server_port
        assert "not fetched from localhost" in refusal(api, [image_part(f"http://localhost:{port}/a.png")])
        monkeypatch.setattr(images, "MAX_IMAGE_BYTES", 100)
        assert "it has more than 100 bytes" in refusal(api, [image_part(f"{url}/a.png")])
        server.shutdown()


def test_the_pipeline_gives_the_unsplit_models_tokens(
    llava: Path, tmp_path: Path, zpptool: Callable[..., Ran], api: TestClient
) -> None:
    """`test-pipeline --image`, from directories that `split` has written."""
    for seed in (0, 1):
        with io.BytesIO() as written:
            picture(seed).save(written, "PNG")
            (tmp_path / f"{seed}.png").write_bytes(written.getvalue())
    assert zpptool("split", llava, "--ranges", "0-1", "1-4", "-o", tmp_path / "split").code == 0
    ran = zpptool(
        *("test-pipeline", "--pipeline-dir", tmp_path / "split", "--model", llava, "--engine", "transformers"),
        *("--dtype", "float32", "--image", tmp_path / "0.png", "--image", tmp_path / "1.png", "--test-input", QUESTION),
        *("--no-long-prompts", "--max-new-tokens", 8, "--json"),
        timeout_s=300,
    )
    assert ran.code == 0, ran.out + ran.err
    outcome = json.loads(ran.out)
    assert outcome["verdict"] == "identical"
    assert outcome["prompts"][0]["token_ids"] == ask(api, message(0, 1, QUESTION), max_tokens=8)


@pytest.mark.long
@pytest.mark.parametrize("lost", [0, 1])
def test_a_stage_that_is_killed_changes_no_answer_about_an_image(
    lost: int, llava: Path, tmp_path: Path, api: TestClient
) -> None:
    base = free_base_port(4)
    common = (
        *("--model", llava, "--ranges", "0-2", "2-4", "--dtype", "float32", "--base-port", base, "--port", base + 3),
        *("--engine", "transformers", "--recovery-deadline", READY_S),
    )
    url = f"http://127.0.0.1:{base + 3}"
    asked = [message(0, QUESTION), message(1, QUESTION), message(0, 2, "Two"), message("No image here")]
    expected = [ask(api, one, max_tokens=200) for one in asked]
    with (
        started(tmp_path, [("--stage-idx", stage, *common) for stage in range(2)]) as stages,
        httpx.Client(base_url=url, timeout=READY_S, trust_env=False) as client,
        ThreadPoolExecutor(len(asked)) as pool,
    ):
        wait_until_ready(url, stages, READY_S)
        answers = [pool.submit(partial(ask, client, one, max_tokens=200)) for one in asked]
        wait_for_tokens(client, answers)
        stages[lost].worker().kill()
        assert [answer.result(READY_S) for answer in answers] == expected
        assert "recovered: the ring is whole again" in stages[0].text()


def wait_for_tokens(client: httpx.Client, answers: Sequence[Future[list[int]]]) -> None:
    """Wait until answers have begun, and check that not all of them have ended."""
    while True:
        assert not all(answer.done() for answer in answers), [answer.exception() for answer in answers]
        lines = client.get("/metrics").text.splitlines()
        counts = [float(line.split()[-1]) for line in lines if line.startswith("zpp:generation_tokens_total")]
        if sum(counts) > 8:
            return
        time.sleep(0.05)
