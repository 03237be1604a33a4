# SPDX-License-Identifier: Apache-2.0
"""Which receiver a link admits: the rule, independent of sockets.

The invariant: in one epoch of one run a link has at most one session in which a message is sent, and both its ends
agree on places, number of stages, plan, run and epoch. Any other receiver is refused, or held until it may be admitted.
"""

from __future__ import annotations

from typing import NamedTuple

from zpptool.places import HEAD, place_name
from zpptool.wire.protocol.link_messages import Hold, Party, Refused


def unfit(theirs: Party, ours: Party, awaited: int, *, follows: bool = False) -> Refused | None:
    """Why the other end cannot be the one that this end is meant for; None when it can. Both ends check.

    Args:
        theirs: the other end.
        ours: this end.
        awaited: the place that the other end has to have.
        follows: whether the receiver of this link may join its sender in another run.
    """
    if theirs.num_stages and ours.num_stages and theirs.num_stages != ours.num_stages:
        return Refused(
            f"{place_name(theirs.stage)} counts {theirs.num_stages} stages, {place_name(ours.stage)} {ours.num_stages}",
            plan=True,
        )
    if theirs.digest and ours.digest and theirs.digest != ours.digest:
        return Refused(
            f"{place_name(theirs.stage)} has plan digest {theirs.digest}, {place_name(ours.stage)} {ours.digest}",
            plan=True,
        )
    if theirs.stage != awaited:
        return Refused(f"{place_name(awaited)} is awaited here, not {place_name(theirs.stage)}", plan=False)
    if not follows and of_other_runs(theirs, ours):
        return Refused(
            f"{place_name(theirs.stage)} belongs to run {theirs.run_id}, {place_name(ours.stage)} to {ours.run_id}",
            plan=False,
        )
    return None


def of_other_runs(theirs: Party, ours: Party) -> bool:
    """Whether both take part in a run, and not in the same one."""
    return bool(theirs.run_id and ours.run_id and theirs.run_id != ours.run_id)


class LinkState(NamedTuple):
    """The state of the sender's link when a receiver greets it.

    Attributes:
        taken: another receiver is connected and welcome.
        spent: a message was sent in this epoch; a receiver that has not got it can never get it.
        follows: a receiver of another run may join the sender's, unless it is the head, which names the run.
    """

    taken: bool
    spent: bool
    follows: bool = False


def judge(theirs: Party, ours: Party, awaited: int, state: LinkState) -> Hold | Refused | None:
    """The sender's answer to a greeting; None admits the receiver.

    Args:
        theirs: the receiver.
        ours: the sender.
        awaited: the place that the receiver has to have.
        state: of the sender's link.
    """
    refused = unfit(theirs, ours, awaited, follows=state.follows)
    if refused is not None:
        return refused
    other_run = of_other_runs(theirs, ours)
    if other_run and theirs.stage == HEAD:
        return Hold(f"{place_name(ours.stage)} is in run {ours.run_id} still, not in {theirs.run_id}")
    if state.taken:
        return Refused(f"another {place_name(awaited)} is connected already", plan=False)
    if not ours.run_id:
        return Hold(f"{place_name(ours.stage)} waits for the run to begin")
    if theirs.epoch > ours.epoch and not other_run:
        return Hold(f"{place_name(ours.stage)} is in epoch {ours.epoch} still, not in {theirs.epoch}")
    if state.spent:
        return Hold(f"the link of epoch {ours.epoch} was lost; another epoch has to begin")
    return None
