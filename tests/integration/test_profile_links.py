# SPDX-License-Identifier: Apache-2.0
"""Links between two hosts, measured through the wire as it runs: with keys and without, and over a slow network."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from netns import Network, network, why_not

from zpptool.errors import ExitCode
from zpptool.planner.device_profile import LinkRate, LinkSpeed, Source, read_links
from zpptool.profiling.links import SIZES, burst, with_links
from zpptool.wire.security.key_files import generate, write_key_files

PORT = 15600
GUARD_S = 90.0
needs_network = pytest.mark.skipif(bool(why_not()), reason=why_not())


@pytest.fixture(scope="module")
def hosts() -> Iterator[Network]:
    """Two hosts."""
    with network(2) as made:
        yield made


def addresses(hosts: Network) -> list[str]:
    return [f"{address}:{PORT}" for address in hosts.addresses]


def start(hosts: Network, host: int, *words: str) -> subprocess.Popen[str]:
    """`zpptool profile --links` on a host, towards the other one."""
    own, peer = addresses(hosts)[host], addresses(hosts)[1 - host]
    command = [sys.executable, "-m", "zpptool", "profile", "--links", "--listen", own, "--peer", peer, *words]
    return subprocess.Popen(
        hosts.words(host, *command), stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )


def measured(hosts: Network, file: Path, words: tuple[tuple[str, ...], tuple[str, ...]]) -> tuple[LinkSpeed, ...]:
    """The links as two commands measure them; `words` are what each gets besides the addresses."""
    responder = start(hosts, 1, "--respond", *words[1])
    asking = start(hosts, 0, "-o", str(file), *words[0])
    try:
        _, said = asking.communicate(timeout=GUARD_S)
        assert asking.returncode == 0, said
        answered, said = responder.communicate(timeout=GUARD_S)
        assert responder.returncode == 0, said
        assert answered.startswith("answered ")
    finally:
        for process in (asking, responder):
            process.kill()
            process.wait()
    return read_links(file)


@needs_network
@pytest.mark.timeout(200)
@pytest.mark.parametrize("secured", [True, False], ids=["with keys", "without keys"])
def test_both_directions_are_measured(hosts: Network, tmp_path: Path, secured: bool) -> None:
    words: tuple[tuple[str, ...], tuple[str, ...]] = (("--insecure",), ("--insecure",))
    if secured:
        write_key_files(generate(2), tmp_path / "keys")
        words = (("--keys", str(tmp_path / "keys")), ("--keys", str(tmp_path / "keys")))
    links = measured(hosts, tmp_path / "links.yaml", words)
    first, second = hosts.addresses
    assert [(link.origin, link.target) for link in links] == [(first, second), (second, first)]
    for link in links:
        assert link.source is Source.MEASURED
        assert link.at
        assert 0 < link.round_trip_seconds < 1
        assert [rate.bytes for rate in link.rates] == list(SIZES)
        assert all(1e4 < rate.bytes_per_second < 1e12 for rate in link.rates)


@needs_network
@pytest.mark.long
@pytest.mark.timeout(200)
def test_a_slow_network_shows(hosts: Network, tmp_path: Path) -> None:
    with hosts.disturbed(delay_ms=20):
        links = measured(hosts, tmp_path / "links.yaml", (("--insecure",), ("--insecure",)))
    assert all(0.04 <= link.round_trip_seconds < 0.2 for link in links)


@needs_network
@pytest.mark.timeout(60)
def test_hosts_without_keys_are_refused(hosts: Network) -> None:
    process = start(hosts, 0)
    _, said = process.communicate(timeout=GUARD_S)
    assert process.returncode == ExitCode.ADDRESS
    assert "key" in said


def test_links_replace_older_ones_of_the_same_hosts(links: tuple[LinkSpeed, LinkSpeed]) -> None:
    old, new = links
    other = _link("c", "a", 9.0)
    assert with_links([old, other], [new]).links == (other, new)


@pytest.fixture
def links() -> tuple[LinkSpeed, LinkSpeed]:
    """The same link, measured twice."""
    return _link("a", "b", 1.0), _link("a", "b", 2.0)


def _link(origin: str, target: str, trip: float) -> LinkSpeed:
    rates = (LinkRate(bytes=1, bytes_per_second=1.0),)
    return LinkSpeed(origin=origin, target=target, round_trip_seconds=trip, rates=rates, source=Source.MEASURED)


def test_bursts_are_short_on_a_slow_link() -> None:
    assert burst(1 << 20, 1e9) == (190, 5)
    assert burst(8 << 20, 1e6) == (1, 2)
    assert burst(1, 1e12)[0] == 4096
