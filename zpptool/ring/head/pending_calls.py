# SPDX-License-Identifier: Apache-2.0
"""The head's table of calls that are under way, and whether new ones are admitted.

The invariant: a call belongs to one epoch, and its future is settled once: with the answers of that epoch, with the
fault that broke the pipeline, or with `StaleEpoch` when the epoch ends first. Between epochs no call is admitted.
"""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field

from zpptool.errors import ZppError
from zpptool.net.request_context import NO_REQUEST, RequestContext
from zpptool.places import HEAD
from zpptool.wire.link_errors import StaleEpoch


@dataclass(slots=True, eq=False)
class PendingCall:
    """A call that has not been answered.

    Attributes:
        method: what is asked.
        num_answers: how many answers it needs.
        allowed_s: how long it may take, in seconds.
        long: whether it may take minutes; a step may not.
        request: the request that it is a step of.
        future: what the caller waits for.
        number: assigned when the call is admitted.
        deadline: when it is late, on the clock of `time.monotonic`.
        payloads: the answers so far, by stage.
    """

    method: str
    num_answers: int
    allowed_s: float
    long: bool
    request: RequestContext = NO_REQUEST
    future: Future[list[bytes]] = field(default_factory=Future)
    number: int = -1
    deadline: float = 0.0
    payloads: dict[int, bytes] = field(default_factory=dict)


class PendingCalls:
    """A table of calls that can be closed to new ones. Any thread may use it.

    Attributes:
        fault: what broke the pipeline, or None.
        whole: the epoch in which the ring is whole, so that calls are admitted; None while it is not.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open: dict[int, PendingCall] = {}
        self._numbers = itertools.count()
        self.fault: ZppError | None = None
        self.whole: int | None = None

    @property
    def busy(self) -> bool:
        """Whether a call is under way."""
        return bool(self._open)

    def let_in(self, epoch: int) -> None:
        """Admit calls from now on: the ring is whole in this epoch."""
        with self._changed:
            self.whole = epoch
            self._changed.notify_all()

    def add(self, call: PendingCall, *, setting_up: int | None = None, only_in: int | None = None) -> tuple[int, int]:
        """Admit one call and assign its number and deadline.

        Args:
            call: the call.
            setting_up: for a set-up call, its epoch; the ring need not be whole for it.
            only_in: for any other call, the one epoch that it is for; by default the one in which the ring is whole.

        Returns:
            its number and its epoch.

        Raises:
            StaleEpoch: the ring is not whole, or whole in another epoch than `only_in`.
            ZppError: what broke the pipeline.
        """
        with self._changed:
            if self.fault is not None:
                raise self.fault
            epoch = self.whole if setting_up is None else setting_up
            if epoch is None or only_in not in (None, epoch):
                raise StaleEpoch(f"{call.method} is not let in: the ring is not whole", stage=HEAD)
            call.number = next(self._numbers)
            call.deadline = time.monotonic() + call.allowed_s
            self._open[call.number] = call
            return call.number, epoch

    def wait_until_whole(self) -> int:
        """Wait until the ring is whole, and return the epoch in which it is.

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
        """Add one stage's answer; True if the call is complete with it."""
        with self._changed:
            call = self._open.get(number)
            if call is None:
                return False
            call.payloads[stage] = payload
            if len(call.payloads) < call.num_answers:
                return False
            del self._open[number]
        call.future.set_result([call.payloads[stage] for stage in sorted(call.payloads)])
        return True

    def fail(self, number: int, fault: ZppError) -> bool:
        """Fail one call; False if it was settled before."""
        with self._changed:
            call = self._open.pop(number, None)
        if call is not None:
            call.future.set_exception(fault)
        return call is not None

    def suspend(self) -> list[PendingCall]:
        """Admit no more calls, and hand over those under way, for `drop_calls`."""
        with self._changed:
            self.whole = None
            calls, self._open = list(self._open.values()), {}
        return calls

    def fail_all(self, fault: ZppError) -> bool:
        """Fail the open calls and all later ones; False if that was done before."""
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

    def late(self) -> PendingCall | None:
        """A call past its deadline, or None."""
        now = time.monotonic()
        with self._changed:
            return next((call for call in self._open.values() if call.deadline < now), None)

    def steps(self) -> list[str]:
        """The methods of the steps under way."""
        with self._changed:
            return [call.method for call in self._open.values() if not call.long]


def drop_calls(calls: list[PendingCall], epoch: int, why: str) -> None:
    """Fail calls whose epoch has ended with `StaleEpoch`."""
    for call in calls:
        call.future.set_exception(
            StaleEpoch(f"{call.method} was dropped with epoch {epoch}: {why}", stage=HEAD, epoch=epoch)
        )
