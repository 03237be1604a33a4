# SPDX-License-Identifier: Apache-2.0
"""The errors of a link: each names both sides, the address, and the state that the link was in.

The invariant: every error carries the same facts as attributes and in its message, so that a supervisor can act on it
without parsing text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from zpptool.deadline import Deadline
from zpptool.errors import ExitCode
from zpptool.places import place_name
from zpptool.wire.link_errors import LinkError, LinkFacts, LinkRefused, LinkTimeout, PeerLost, StaleEpoch, WireError
from zpptool.wire.message.framing import Message
from zpptool.wire.protocol.sequence import SequenceError, SequenceFault


@dataclass(frozen=True)
class LinkFaults:
    """The state of one end of a link at one moment, and the errors that describe it.

    Attributes:
        stage: the place of this end.
        peer: the other side by name.
        endpoint: the address between them.
        epoch: the link's epoch.
        sequence: the last message of that epoch; -1 for none.
        state: `waiting`, `connected`, `lost` or `refused`.
        detail: the state of the connection, as a clause for a message about a timeout.
    """

    stage: int
    peer: str
    endpoint: str
    epoch: int
    sequence: int
    state: str
    detail: str

    def timed_out(self, deadline: Deadline, awaited: str) -> LinkTimeout:
        """A wait ended at its deadline.

        Args:
            awaited: what the peer did not do in time, as an infinitive.
        """
        if self.state == "connected":
            hint = f"See the log of {self.peer}: it is busy, stopped or hung."
        else:
            hint = f"Is {self.peer} running, and does the address lead to it?"
        message = f"{self._here} waited {deadline.timeout_s:g} s for {self.peer} ({self.endpoint}) to {awaited}"
        return LinkTimeout(self._with_state(f"{message}; {self.detail}"), hint, **self._facts)

    def misused(self, problem: str, hint: str | None = None) -> LinkError:
        """The link cannot be used: `problem` completes the sentence `the link to stage 1 ...`."""
        return self.failed(f"the link to {self.peer} {problem}", hint)

    def failed(self, problem: str, hint: str | None = None) -> LinkError:
        """Any other failure of the link; `problem` is the sentence."""
        return LinkError(self._with_state(f"{self._here}: {problem} ({self.endpoint})"), hint, **self._facts)

    def lost(self) -> PeerLost:
        """The connection to a peer that had exchanged messages with this end has ended."""
        problem = f"has lost {self.peer} at {self.endpoint}: its process ended, or the connection to it broke"
        return PeerLost(self._with_state(f"{place_name(self.stage)} {problem}"), **self._facts)

    def refused_message(self, error: WireError) -> WireError:
        """A received message is malformed: `error`, with the facts of this link."""
        problem = f"{self._here} refused a message from {self.peer} ({self.endpoint}): {error.message}"
        return WireError(problem, error.hint, **self._facts)

    def refused(self, who: str, reason: str, *, plan: bool) -> LinkRefused:
        """One side of the link rejects the other.

        Args:
            who: a clause that names the side that was rejected.
            reason: why.
            plan: whether the two sides were started with different plans (exit 3).
        """
        refused = replace(self, state="refused")
        return LinkRefused(
            refused._with_state(f"{self._here}: {who} ({self.endpoint}): {reason}"),
            "Start all stages of one pipeline with the same plan, each at its own place.",
            **refused._facts,
            exit_code=ExitCode.INVALID if plan else ExitCode.STAGE,
        )

    def stale_to_send(self, epoch: int | None) -> StaleEpoch:
        """A message that was to be sent belongs to another epoch or run than the link."""
        return self._stale(f"a message of epoch {epoch} is not for {self.peer} ({self.endpoint})")

    def stale_received(self, epoch: int) -> StaleEpoch:
        """A received message belongs to another epoch than the link."""
        return self._stale(f"{self._here} got a message of epoch {epoch} from {self.peer} ({self.endpoint})")

    def stale_welcome(self, epoch: int) -> StaleEpoch:
        """The sender welcomes this end to an epoch before the link's."""
        return self._stale(f"{self.peer} welcomes to epoch {epoch} at {self.endpoint}, and that is over")

    def out_of_sequence(self, fault: SequenceFault, message: Message) -> SequenceError:
        """A received message is not the one that was due."""
        problem = (
            f"{self._here} expected message {fault.expected} of {self.peer} ({self.endpoint}) "
            f"and got {fault.got}: {fault.text}"
        )
        return SequenceError(
            self._with_state(problem), expected=fault.expected, got=fault.got, received=message, **self._facts
        )

    @property
    def _here(self) -> str:
        return place_name(self.stage).capitalize()

    @property
    def _facts(self) -> LinkFacts:
        return {
            "stage": self.stage,
            "peer": self.peer,
            "endpoint": self.endpoint,
            "epoch": self.epoch,
            "sequence": self.sequence,
            "state": self.state,
        }

    def _stale(self, problem: str) -> StaleEpoch:
        return StaleEpoch(self._with_state(problem), **self._facts)

    def _with_state(self, problem: str) -> str:
        last = f"message {self.sequence}" if self.sequence >= 0 else "no message"
        return f"{problem.rstrip('.')} (epoch {self.epoch}, {last} so far, {self.state})."
