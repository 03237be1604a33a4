# SPDX-License-Identifier: Apache-2.0
"""A device that is simulated on the CPU, for `zpptool.engines.staging`: its streams are threads that do what is queued
on them late, in order, each operation after a random delay.

Memory of the device is memory of the host, so a copy that is not ordered by events reads or overwrites the wrong bytes,
as on a real device, and the log finds it even where the delays happen to hide it.
"""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator

import torch

from gpucheck.race_log import HOST, Clock, RaceLog

_STREAM = threading.local()


class _Point:
    """A point that an event has recorded: whether it is reached, and what has happened before it."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.clock: Clock = {}


class StubEvent:
    """See `zpptool.engines.staging.device.Event`."""

    def __init__(self, device: StubDevice) -> None:
        self._device = device
        self.point: _Point | None = None

    def record(self, stream: StubStream | HostStream) -> None:
        self.point = point = _Point()

        def reach() -> None:
            point.clock = self._device.log.now(stream.name)
            point.reached.set()

        stream.queue(reach)

    def synchronize(self) -> None:
        if self.point is not None:
            self.point.reached.wait()
            self._device.log.learn(HOST, self.point.clock)


class StubStream:
    """A thread that does one operation after the other."""

    def __init__(self, device: StubDevice, name: str) -> None:
        self.name = name
        self._device = device
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def queue(self, work: Callable[[], None]) -> None:
        """Do this after all that was queued before; what the host has done so far happens before it."""
        host = self._device.log.now(HOST)

        def later() -> None:
            self._device.log.learn(self.name, host)
            work()

        self._work.put(later)

    def wait_event(self, event: StubEvent) -> None:
        point = event.point
        if point is None:
            return

        def wait() -> None:
            point.reached.wait()
            self._device.log.learn(self.name, point.clock)

        self.queue(wait)

    def close(self) -> None:
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            self._device.delay()
            work()


class HostStream:
    """The current stream of a computation that runs on the host: everything is done at once, by the calling thread."""

    name = HOST

    def __init__(self, device: StubDevice) -> None:
        self._device = device

    def queue(self, work: Callable[[], None]) -> None:
        work()

    def wait_event(self, event: StubEvent) -> None:
        event.synchronize()


class StubDevice:
    """See `zpptool.engines.staging.device.Device`.

    Args:
        computes_on_host: whether computations are made by the calling thread, as by a model on a CPU; otherwise
            `compute` queues them on a stream.
        delay_s: the longest delay of an operation, in seconds.
        seed: of the delays.
        log: None to record no accesses, for a long run.
    """

    def __init__(self, *, computes_on_host: bool, delay_s: float, seed: int = 0, log: RaceLog | None = None) -> None:
        self.log: RaceLog | _NoLog = log or _NoLog()
        self._chance = random.Random(seed)
        self._delay_s = delay_s
        self._blocks: list[torch.Tensor] = []  # an address that is used again would look like a race
        self._streams: list[StubStream] = []
        self._current = HostStream(self) if computes_on_host else self.new_stream()

    def new_stream(self) -> StubStream:
        self._streams.append(StubStream(self, f"stream {len(self._streams)}"))
        return self._streams[-1]

    def current_stream(self) -> StubStream | HostStream:
        return self._current

    def new_event(self) -> StubEvent:
        return StubEvent(self)

    @contextlib.contextmanager
    def on(self, stream: StubStream) -> Iterator[None]:
        _STREAM.present = stream
        try:
            yield
        finally:
            _STREAM.present = None

    def host_memory(self, nbytes: int) -> torch.Tensor:
        return self._block(nbytes)

    def device_memory(self, nbytes: int) -> torch.Tensor:
        return self._block(nbytes)

    def copy(self, into: torch.Tensor, source: torch.Tensor) -> None:
        self._queue_on(_STREAM.present, "a copy", lambda: into.copy_(source), (source,), (into,))

    def zero(self, memory: torch.Tensor) -> None:
        self._queue_on(_STREAM.present, "zeros", memory.zero_, (), (memory,))

    def fill(self, into: torch.Tensor, source: torch.Tensor) -> None:
        self.log.access(HOST, "a message", reads=(), writes=(into,))
        with torch.inference_mode():
            into.copy_(source)

    def compute(
        self, work: Callable[[], object], *, reads: tuple[torch.Tensor, ...] = (), writes: tuple[torch.Tensor, ...] = ()
    ) -> None:
        """Queue a computation on the current stream."""
        self._queue_on(self._current, "a computation", work, reads, writes)

    def delay(self) -> None:
        """What an operation waits before it begins."""
        if self._delay_s:
            time.sleep(self._chance.uniform(0, self._delay_s))

    def close(self) -> None:
        """Do what is queued, and end the streams."""
        for stream in self._streams:
            stream.close()

    def _block(self, nbytes: int) -> torch.Tensor:
        block = torch.zeros(nbytes, dtype=torch.uint8)
        if isinstance(self.log, RaceLog):
            self._blocks.append(block)
        return block

    def _queue_on(
        self,
        stream: StubStream | HostStream,
        what: str,
        work: Callable[[], object],
        reads: tuple[torch.Tensor, ...],
        writes: tuple[torch.Tensor, ...],
    ) -> None:
        def do() -> None:
            with torch.inference_mode():
                self.log.access(stream.name, what, reads=reads, writes=writes)
                work()

        stream.queue(do)


class _NoLog:
    """A log that records nothing."""

    def now(self, _actor: str) -> Clock:
        return {}

    def learn(self, _actor: str, _clock: Clock) -> None:
        pass

    def access(self, _actor: str, _what: str, **_tensors: tuple[torch.Tensor, ...]) -> None:
        pass
