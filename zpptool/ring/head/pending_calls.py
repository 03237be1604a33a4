# SPDX-License-Identifier: Apache-2.0
"""The calls that are under way, at the head, and whether new ones are let in.

The invariant: a call belongs to one epoch, and its future is settled once: with the answers of that epoch, with the
fault that broke the pipeline, or with `StaleEpoch` when the epoch ends first. In between epochs nothing is let in.
"""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field

from zpptool.errors import ZppError
from zpptool.places import HEAD
from zpptool.wire.link_errors import StaleEpoch


@dataclass(slots=True, eq=False)
class OpenCall:
    """A call that has not been answered.

    Attributes:
        method: what was asked.
        wanted: how many answers it wants.
        allowed_s: how long it may take.
        long: whether it is no step.
        future: what the caller waits for.
        number: its own, once it is let in.
        deadline: when its time is up.
        payloads: the answers so far, by stage.
    """

    method: str
    wanted: int
    allowed_s: float
    long: bool
    future: Future[list[bytes]] = field(default_factory=Future)
    number: int = -1
    deadline: float = 0.0
    payloads: dict[int, bytes] = field(default_factory=dict)


class OpenCalls:
    """A table of calls with a gate. Any thread may use it.

    Attributes:
        fault: what broke the pipeline, or None.
        whole: the epoch that calls are let in to; None while the ring is not whole.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open: dict[int, OpenCall] = {}
        self._numbers = itertools.count()
        self.fault: ZppError | None = None
        self.whole: int | None = None

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return bool(self._open)

    def let_in(self, epoch: int) -> None:
        """The ring is whole in this epoch."""
        with self._changed:
            self.whole = epoch
            self._changed.notify_all()

    def enter(self, call: OpenCall, *, setting_up: int | None = None, only_in: int | None = None) -> tuple[int, int]:
        """Let a call in.

        Args:
            call: the call.
            setting_up: the epoch of a call that sets the ring up, which need not be whole for it.
            only_in: the one epoch that any other call is for; by default the one in which the ring is whole.

        Returns:
            its number and its epoch.

        Raises:
            StaleEpoch: the ring is not whole.
            ZppError: what broke the pipeline.
        """
        with self._changed:
            if self.fault is not None:
                raise self.fault
            entered = self.whole if setting_up is None else setting_up
            if entered is None or only_in not in (None, entered):
                raise StaleEpoch(f"{call.method} is not let in: the ring is not whole", stage=HEAD)
            call.number = next(self._numbers)
            call.deadline = time.monotonic() + call.allowed_s
            self._open[call.number] = call
            return call.number, entered

    def wait_until_whole(self) -> int:
        """The epoch in which the ring is whole, as soon as it is.

        Raises:
            ZppError: the pipeline is broken.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.whole is not None or self.fault is not None)
            if self.fault is not None:
                raise self.fault
            assert self.whole is not None
            return self.whole

    def settle(self, number: int, stage: int, payload: bytes) -> bool:
        """Take in one stage's answer; whether the call is answered with it."""
        with self._changed:
            call = self._open.get(number)
            if call is None:
                return False
            call.payloads[stage] = payload
            if len(call.payloads) < call.wanted:
                return False
            del self._open[number]
        call.future.set_result([call.payloads[stage] for stage in sorted(call.payloads)])
        return True

    def fail(self, number: int, fault: ZppError) -> bool:
        """Fail one call; False when it was settled before."""
        with self._changed:
            call = self._open.pop(number, None)
        if call is not None:
            call.future.set_exception(fault)
        return call is not None

    def shut(self) -> list[OpenCall]:
        """Let nothing in, and hand out what was under way, for `drop`."""
        with self._changed:
            self.whole = None
            calls, self._open = list(self._open.values()), {}
        return calls

    def break_all(self, fault: ZppError) -> bool:
        """Fail the open calls and all that are to come; False when that was done already."""
        with self._changed:
            if self.fault is not None:
                return False
            self.fault = fault
            self.whole = None
            calls, self._open = list(self._open.values()), {}
            self._changed.notify_all()
        for call in calls:
            call.future.set_exception(fault)
        return True

    def late(self) -> OpenCall | None:
        """A call whose time is up."""
        now = time.monotonic()
        with self._changed:
            return next((call for call in self._open.values() if call.deadline < now), None)

    def steps(self) -> list[str]:
        """The methods of the steps under way."""
        with self._changed:
            return [call.method for call in self._open.values() if not call.long]


def drop(calls: list[OpenCall], epoch: int, why: str) -> None:
    """Tell the callers that their calls came to nothing with an epoch."""
    for call in calls:
        call.future.set_exception(
            StaleEpoch(f"{call.method} was dropped with epoch {epoch}: {why}", stage=HEAD, epoch=epoch)
        )
