# SPDX-License-Identifier: Apache-2.0
"""ring/stage/setup_history."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from zpptool.errors import ExitCode, ZppError
from zpptool.ring.messages import Call
from zpptool.wire.link_errors import StaleEpoch, WireFault


class SetUpOtherwise(ZppError):
    """A stage is asked to be set up in another way than it was. Only a newborn one can do that."""


class _Done(NamedTuple):
    method: str
    payload: bytes
    answer: bytes | None
    fault: Exception | None


class History:
    """What one stage was set up with, in its life."""

    def __init__(self) -> None:
        self._done: list[_Done] = []

    def answer(self, call: Call, payload: bytes, do: Callable[[], bytes | None]) -> bytes | None:
        """The answer to a set-up call: remembered, or by doing it.

        Raises:
            SetUpOtherwise: (FAILURE) it is not the call that was done in its place.
            Exception: what doing it raised, now or then.
        """
        assert call.setup is not None
        if call.setup < len(self._done):
            done = self._done[call.setup]
            if (done.method, done.payload) != (call.method, payload):
                raise SetUpOtherwise(
                    f"this stage was set up with another {done.method} than the {call.method} that the head asks for",
                    "It ends, to be started anew.",
                    ExitCode.FAILURE,
                )
            if done.fault is not None:
                raise done.fault
            return done.answer
        if call.setup > len(self._done):
            raise SetUpOtherwise(
                f"{call.method} is set-up call {call.setup}, and this stage has done {len(self._done)} of them",
                "It ends, to be started anew.",
                ExitCode.FAILURE,
            )
        try:
            answer = do()
        except (StaleEpoch, WireFault):
            raise
        except Exception as fault:
            self._done.append(_Done(call.method, payload, None, fault))
            raise
        self._done.append(_Done(call.method, payload, answer, None))
        return answer
