# SPDX-License-Identifier: Apache-2.0
"""Tensors belong to the call for which their send was ordered, however late they are sent."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest
import toys
from toys import ring_specs, threads

from zpptool.ring.messages import Call
from zpptool.wire.link import LinkTimeout, StaleEpoch
from zpptool.wire.link_errors import WireError

pytestmark = pytest.mark.timeout(60)


class LateToy(toys.ToyEngine):
    """Stage 0 does with the tensors of a step what the method says; stage 1 receives them as usual."""

    late: list[BaseException | str]
    gate: threading.Event

    def do(self, call: Call, payload: bytes) -> bytes:
        if call.method not in ("of another call", "late", "fails"):
            return super().do(call, payload)
        if not self._spec.is_first:
            return b"" if call.method == "late" else self._pass_on(payload)
        order = self._node.order()
        if call.method == "of another call":
            self._node.send_tensors(payload, [memoryview(payload + b" 0")], order._replace(call=order.call + 1))
        elif call.method == "fails":
            self._node.sending_failed(order, WireError("this tensor cannot be sent"))
        else:
            threading.Thread(target=self._send_late, args=(payload, order)).start()
        return b""

    def _send_late(self, payload: bytes, order: object) -> None:
        self.gate.wait(20)
        try:
            self._node.send_tensors(payload, [memoryview(payload + b" 0")], order)
            self.late.append("sent")
        except StaleEpoch as stale:
            self._node.sending_failed(order, stale)
            self.late.append(stale)


@pytest.fixture(autouse=True)
def late_toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LateToy, "late", [], raising=False)
    monkeypatch.setattr(LateToy, "gate", threading.Event(), raising=False)
    monkeypatch.setattr(toys.run_stage, "__defaults__", (LateToy,))


def test_tensors_of_another_call_are_refused_by_name(tmp_path: Path) -> None:
    with threads(ring_specs(2, tmp_path)) as ring:
        ring.head.call("of another call", b"1", from_all=False)
        assert ring.broken.wait(20)
        call = r"call (\d+) from stage 0 when those of call (\d+) were due in epoch 1"
        assert ring.faults[0].exit_code == 6
        matched = re.search(call, ring.faults[0].message)
        assert matched
        assert int(matched[1]) == int(matched[2]) + 1


def test_a_send_of_an_epoch_that_is_over_is_dropped_and_the_next_epoch_is_right(tmp_path: Path) -> None:
    with threads(ring_specs(2, tmp_path, recovery_s=20)) as ring:
        assert ring.ask("late", b"1", from_all=True) == [b"", b""]
        ring.head.begin_epoch("a test wants it")
        ring.head.wait_until_whole()
        assert ring.ask_until_answered("step", b"2") == [b"2 0 1"]
        LateToy.gate.set()
        assert ring.ask_until_answered("step", b"3") == [b"3 0 1"]
        end = time.monotonic() + 20
        while not LateToy.late:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert isinstance(LateToy.late[0], StaleEpoch)
        assert ring.ask_until_answered("step", b"4") == [b"4 0 1"]
        assert ring.faults == []
        assert ring.head.status().epoch == 2


@pytest.mark.parametrize("recovery_s", [0.0, 20.0])
def test_a_send_that_fails_in_its_epoch_is_reported(tmp_path: Path, recovery_s: float) -> None:
    with threads(ring_specs(2, tmp_path, recovery_s=recovery_s)) as ring:
        call = ring.head.call("fails", b"1", from_all=False)
        fault = call.exception(20)
        if recovery_s:
            assert isinstance(fault, StaleEpoch)
            ring.head.wait_until_whole()
            assert ring.ask_until_answered("step", b"2") == [b"2 0 1"]
            assert ring.head.status().epoch == 2
        else:
            assert fault is not None
            assert "could not be sent: this tensor cannot be sent" in str(fault)


class _NeverSent:
    """A message whose memory its link does not release."""

    done = False

    def wait(self, timeout_s: float) -> None:
        time.sleep(timeout_s)
        raise LinkTimeout("its bytes are not taken")


def test_a_wait_for_memory_ends_with_the_epoch_of_its_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []

    class Keeping(toys.ToyEngine):
        def do(self, call: Call, payload: bytes) -> bytes:
            if call.method == "keep" and self._spec.is_first:
                with monkeypatch.context() as patched:
                    patched.setattr(self._node._outbox, "send_tensors", lambda *_: _NeverSent())
                    waits.append(self._node.send_tensors(b"", []))
                return b""
            return b"" if call.method == "keep" else super().do(call, payload)

    monkeypatch.setattr(toys.run_stage, "__defaults__", (Keeping,))
    with threads(ring_specs(2, tmp_path, recovery_s=20)) as ring:
        ring.ask("keep", from_all=True)
        waiting = threading.Thread(target=waits[0])
        waiting.start()
        time.sleep(0.5)
        assert waiting.is_alive()
        ring.head.begin_epoch("a test wants it")
        waiting.join(5)
        assert not waiting.is_alive()
