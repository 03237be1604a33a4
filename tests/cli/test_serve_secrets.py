# SPDX-License-Identifier: Apache-2.0
"""Keys and credentials of `zpptool serve`: never empty, never shown, and required where other machines reach it."""

from __future__ import annotations

import base64
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Ran

pytest.importorskip("starlette")
pytest.importorskip("httpx")

import httpx

from tests.fronts import ToyServer
from tests.served import Served, wait_for
from zpptool.errors import ExitCode

pytestmark = pytest.mark.timeout(120)
SECRET = "s3cr3t-password"
NOWHERE = "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("words", "env", "message"),
    [
        (["--api-key", ""], {}, "an API key is empty"),
        (["--api-key", "  "], {}, "an API key is empty"),
        (["--api-key", "a", "--api-key", ""], {}, "an API key is empty"),
        ([], {"ZPP_API_KEY": ""}, "ZPP_API_KEY is set and empty"),
        ([], {"ZPP_API_KEY": " "}, "ZPP_API_KEY is set and empty"),
        ([], {"ZPP_API_KEY_FILE": ""}, "ZPP_API_KEY_FILE is set and empty"),
        (["--api-key", "a"], {"ZPP_API_KEY": ""}, "ZPP_API_KEY is set and empty"),
    ],
)
def test_an_empty_key_is_no_open_door(zpptool, words: list[str], env: dict[str, str], message: str) -> None:
    ran: Ran = zpptool("serve", "--upstream", NOWHERE, "--port", 0, *words, env=env)
    assert ran.code == ExitCode.USAGE, ran.err
    assert message in ran.err


@pytest.mark.parametrize("value", ["''", "[]", "['']", "['a', '']", ""])
def test_an_empty_key_in_the_settings_is_no_open_door(zpptool, tmp_path: Path, value: str) -> None:
    (tmp_path / "zpp.yaml").write_text(f"serve:\n  api-key: {value}\n")
    ran: Ran = zpptool("--config", tmp_path / "zpp.yaml", "serve", "--upstream", NOWHERE, "--port", 0)
    assert ran.code == ExitCode.USAGE, ran.err
    assert "empty" in ran.err


@pytest.mark.parametrize("command", ["status", "top", "rollout"])
def test_an_empty_key_of_a_client_is_refused(zpptool, command: str) -> None:
    ran: Ran = zpptool(command, "--url", NOWHERE, "--api-key", "")
    assert ran.code == ExitCode.USAGE, ran.err
    assert "the API key is empty" in ran.err


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_a_front_that_others_reach_needs_a_key(zpptool, host: str) -> None:
    ran: Ran = zpptool("serve", "--upstream", NOWHERE, "--port", 0, "--host", host)
    assert ran.code == ExitCode.ADDRESS, ran.err
    assert f"a front at {host} needs API keys" in ran.err
    assert "--insecure" in ran.err


def test_a_client_that_types_its_key_is_warned_and_the_environment_is_not(zpptool: Callable[..., Ran]) -> None:
    typed = zpptool("status", "--url", NOWHERE, "--api-key", SECRET)
    assert "can read --api-key in the list of processes" in typed.err
    given = zpptool("status", "--url", NOWHERE, env={"ZPP_API_KEY": SECRET})
    assert "list of processes" not in given.err
    assert SECRET not in typed.err + given.err


def test_the_credentials_of_a_client_s_url_are_not_shown(zpptool: Callable[..., Ran]) -> None:
    for url in (f"http://me:{SECRET}@127.0.0.1:1", f"http://me:{SECRET}@127.0.0.1:x", f"http://me:{SECRET}/@a"):
        for command in ("status", "rollout"):
            ran = zpptool(command, "--url", url)
            assert ran.code == ExitCode.ADDRESS, ran.err
            assert SECRET not in ran.err + ran.out
    shown = zpptool("config", "show", "serve", env={"ZPP_UPSTREAM": f"http://me:{SECRET}@a"})
    assert "http://***@a" in shown.out
    assert SECRET not in shown.out


def test_the_credentials_of_an_upstream_are_sent_there_and_shown_nowhere(tmp_path: Path, server: ToyServer) -> None:
    whole = [url.replace("//", f"//me:{SECRET}@") for url in (server.url, NOWHERE)]
    words = [word for url in whole for word in ("--upstream", url)]
    served = Served(tmp_path, *words, "--log-level", "debug", "--drain-timeout", 0)
    try:
        with httpx.Client(base_url=served.url, timeout=30, trust_env=False) as client:
            wait_for(lambda: client.get("/health").status_code == 200, 30)
            own = {"authorization": "Bearer own"}
            paths = ("/v1/models", "/pipeline/status", "/metrics", "/readyz", "/", "/version")
            shown = "".join(client.get(path, headers=own).text for path in paths)
            assert NOWHERE in shown
        expected = "authorization: Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()
        for path in ("/v1/models", "/metrics", "/pipeline/status", "/version"):
            received = [request for request in server.received if request.path == path]
            assert received, path
            for request in received:
                assert [line for line in request.headers if line.lower().startswith("authorization")] == [expected]
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(30) == ExitCode.INTERRUPTED
    finally:
        served.close()
    assert f"serving {server.url}, {NOWHERE} at " in served.output.read_text()
    for text in (shown, served.text(), served.output.read_text()):
        assert SECRET not in text
        assert expected.split()[-1] not in text
    assert "can read the credentials of --upstream" in served.text()


def test_logs_name_the_key_and_do_not_show_it(tmp_path: Path, server: ToyServer) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"alice: {SECRET}\nother\n")
    keys.chmod(0o600)
    served = Served(
        tmp_path, "--upstream", server.url, "--api-key-file", keys, "--host", "0.0.0.0", "--log-level", "debug"
    )
    try:
        port = httpx.URL(served.url).port
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
            wait_for(lambda: client.get("/health").status_code == 200, 30)
            assert client.get("/v1/models").status_code == 401
            assert client.get("/v1/models", headers={"authorization": f"Bearer {SECRET}"}).status_code == 200
            assert client.get("/v1/models", headers={"authorization": "Bearer other"}).status_code == 200
        served.find(r"GET /v1/models without a valid API key")
        served.find(r"GET /v1/models with the API key alice")
        served.find(r"GET /v1/models with the API key key 2")
    finally:
        served.close()
    assert SECRET not in served.text()
    assert "list of processes" not in served.text()
