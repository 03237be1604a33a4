# SPDX-License-Identifier: Apache-2.0
"""One request is one trace over front, head and three stages, and the loss of a stage is an event on it. Its id is in
the response, the logs and the spans. The names in the examples of monitoring are those that this front shows."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("httpx")
pytest.importorskip("opentelemetry.sdk")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

import httpx

from tests.metricnames import expressions, names_in
from tests.otlp import Collector, ReceivedSpan, collecting
from tests.served import READY_S, Served, serving, wait_for

pytestmark = [pytest.mark.torch, pytest.mark.timeout(400)]

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
TOKENS = 60


def ask_and_kill(served: Served, client: httpx.Client) -> None:
    """Stream one request, and kill stage 1 once tokens have come; the stream goes on."""
    processes = served.look()
    headers = {"x-request-id": "night-shift-3", "traceparent": f"00-{TRACE}-{PARENT}-01"}
    body = {"prompt": "one two", "max_tokens": TOKENS, "ignore_eos": True, "stream": True, "temperature": 0}
    pieces = 0
    with client.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
        assert answer.headers["x-request-id"] == "night-shift-3"
        for line in answer.iter_lines():
            pieces += line.startswith("data: {")
            if pieces == 3 and processes["stage 1"].is_running():
                processes["stage 1"].send_signal(signal.SIGKILL)
    assert pieces == TOKENS


def of_place(spans: list[ReceivedSpan], place: str) -> list[ReceivedSpan]:
    return [span for span in spans if span.place == place]


def is_complete(collector: Collector) -> bool:
    """Whether the spans of the front and of the head have arrived, and those of the last steps."""
    names = {(span.place, span.name.partition(" POST")[0]) for span in collector.trace(TRACE)}
    steps = [span for span in collector.trace(TRACE) if span.place == "stage 2"]
    return {("front", "front"), ("head", "head")} <= names and len(steps) >= TOKENS


def test_a_request_is_one_trace_and_a_lost_stage_an_event_on_it(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama", layers=6, max_position_embeddings=2048, initializer_range=0.5)
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("ZPP_LOG_LEVEL", "debug")
        options = ("--num-stages", 3, "--served-model-name", "tiny", "--log-dir", tmp_path / "logs")
        with (
            serving(tmp_path, model, *options) as served,
            httpx.Client(base_url=served.url, timeout=READY_S, trust_env=False) as client,
        ):
            ask_and_kill(served, client)
            wait_for(lambda: is_complete(collector))
            log, metrics = served.text(), client.get("/metrics").text
        spans = collector.trace(TRACE)
    for text in expressions():
        assert names_in(text) - {"vllm:generation_tokens_total"} <= names_in(metrics), text
    (front,) = [span for span in of_place(spans, "front") if span.name == "front POST /v1/completions"]
    assert front.parent_id == PARENT
    (queue,) = [span for span in of_place(spans, "front") if span.name == "wait for a pipeline"]
    (head,) = of_place(spans, "head")
    assert {queue.parent_id, head.parent_id} == {front.span_id}
    assert head.events == ["recovery"]
    for stage in range(3):
        steps = of_place(spans, f"stage {stage}")
        assert len(steps) >= TOKENS // 2
        assert {span.parent_id for span in steps} == {head.span_id}
    assert {span.attributes["zpptool.request_id"] for span in spans if span is not queue} == {"night-shift-3"}
    assert not [span for span in collector.spans if "/health" in span.name]
    assert "request night-shift-3: status 200" in log
    logs = "".join(path.read_text() for path in (tmp_path / "logs").rglob("*.log"))
    assert "request night-shift-3: status 200" in logs
    assert "stage 2: debug: step" in logs
    assert "of request night-shift-3" in logs
