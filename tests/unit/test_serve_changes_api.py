# SPDX-License-Identifier: Apache-2.0
"""Planned changes over HTTP: which requests are refused, and that heads are asked one after the other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")

import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route
from test_admin_change_server import FakeRing as Paper

from zpptool.admin.change_server import ChangeServer
from zpptool.serve.api_keys import KeyGuard
from zpptool.serve.changes_api import PlannedChanges
from zpptool.serve.named_keys import ApiKey

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def rings(tmp_path: Path) -> Iterator[dict[str, Paper]]:
    """Two simulated rings whose heads accept changes."""
    simulated = {name: Paper() for name in ("one", "two")}
    change_servers = [ChangeServer(tmp_path / f"{name}.change", ring) for name, ring in simulated.items()]
    yield simulated
    for change_server in change_servers:
        change_server.close()


@pytest.fixture
def planned(tmp_path: Path, rings: dict[str, Paper]) -> PlannedChanges:
    return PlannedChanges(lambda: {name: tmp_path / f"{name}.change" for name in rings})


def post(
    planned: PlannedChanges, path: str, *bodies: Any, keys: tuple[ApiKey, ...] = (), **options: Any
) -> list[httpx.Response]:
    """The answers to requests that are sent at the same time."""
    routes = [Route(f"/pipeline/{name}", getattr(planned, name), methods=["POST"]) for name in ("rollout", "rebalance")]

    guard = [Middleware(KeyGuard, keys=keys)] if keys else []

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(Starlette(routes=routes, middleware=guard))
        async with httpx.AsyncClient(transport=transport, base_url="http://front") as client:
            options.setdefault("headers", {"content-type": "application/json"})
            requests = [client.post(f"/pipeline/{path}", content=body, timeout=30, **options) for body in bodies]
            return await asyncio.gather(*requests)

    return asyncio.run(ask())


def test_pipelines_change_one_after_the_other_and_the_outcome_comes_last(
    planned: PlannedChanges, rings: dict[str, Paper]
) -> None:
    (answer,) = post(planned, "rollout", b'{"by":"me"}')
    lines = [json.loads(line) for line in answer.text.splitlines()]
    back = [(line["replica"], line["answer"]["stage"]) for line in lines if line["answer"].get("stage") is not None]
    assert back == [(name, stage) for name in ("one", "two") for stage in range(3)]
    assert lines[-1]["answer"] == {
        "type": "outcome", "text": "every stage has come again", "exit_code": 0, "hint": ""
    }  # fmt: skip
    assert rings["two"].asked == [(0, "me"), (1, "me"), (2, "me")]


@pytest.mark.parametrize(("own", "shown"), [("me", "me"), ("m" * 200, "m" * 100), ("", "POST /pipeline/rollout from ")])
def test_a_change_is_in_the_name_of_its_api_key(
    planned: PlannedChanges, rings: dict[str, Paper], own: str, shown: str
) -> None:
    headers = {"content-type": "application/json", "authorization": "Bearer secret"}
    body = json.dumps({"replica": "one", **({"by": own} if own else {})}).encode()
    (answer,) = post(planned, "rollout", body, keys=(ApiKey("alice", "secret"),), headers=headers)
    assert answer.status_code == 200, answer.text
    by = rings["one"].asked[0][1]
    assert by.startswith(shown)
    assert by.endswith(", with the API key alice")


def test_only_the_named_pipeline_changes(planned: PlannedChanges, rings: dict[str, Paper]) -> None:
    body = b'{"replica":"two","ranges":["0-1","1-4","4-6"],"plan_digest":"d"}'
    (answer,) = post(planned, "rebalance", body)
    assert "the layers are now 0-1 1-4 4-6" in answer.text
    assert rings["one"].asked == []
    assert [why for _, why in rings["two"].asked] == ["POST /pipeline/rebalance from 127.0.0.1"] * 2


def test_after_a_pipeline_that_refuses_no_other_is_asked(planned: PlannedChanges, rings: dict[str, Paper]) -> None:
    rings["one"].may_recover = False
    (answer,) = post(planned, "rollout", b"{}")
    (only,) = [json.loads(line) for line in answer.text.splitlines()]
    assert (only["replica"], only["answer"]["exit_code"]) == ("one", 2)
    assert rings["two"].asked == []


def test_a_second_change_is_refused_until_the_first_is_over(planned: PlannedChanges, rings: dict[str, Paper]) -> None:
    answers = post(planned, "rollout", b'{"by":"a"}', b'{"by":"b"}')
    assert sum("another planned change is under way" in answer.text for answer in answers) == 1
    (answer,) = post(planned, "rollout", b'{"by":"c"}')
    assert "every stage has come again" in answer.text


@pytest.mark.parametrize(
    ("path", "body", "kind", "status"),
    [
        ("rollout", b"{}", "text/plain", 415),  # a page of another site can send this without permission
        ("rollout", b"{}", "application/x-www-form-urlencoded", 415),
        ("rollout", b"", "application/json", 400),
        ("rollout", b"[", "application/json", 400),
        ("rollout", b'{"more":1}', "application/json", 400),
        ("rollout", b'{"by":"\\u001b[2J"}', "application/json", 400),
        ("rollout", b" " * (1 << 20), "application/json", 400),
        ("rollout", b'{"replica":"three"}', "application/json", 404),
        ("rebalance", b"{}", "application/json", 400),
        ("rebalance", b'{"ranges":"0-1"}', "application/json", 400),
    ],
)
def test_an_invalid_request_changes_nothing(
    planned: PlannedChanges, rings: dict[str, Paper], path: str, body: bytes, kind: str, status: int
) -> None:
    (answer,) = post(planned, path, body, headers={"content-type": kind})
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert rings["one"].asked == rings["two"].asked == []


def test_a_missing_head_is_an_outcome_with_the_reason(tmp_path: Path) -> None:
    headless = PlannedChanges(lambda: {"one": tmp_path / "none"})
    (answer,) = post(headless, "rollout", b"{}")
    assert "no head takes a planned change" in answer.text
    (answer,) = post(PlannedChanges(dict), "rollout", b"{}")
    assert answer.status_code == 404
