# SPDX-License-Identifier: Apache-2.0
"""`zpptool doctor` as a user runs it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import llama, llama_config, write_checkpoint
from conftest import Ran

pytestmark = pytest.mark.timeout(240)


@pytest.mark.torch
def test_a_busy_port_is_found_and_ends_with_1(tmp_path: Path, zpptool: Callable[..., Ran]) -> None:
    pytest.importorskip("transformers")
    write_checkpoint(tmp_path / "model", llama(), llama_config())
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        words = ["doctor", tmp_path / "model", "--engine", "transformers", "--num-stages", 1, "--base-port", port - 1]
        sick = zpptool(*words, "--api-port", port + 1 if port < 65535 else 1, "--json", timeout_s=200)
    assert sick.code == 1, sick.err
    assert sick.json["schema_version"] == 1
    assert sick.json["healthy"] is False
    found = {finding["check"]: finding for finding in sick.json["findings"]}
    assert found["ports"]["level"] == "blocker"
    assert str(port) in found["ports"]["message"]
    assert found["ports"]["fix"]
    assert {"python", "torch", "import", "model", "disk", "memory", "clock"} <= set(found)


def test_a_file_that_is_not_a_plan_is_refused(tmp_path: Path, zpptool: Callable[..., Ran]) -> None:
    (tmp_path / "zpp.yaml").write_text("model: 1\n")
    assert zpptool("doctor", tmp_path / "zpp.yaml").code == 3
