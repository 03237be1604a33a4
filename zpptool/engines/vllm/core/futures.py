# SPDX-License-Identifier: Apache-2.0
"""Futures of calls: done from the start, held back, or converted from another future."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from zpptool.errors import ZppError
from zpptool.wire.link_errors import StaleEpoch


def completed(result: Any) -> Future[Any]:
    """A future that is done."""
    future: Future[Any] = Future()
    future.set_result(result)
    return future


class HeldFuture(Future[Any]):
    """The answer to a call that is held back. Waiting for it sends the call.

    Args:
        release: sends the call if it is still held back.
    """

    def __init__(self, release: Callable[[], None]) -> None:
        super().__init__()
        self._release = release

    def result(self, timeout: float | None = None) -> Any:
        """Send the call, and wait for its answer for at most `timeout` seconds."""
        self._release()
        return super().result(timeout)


def settle_from(
    source: Future[Any], target: Future[Any], convert: Callable[[Any], Any], lost: object | None = None
) -> None:
    """Settle `target` as soon as `source` is done.

    Args:
        source: the answers of the stages.
        target: gets the converted result, or the error.
        convert: makes the result.
        lost: the result where the epoch of the call has ended; None for the error.
    """

    def settle(done: Future[Any]) -> None:
        fault = done.exception()
        if isinstance(fault, StaleEpoch) and lost is not None:
            target.set_result(lost)
            return
        if fault is not None:
            target.set_exception(fault)
            return
        try:
            target.set_result(convert(done.result()))
        except ZppError as cause:
            target.set_exception(cause)

    source.add_done_callback(settle)
