# SPDX-License-Identifier: Apache-2.0
"""Which connections are peers, from the events of a socket's monitor as libzmq 4.3 was seen to tell them."""

from __future__ import annotations

import pytest
import zmq

from zpptool.wire.peers import Connections

A, B = 14, 15
BEGIN, END = zmq.EVENT_ACCEPTED, zmq.EVENT_DISCONNECTED
SUCCESS, FAILURE = (zmq.EVENT_HANDSHAKE_SUCCEEDED, 0), (zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, 104)


def peers(*events: tuple[int, int]) -> set[int]:
    connections = Connections()
    for event, value in events:
        connections.take(event, value)
    return connections.peers


@pytest.mark.parametrize("begin", [zmq.EVENT_ACCEPTED, zmq.EVENT_CONNECTED])
def test_a_peer_counts_from_its_handshake_to_its_end(begin: int) -> None:
    assert peers((begin, A)) == set()
    assert peers((begin, A), SUCCESS) == {A}
    assert peers((begin, A), SUCCESS, (END, A)) == set()
    assert peers((begin, A), SUCCESS, (END, A), (begin, A), SUCCESS) == {A}
    assert peers((begin, A), SUCCESS, (begin, B), SUCCESS) == {A, B}


@pytest.mark.parametrize("ends", [[FAILURE, (END, B)], [(END, B)]], ids=["told", "not told"])
def test_a_handshake_that_fails_never_counts_whether_that_is_told_or_not(ends: list[tuple[int, int]]) -> None:
    peer = [(BEGIN, A), SUCCESS]
    assert peers((BEGIN, B), *ends) == set()
    assert peers(*peer, (BEGIN, B), *ends) == {A}
    assert peers((BEGIN, B), *ends, *peer) == {A}
    assert peers(*peer, (BEGIN, B), *ends, (END, A)) == set()


@pytest.mark.parametrize("ends", [[FAILURE, (END, B)], [(END, B)]], ids=["told", "not told"])
def test_a_peer_that_comes_while_a_stranger_is_silent_is_told_apart(ends: list[tuple[int, int]]) -> None:
    both = [(BEGIN, B), (BEGIN, A), SUCCESS]
    assert peers(*both) == {A}
    assert peers(*both, *ends) == {A}
    assert peers(*both, (END, A)) == set()


def test_a_stranger_who_came_between_a_peer_and_its_handshake_is_found_out() -> None:
    mistaken = [(BEGIN, A), (BEGIN, B), SUCCESS]
    assert len(peers(*mistaken)) == 1
    assert peers(*mistaken, FAILURE, (END, B)) == {A}
