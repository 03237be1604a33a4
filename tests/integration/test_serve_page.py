# SPDX-License-Identifier: Apache-2.0
"""The page in a headless browser: what it draws from the status, and a streamed answer.

Needs playwright and the system's Chromium. `ZPP_SCREENSHOT` names a directory for screenshots.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("playwright.sync_api")

import msgspec
from playwright.sync_api import sync_playwright

from tests.fronts import EVENTS, ReceivedRequest, RunningGateway, ToyServer, chunk, gateway_of
from tests.rings import LINK
from zpptool.serve.load_balancing import BackendState
from zpptool.serve.pipeline_status import describe_link

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)"),
]
WAIT_MS = 30_000
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
LAYERS = ((0, 8), (8, 16), (16, 24), (24, 30))


def stage(number: int, phase: str = "ready") -> dict[str, Any]:
    """A stage as a supervisor describes it."""
    return {
        "stage": number, "host": "alpha", "pid": 4100 + number, "layers": list(LAYERS[number]), "phase": phase,
        "epoch": 1, "generation": 1, "memory": (300 + 40 * number) << 20, "steps": 7, "busy": 0.62, "rtt_ms": 0.41,
        "link": link(number),
    }  # fmt: skip


def link(sender: int) -> dict[str, Any]:
    """A link as in its pipeline's status."""
    peer = "head" if sender == len(LAYERS) - 1 else f"stage {sender + 1}"
    sent = 5 << 20 << (sender + 1)
    status = msgspec.structs.replace(LINK, peer=peer, rtt_ms=0.41, bytes_sent=sent, bytes_received=sent, refused=0)
    return describe_link(status)


async def behave(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
    """Answer with metrics that count up, or a completion in three events."""
    if request.path == "/metrics":
        behave.tokens += 40  # type: ignore[attr-defined]
        body = f"vllm:generation_tokens_total {behave.tokens}\n".encode()  # type: ignore[attr-defined]
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        return
    writer.write(EVENTS)
    if b"nothing" in request.body:
        writer.write(chunk(b'data: {"choices": [{"text": "", "finish_reason": "stop"}]}\n\n') + chunk(b""))
        return
    for text in (" Paris", ", which <b>is</b>", " a city."):
        writer.write(chunk(b'data: {"choices": [{"text": "' + text.encode() + b'"}]}\n\n'))
        await writer.drain()
        await asyncio.sleep(0.05)
    writer.write(chunk(b"data: [DONE]\n\n") + chunk(b""))


behave.tokens = 0  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield launched
        launched.close()


@pytest.fixture
def described() -> list[dict[str, Any]]:
    head = {"pid": 4099, "link": link(-1)}
    stages = [stage(number) for number in range(4)]
    return [{"model": "SmolLM2-135M-Instruct", "restarts": 0, "head": head, "stages": stages}]


@pytest.fixture
def gateway(described: list[dict[str, Any]]) -> Iterator[RunningGateway]:
    server = ToyServer(behave)
    with gateway_of([server], described=described) as gateway:
        yield gateway
    server.close()


def opened(browser: Any, url: str, scheme: str = "light") -> tuple[Any, list[str]]:
    """The page, and the errors that the browser reports."""
    page = browser.new_page(color_scheme=scheme, viewport={"width": 1200, "height": 900})
    page.set_default_timeout(WAIT_MS)
    errors: list[str] = []
    page.on("pageerror", lambda fault: errors.append(str(fault)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(url)
    page.wait_for_selector("#stages tr")
    return page, errors


def picture(page: Any, name: str) -> None:
    directory = os.environ.get("ZPP_SCREENSHOT")
    if directory:
        page.screenshot(path=Path(directory) / name)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_ring_is_drawn_and_a_prompt_is_answered(scheme: str, browser: Any, gateway: RunningGateway) -> None:
    page, errors = opened(browser, gateway.url, scheme)
    assert page.inner_text("#phase") == "ready"
    assert page.inner_text("#model") == "SmolLM2-135M-Instruct"
    assert page.locator("#stages tr").count() == 4
    row = page.locator("#stages tr").nth(1).locator("td").all_inner_texts()
    assert row == [
        "pipeline 0", "1", "ready", "8–16", "alpha", "4101", "1", "340.0 MiB", "7", "62 %", "0"
    ]  # fmt: skip
    links = [row.locator("td").all_inner_texts() for row in page.locator("#links tr").all()]
    assert [row[1] for row in links] == [
        "head → stage 0", "stage 0 → stage 1", "stage 1 → stage 2", "stage 2 → stage 3", "stage 3 → head"
    ]  # fmt: skip
    assert links[1][2:] == ["connected", "3", "0.41 ms", "4", "10.0 MiB", "10.0 MiB", "0", "–"]
    ring = page.locator("#rings svg")
    assert ring.locator("circle").count() == 5
    assert "stage 3 ready" in ring.get_attribute("aria-label")
    page.fill("#prompt", "The capital of France is")
    page.click("#send")
    page.wait_for_function("() => document.querySelector('#timing').textContent.includes('first token')")
    assert page.inner_text("#answer") == " Paris, which <b>is</b> a city."
    page.wait_for_function("() => Number(document.querySelector('#rate').textContent) > 0")
    picture(page, f"page-{scheme}.png")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.close()
    assert errors == []


def test_an_empty_answer_is_explained(browser: Any, gateway: RunningGateway, described: list[dict[str, Any]]) -> None:
    described[0]["chat"] = True
    page, errors = opened(browser, gateway.url)
    assert page.input_value("#kind") == "chat"
    assert page.input_value("#prompt") == "What is the capital of France?"
    page.select_option("#kind", "completion")
    page.fill("#prompt", "nothing")
    page.click("#send")
    page.wait_for_function("() => document.querySelector('#answer').textContent.includes('choose Chat')")
    assert page.input_value("#kind") == "completion"  # the choice is kept when the status is read again
    page.close()
    assert errors == []


def test_the_page_follows_the_status(browser: Any, gateway: RunningGateway, described: list[dict[str, Any]]) -> None:
    page, _ = opened(browser, gateway.url)
    described[0]["stages"] = [stage(0), stage(1, "not running"), *(stage(number) for number in (2, 3))]
    described[0]["stages"][0]["link"] |= {"state": "lost", "last_error": "<i>stage 1 is lost</i>"}
    gateway.update(0, BackendState("", phase="waiting to restart", generation=1, why="stage 1 was killed by SIGKILL"))
    page.wait_for_function("() => document.querySelector('#phase').textContent === 'waiting to restart'")
    assert page.inner_text("#why") == "pipeline 0: stage 1 was killed by SIGKILL"
    assert page.locator("#links tr").nth(1).locator("td").last.inner_text() == "<i>stage 1 is lost</i>"
    assert page.locator("#rings svg path.broken").count() == 1
    assert "bad" in page.locator("#stages tr").nth(1).locator("td").nth(2).get_attribute("class")
    page.close()


def test_every_control_has_a_label_and_can_be_reached_with_the_keyboard(browser: Any, gateway: RunningGateway) -> None:
    page, _ = opened(browser, gateway.url)
    unnamed = page.evaluate(
        """[...document.querySelectorAll('textarea, input, select, button')]
           .filter((one) => !one.textContent.trim() && !document.querySelector(`label[for="${one.id}"]`)).length"""
    )
    assert unnamed == 0
    page.focus("#prompt")
    visited = []
    for _ in range(4):
        page.keyboard.press("Tab")
        visited.append(page.evaluate("document.activeElement.id"))
    assert visited == ["kind", "most", "send", "answer"]
    page.close()


def test_on_a_narrow_screen_only_the_tables_scroll(browser: Any, gateway: RunningGateway) -> None:
    page, _ = opened(browser, gateway.url)
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.close()


def test_the_page_asks_for_a_required_key(browser: Any, described: list[dict[str, Any]]) -> None:
    server = ToyServer(behave)
    with gateway_of([server], described=described, keys=["secret"]) as gateway:
        page = browser.new_page()
        page.set_default_timeout(WAIT_MS)
        page.goto(gateway.url)
        page.wait_for_selector("#key", state="visible")
        page.fill("#key", "secret")
        page.keyboard.press("Enter")
        page.wait_for_selector("#stages tr")
        page.wait_for_selector("#keybox", state="hidden")
        page.close()
    server.close()
