# SPDX-License-Identifier: Apache-2.0
"""The gateway's own routes: API keys, probes, metrics, status and the page."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from importlib.resources import files
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.certificates import certificate
from tests.fronts import Behave, ReceivedRequest, ToyServer, gateway_of
from tests.rings import LINK, ring, stage
from zpptool.errors import ExitCode, ZppError
from zpptool.net.http_server import HttpServer
from zpptool.serve.load_balancing import BackendState
from zpptool.serve.pipeline_status import describe_link
from zpptool.serve.status_view import fetch_status, link_rows, stage_rows, summary

pytestmark = pytest.mark.timeout(60)

STAGE = {
    "stage": 1, "host": "a", "pid": 7, "layers": [2, 4], "phase": "ready", "epoch": 3, "generation": 3,
    "memory": 1 << 20, "busy": 0.25, "rtt_ms": 0.5, "link": describe_link(LINK),
}  # fmt: skip


def get(url: str, key: str | None = None, scheme: str = "Bearer") -> httpx.Response:
    headers = {"authorization": f"{scheme} {key}"} if key else {}
    return httpx.get(url, headers=headers, timeout=30, trust_env=False)


def test_with_keys_only_probes_and_the_empty_page_are_open(server: ToyServer) -> None:
    with gateway_of([server], keys=["first", "second"]) as gateway:
        for path in ("/", "/health", "/livez", "/readyz"):
            assert get(gateway.url + path).status_code == 200
        for path in ("/v1/models", "/metrics", "/pipeline/status", "/version"):
            for key in (None, "third", "firs", "first1", ""):
                refused = get(gateway.url + path, key)
                assert refused.status_code == 401
                assert refused.json()["error"]["code"] == "invalid_api_key"
                assert refused.headers["www-authenticate"] == "Bearer"
            assert get(gateway.url + path, "first", "Basic").status_code == 401
            assert get(gateway.url + path, "first").status_code == 200
            assert get(gateway.url + path, "second", "bearer").status_code == 200
    assert server.received
    assert not any(line.lower().startswith("authorization") for request in server.received for line in request.headers)


def test_probes_report_the_phase_before_anything_is_loaded() -> None:
    with ToyPair() as servers, gateway_of(servers, ready=False) as gateway:
        assert get(gateway.url + "/livez").json() == {"alive": True}
        assert get(gateway.url + "/health").status_code == 503
        gateway.update(0, BackendState(phase="starting: stage 0 loading 43%"))
        ready = get(gateway.url + "/readyz")
        assert ready.status_code == 503
        assert ready.json()["phase"] == "pipeline 0: starting: stage 0 loading 43%; pipeline 1: new"
        gateway.update(1, BackendState(servers[1].url, ready=True, phase="ready"))
        assert get(gateway.url + "/health").status_code == 200
        assert get(gateway.url + "/readyz").json()["phase"] == "ready"


class ToyPair:
    """Two toy servers, closed at the end of the block."""

    def __enter__(self) -> list[ToyServer]:
        self.servers = [ToyServer(), ToyServer()]
        return self.servers

    def __exit__(self, *_error: object) -> None:
        for server in self.servers:
            server.close()


def answers_with(text: str) -> Behave:
    async def behave(_request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        body = text.encode()
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)

    return behave


VLLM = (
    "# HELP vllm:generation_tokens_total Number of generation tokens processed.\n"
    "# TYPE vllm:generation_tokens_total counter\n"
    'vllm:generation_tokens_total{engine="0",model_name="m"} 42.0\n'
    "# TYPE vllm:e2e_seconds histogram\n"
    'vllm:e2e_seconds_bucket{le="0.5"} 1.0\nvllm:e2e_seconds_bucket{le="+Inf"} 2.0\n'
    "vllm:e2e_seconds_count 2.0\nvllm:e2e_seconds_sum 1.25\n"
)


def test_engine_metrics_are_forwarded_and_the_stages_have_their_own(server: ToyServer) -> None:
    server.behave = answers_with(VLLM)
    rings = {"pipeline 0": ring(stage(0), stage(1, memory_bytes=5))}
    with gateway_of([server], described=[{"stages": [STAGE]}], rings=rings) as gateway:
        text = get(gateway.url + "/metrics").text
    assert text.startswith(VLLM)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    memory = {each.labels["stage"]: each.value for each in families["zpp:stage_memory_bytes"].samples}
    assert memory == {"head": 0.0, "0": 0.0, "1": 5.0}
    received = families["zpp:link_received_bytes"].samples
    assert {each.labels["replica"] for each in received} == {"pipeline 0"}
    assert [each.value for each in received] == [900.0] * 3
    [up] = families["zpp:stage_up"].samples
    assert (up.labels, up.value) == ({"replica": "pipeline 0", "stage": "1"}, 1.0)
    assert families["zpp:pipeline_ready"].samples[0].value == 1.0


def test_metrics_of_several_pipelines_are_labelled() -> None:
    with ToyPair() as servers, gateway_of(servers) as gateway:
        for server in servers:
            server.behave = answers_with(VLLM)
        text = get(gateway.url + "/metrics").text
    assert text.count("# TYPE vllm:generation_tokens_total") == 1
    families = {family.name: family for family in text_string_to_metric_families(text)}
    tokens = families["vllm:generation_tokens"].samples
    assert [(each.labels["replica"], each.value) for each in tokens] == [("pipeline 0", 42.0), ("pipeline 1", 42.0)]
    buckets = [each for each in families["vllm:e2e_seconds"].samples if each.name.endswith("_bucket")]
    assert len(buckets) == 4


def test_the_terminal_shows_the_status(server: ToyServer) -> None:
    with (
        gateway_of([server], described=[{"model": "m", "head": STAGE, "stages": [STAGE], "restarts": 2}]) as gateway,
        httpx.Client(trust_env=False) as client,
    ):
        status = fetch_status(client, gateway.url, None)
    assert stage_rows(status) == [("pipeline 0", "1", "ready", "2-4", "a", "7", "3", "1.0 MiB", "25%", "0.50 ms", "0")]
    shown = ("connected", "3", "1.50 ms", "4", "10 (1000 B)", "6 (900 B)", "2", "-")
    assert link_rows(status) == [("pipeline 0", f"{sender} -> stage 2", *shown) for sender in ("head", "stage 1")]
    assert summary(status) == "m: ready, 0 requests under way, 0 waiting, 0 answered, 0 failed"
    [stage] = status["stages"]
    assert {"stage", "pid", "host", "layers", "phase", "epoch", "memory", "rtt_ms", "requests"} <= stage.keys()
    assert status["replicas"][0]["restarts"] == 2


def test_a_server_without_a_status_is_refused(server: ToyServer) -> None:
    with httpx.Client(trust_env=False) as client:
        with pytest.raises(ZppError, match="not with a status") as refused:
            fetch_status(client, server.url, None)
        assert refused.value.exit_code == ExitCode.ADDRESS
        with pytest.raises(ZppError, match="no front answers"):
            fetch_status(client, "http://127.0.0.1:1", None)


def test_the_page_loads_no_external_resources(server: ToyServer) -> None:
    with gateway_of([server]) as gateway:
        page = get(gateway.url + "/")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert not re.search(r"""(src|href)=["'](?!data:)""", page.text)
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", page.text)


def test_the_status_has_every_field_that_the_page_reads(server: ToyServer) -> None:
    """Checks every field of the status, a pipeline, a stage and a link that the page's script uses."""
    script = files("zpptool.serve").joinpath("page.html").read_text().partition("<script>")[2]
    with gateway_of([server], described=[{"stages": [{**STAGE, "steps": 3}]}]) as gateway:
        status = get(gateway.url + "/pipeline/status").json()
    [replica], [stage] = status["replicas"], status["stages"]
    for name, object_ in (("status", status), ("replica", replica), ("s", stage), ("l", stage["link"])):
        read = set(re.findall(rf"\b{name}\.(\w+)", script))
        assert read, name
        assert read - {"map", "filter", "reduce"} <= object_.keys()
    assert {"in_flight", "waiting", "answered"} <= status["requests"].keys()


def test_the_gateway_serves_tls(server: ToyServer, tmp_path: Path) -> None:
    files = certificate(tmp_path)
    trusted = ssl.create_default_context(cafile=str(files[0]))
    with gateway_of([server], tls=files) as gateway:
        assert gateway.url.startswith("https://")
        with httpx.Client(verify=trusted, trust_env=False) as client:
            assert client.get(gateway.url + "/v1/models", timeout=30).status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(gateway.url, trust_env=False, timeout=30)


def test_an_invalid_certificate_is_refused_before_anything_starts(tmp_path: Path) -> None:
    broken = tmp_path / "cert.pem"
    broken.write_text("no certificate")
    with pytest.raises(ZppError, match="cannot be used") as refused:
        HttpServer("127.0.0.1", 0, broken, broken)
    assert refused.value.exit_code == ExitCode.USAGE
    with pytest.raises(ZppError, match="both a certificate and its key"):
        HttpServer("127.0.0.1", 0, broken, None)


def test_a_port_in_use_is_named() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ZppError, match="cannot listen") as refused,
        HttpServer("127.0.0.1", taken.getsockname()[1]) as server,
    ):
        server.start(lambda: pytest.fail("the application is not built"))
    assert refused.value.exit_code == ExitCode.ADDRESS
