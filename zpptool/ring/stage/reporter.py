# SPDX-License-Identifier: Apache-2.0
"""A stage's reports to the head: its own status and that of the stages after it, sent upstream."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from zpptool.log import PlaceLogger
from zpptool.process.progress import show_life
from zpptool.ring.heartbeat import Heartbeat, Pulse, own_status
from zpptool.ring.messages import Fault, Report, decode_upstream, encode_control
from zpptool.ring.status import StageStatus, aged
from zpptool.wire.link import LinkReceiver, LinkSender


class StageReporter:
    """Reports every `BEAT_S` seconds, and as soon as the next stage has reported.

    Args:
        stage: the stage's place.
        layers: the half-open layer range that it owns.
        pulse: of its main loop.
        upstream: the link that reports go out on, against the direction of the ring.
        downstream: the link that the reports of the next stage arrive on.
        log: of the stage.
        check: called before each report.
    """

    def __init__(
        self,
        stage: int,
        layers: tuple[int, int] | None,
        pulse: Pulse,
        upstream: LinkReceiver,
        downstream: LinkSender,
        *,
        log: PlaceLogger,
        check: Callable[[], None],
    ) -> None:
        self._stage = stage
        self._layers = layers
        self._pulse = pulse
        self._upstream = upstream
        self._downstream = downstream
        self._log = log
        self._check = check
        self._received: tuple[float, tuple[StageStatus, ...]] = (0.0, ())
        self._heartbeat = Heartbeat(self._report, f"stage-{stage}-beat")
        downstream.on_notification(self._take)

    def start(self) -> None:
        """Begin to report."""
        self._heartbeat.start()

    def stop(self) -> None:
        """End, after a report under way."""
        self._heartbeat.stop()

    def _report(self) -> None:
        self._check()
        show_life(self._pulse.age_s)
        self._downstream.ping()
        received_at, others = self._received
        own = own_status(self._stage, self._layers, self._pulse, self._downstream)
        age_s = time.monotonic() - received_at
        self._upstream.notify(encode_control(Report(stages=(own, *(aged(other, age_s) for other in others)))))

    def _take(self, payload: bytes) -> None:
        """Take what the next place has sent upstream. Called by the link, so it must not wait."""
        try:
            control = decode_upstream(payload)
        except msgspec.DecodeError as cause:
            self._log.warning(f"a report from {self._downstream.peer} cannot be read ({cause})")
            return
        if isinstance(control, Report):
            self._received = time.monotonic(), control.stages
            self._heartbeat.soon()
        elif isinstance(control, Fault):
            self._upstream.notify(payload)
