# SPDX-License-Identifier: Apache-2.0
"""The set-up calls that one stage process has done, with their answers, for the epochs in which they are repeated."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from zpptool.errors import ExitCode, ZppError
from zpptool.ring.messages import Call
from zpptool.wire.link_errors import StaleEpoch, WireFault


class SetupMismatch(ZppError):
    """A stage is asked for another set-up than the one it has. Only a restarted process can do that."""


class _Done(NamedTuple):
    method: str
    payload: bytes
    answer: bytes | None
    fault: Exception | None


class SetupHistory:
    """The set-up calls of one stage process, in order."""

    def __init__(self) -> None:
        self._done: list[_Done] = []

    def answer(self, call: Call, payload: bytes, do: Callable[[], bytes | None]) -> bytes | None:
        """The answer to a set-up call: the recorded one, or that of executing it now.

        Args:
            call: with its index among the set-up calls in `setup`.
            payload: its arguments.
            do: executes it.

        Raises:
            SetupMismatch: (FAILURE) another call was executed at this index, or an earlier one is missing.
            Exception: what executing it raised, now or the first time.
        """
        assert call.setup is not None
        if call.setup < len(self._done):
            done = self._done[call.setup]
            if (done.method, done.payload) != (call.method, payload):
                raise SetupMismatch(
                    f"this stage was set up with another {done.method} than the {call.method} that the head asks for",
                    "It ends, to be started anew.",
                    ExitCode.FAILURE,
                )
            if done.fault is not None:
                raise done.fault
            return done.answer
        if call.setup > len(self._done):
            raise SetupMismatch(
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
