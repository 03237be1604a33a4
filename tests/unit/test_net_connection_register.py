# SPDX-License-Identifier: Apache-2.0
"""Which connections a server holds, and which give way."""

from __future__ import annotations

import pytest

from zpptool.net.connection_limits import affordable_connections, scaled_down
from zpptool.net.connection_register import ConnectionRegister


class Client:
    def __init__(self, address: str = "a") -> None:
        self.address = address
        self.closed = False

    def give_way(self) -> None:
        self.closed = True


def test_the_oldest_that_waits_gives_way_and_one_that_is_answered_does_not() -> None:
    register = ConnectionRegister(2, 2)
    answered, waiting, new, newer = Client(), Client(), Client("b"), Client("c")
    assert register.admit(answered)
    register.request_complete(answered)
    assert register.admit(waiting)
    assert register.admit(new)
    assert (answered.closed, waiting.closed) == (False, True)
    register.request_complete(new)
    assert not register.admit(newer)
    register.request_answered(answered)
    assert register.admit(newer)
    assert answered.closed
    assert len(register) == 2


def test_one_address_displaces_only_its_own() -> None:
    register = ConnectionRegister(3, 2)
    other = Client("b")
    own = [Client(), Client(), Client()]
    assert register.admit(other)
    assert all(register.admit(each) for each in own)
    assert [each.closed for each in (other, *own)] == [False, True, False, False]
    for each in own[1:]:
        register.request_complete(each)
    assert not register.admit(Client())
    assert not other.closed


def test_a_closed_connection_is_forgotten_once() -> None:
    register = ConnectionRegister(1, 1)
    first = Client()
    assert register.admit(first)
    register.remove(first)
    register.remove(first)
    register.request_answered(first)
    assert len(register) == 0
    assert register.admit(Client())
    assert not first.closed


@pytest.mark.parametrize(
    ("wanted", "files", "most"), [(4096, 65536, 4096), (4096, 1024, 448), (4096, 64, 16), (9, 2, 1)]
)
def test_connections_are_bounded_by_descriptors(wanted: int, files: int, most: int) -> None:
    assert affordable_connections(wanted, files) == most


def test_the_share_of_one_address_stays() -> None:
    assert scaled_down(2048, 4096, 4096) == 2048
    assert scaled_down(2048, 4096, 16) == 8
    assert scaled_down(9999, 4096, 16) == 16
    assert scaled_down(1, 4096, 16) == 1
