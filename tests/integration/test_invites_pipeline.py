# SPDX-License-Identifier: Apache-2.0
"""Three hosts that share only a network: one token each from `zpptool plan --invite`, and nothing else is copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from conftest import Ran
from hubserver import COMMIT, Hub, serve_hub
from netns import Network, network, why_not
from stages import completion, started, wait_until_ready

from zpptool.checkpoint.index import read_index
from zpptool.checkpoint.structure import stage_tensors
from zpptool.partition import even_partition

pytest.importorskip("huggingface_hub")
pytestmark = [
    pytest.mark.torch,
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

READY_S = 240
HEADER_BYTES = 128 * 1024
PORT = 15550


@pytest.fixture
def hosts() -> Iterator[Network]:
    with network(3) as made:
        yield made


@pytest.fixture
def model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", layers=3, tied=False, hidden_size=64, vocab_size=4096)


@pytest.fixture
def hub(hosts: Network, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that every host reaches, on the first one."""
    with hosts.inside(0):
        serving = serve_hub({"org/name": model}, tmp_path / "caches", hosts.addresses[0])
        served = serving.__enter__()
    for name, value in served.env.items():
        monkeypatch.setenv(name, value)
    yield served
    serving.__exit__(None, None, None)


def test_three_hosts_need_one_token_each(
    hosts: Network, hub: Hub, model: Path, tmp_path: Path, zpptool: Callable[..., Ran]
) -> None:
    with hosts.inside(0):
        planned = zpptool(
            *("plan", "org/name", "--num-stages", 3, "--hosts", ",".join(hosts.addresses), "--engine", "transformers"),
            *("--base-port", PORT, "--api-port", PORT + 9, "--device", "cpu", "--invite", "--json"),
        )
    assert planned.code == 0, planned.err
    invites = planned.json["invites"]
    assert {"port": PORT + 5, "peer": hosts.addresses[2]} in planned.json["hosts"][0]["open"]

    def alone(host: int, words: list[str]) -> list[str]:
        """On a host whose caches and state are its own."""
        own = tmp_path / f"host-{host}"
        variables = {"HF_HOME": own / "hf", "ZPP_CACHE": own / "zpp", "XDG_STATE_HOME": own / "state"}
        return hosts.words(host, "env", *(f"{name}={value}" for name, value in variables.items()), *words)

    hub.forget()
    commands = [("--invite", invite, "--start-timeout", READY_S) for invite in invites]
    url = f"http://{hosts.addresses[0]}:{PORT + 9}"
    (tmp_path / "first").mkdir()
    with started(tmp_path / "first", commands, alone) as stages, hosts.inside(0):
        wait_until_ready(url, stages, READY_S)
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            first = completion(client, model="org/name", prompt="one two", max_tokens=8)["text"]
        assert "stage 2 has joined" in stages[2].text()
        assert all(invites[0][40:80] not in stage.text() for stage in stages)
    own = [stage_tensors(read_index(model), even_partition(3, 3), stage) for stage in range(3)]
    wanted = sum(tensor.nbytes for tensors in own for tensor in tensors)
    fetched = sum(count for name, _start, count in hub.sent if name.endswith(".safetensors"))
    assert wanted <= fetched <= wanted + 3 * (HEADER_BYTES + 32 * 64), "each host fetches its own stage"
    plans = [next((tmp_path / f"host-{host}/state").rglob("zpp.yaml")).read_text() for host in range(3)]
    assert plans[0] == plans[1] == plans[2]
    assert f"hf://org/name@{COMMIT}" in plans[0]
    secrets = [path.read_text() for path in tmp_path.glob("host-*/state/**/keys/*.keys")]
    assert len(set(secrets)) == 3

    hub.forget()
    (tmp_path / "second").mkdir()
    with started(tmp_path / "second", commands, alone) as stages, hosts.inside(0):
        wait_until_ready(url, stages, READY_S)
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            assert completion(client, model="org/name", prompt="one two", max_tokens=8)["text"] == first
    assert not hub.requests, "a second start needs neither hub nor listener"
