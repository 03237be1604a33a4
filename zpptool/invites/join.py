# SPDX-License-Identifier: Apache-2.0
"""Join a pipeline with an invite: afterwards plan and key file of the stage are on this machine, and it can start.

Stage 0 starts the listener and waits until every other stage has redeemed its invite. The listener goes on beside the
running stage, for stages that have not stored their answer yet.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zpptool.errors import ExitCode, ZppError
from zpptool.invites.invite import Invite, plan_text
from zpptool.invites.redeem import Redeemer, redeem
from zpptool.invites.state import StageState
from zpptool.process.group import POLL_S, STARTER, ProcessGroup
from zpptool.process.signals import stop_requests

LISTENER = "zpptool.invites.listener"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Joined:
    """What a stage that has joined is started from.

    Attributes:
        stage: its index.
        plan_file: the plan.
        keys: its key file.
    """

    stage: int
    plan_file: Path
    keys: Path


@contextmanager
def joined(invite: Invite) -> Iterator[Joined]:
    """Join, and keep the listener up for the duration of the block where this is stage 0.

    A stage that has joined before is not asked for again, and its invite may have expired.

    Args:
        invite: of the stage.

    Raises:
        ZppError: (INVALID) the invite is refused or has expired, or the plan is another one; (STAGE) not every stage
            has joined in time; (ADDRESS) the listener's address cannot be used.
        KeyboardInterrupt: the user stopped it.
    """
    state = StageState(invite)
    if state.has_joined:
        _logger.info("stage %d has joined before: its plan and keys are in %s", invite.stage, state.directory)
    else:
        invite.refuse_expired(time.time())
    with ProcessGroup() as group:
        with stop_requests() as stops:

            def is_stopped() -> bool:
                return not stops.empty()

            if invite.head is not None:
                _join_as_first(state, invite, group, is_stopped)
            elif not state.has_joined:
                _join_as_later(state, invite, is_stopped)
            if is_stopped():
                raise KeyboardInterrupt
        yield Joined(invite.stage, state.plan_file, state.key_file)


def _join_as_first(state: StageState, invite: Invite, group: ProcessGroup, is_stopped: Callable[[], bool]) -> None:
    """Start the listener, unless the invites have expired, and wait until it has written the key file."""
    assert invite.head is not None
    if time.time() >= invite.terms.expires:
        return
    state.own_keys()
    if not state.has_joined:  # else a planned change may have rewritten the plan
        state.keep_plan(plan_text(invite.head))
    state.keep_invite()
    listener = group.start("listener for invites", [*STARTER, LISTENER, str(state.directory)], {})
    while not state.has_joined and not is_stopped():
        if listener.ended and not state.has_joined:
            raise ZppError(
                f"not every stage can join: the {listener.name} {listener.how_it_ended()}",
                "Its reason is above.",
                ExitCode(listener.popen.returncode) if listener.popen.returncode in set(ExitCode) else ExitCode.FAILURE,
            )
        time.sleep(POLL_S)
    threading.Thread(target=listener.popen.wait, name="listener-wait", daemon=True).start()  # it ends in its own time


def _join_as_later(state: StageState, invite: Invite, is_stopped: Callable[[], bool]) -> None:
    """Redeem the token, and store the plan and the key file."""
    own = state.own_keys()
    with Redeemer(invite, own.own[0]) as redeemer:
        answer = redeem(redeemer, invite, is_stopped)
        if answer is None:
            return
        state.keep_plan(answer.plan)
        state.keep_keys(own, answer.pipeline, answer.created, answer.peers)
        _logger.info("stage %d has joined: its plan and keys are in %s", invite.stage, state.directory)
        redeemer.ask(has_joined=True)  # where it gets no answer, the listener stays up until the invites expire
