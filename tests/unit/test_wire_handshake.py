# SPDX-License-Identifier: Apache-2.0
"""Which receiver a link admits: every pair of parties gets one answer, and no two are welcome in one epoch."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpptool.places import HEAD
from zpptool.wire.link_errors import WireError
from zpptool.wire.protocol.flow_control import Window
from zpptool.wire.protocol.handshake import LinkState, judge, unfit
from zpptool.wire.protocol.link_messages import Hold, Party, Refused, Welcome, decode_link_message, encode_link_message

OURS = Party(0, 3, "digest", "run", 2)
THEIRS = Party(1, 3, "digest", "run", 2)
FREE = LinkState(taken=False, spent=False)


def changed(party: Party, **fields: object) -> Party:
    return msgspec.structs.replace(party, **fields)


@pytest.mark.parametrize(
    "theirs",
    [THEIRS, changed(THEIRS, epoch=0), Party(1), changed(THEIRS, num_stages=0), changed(THEIRS, digest=""),
     changed(THEIRS, run_id="")],
)  # fmt: skip
def test_a_matching_receiver_is_welcome_even_if_it_lacks_some_facts(theirs: Party) -> None:
    assert judge(theirs, OURS, 1, FREE) is None


@pytest.mark.parametrize(
    ("theirs", "reason", "plan"),
    [
        (changed(THEIRS, stage=2), "stage 1 is awaited here, not stage 2", False),
        (changed(THEIRS, stage=HEAD), "stage 1 is awaited here, not head", False),
        (changed(THEIRS, num_stages=4), "stage 1 counts 4 stages, stage 0 3", True),
        (changed(THEIRS, digest="other"), "stage 1 has plan digest other, stage 0 digest", True),
        (changed(THEIRS, run_id="other"), "stage 1 belongs to run other, stage 0 to run", False),
    ],
)
def test_a_mismatch_is_refused_by_either_side(theirs: Party, reason: str, plan: bool) -> None:
    assert judge(theirs, OURS, 1, FREE) == unfit(theirs, OURS, 1) == Refused(reason, plan)


def test_a_second_peer_is_refused() -> None:
    answer = judge(THEIRS, OURS, 1, LinkState(taken=True, spent=True))
    assert answer == Refused("another stage 1 is connected already", plan=False)


@pytest.mark.parametrize(
    ("theirs", "ours", "state", "reason"),
    [
        (THEIRS, changed(OURS, run_id=""), FREE, "stage 0 waits for the run to begin"),
        (changed(THEIRS, epoch=3), OURS, FREE, "stage 0 is in epoch 2 still, not in 3"),
        (THEIRS, OURS, LinkState(taken=False, spent=True), "the link of epoch 2 was lost; another epoch has to begin"),
    ],
)
def test_a_receiver_that_is_too_early_is_held(theirs: Party, ours: Party, state: LinkState, reason: str) -> None:
    assert judge(theirs, ours, 1, state) == Hold(reason)


parties = st.builds(
    Party, st.integers(-1, 3), st.integers(0, 3), st.sampled_from(["", "a", "b"]), st.sampled_from(["", "r", "s"]),
    st.integers(0, 3),
)  # fmt: skip


@given(theirs=parties, ours=parties, awaited=st.integers(-1, 3), taken=st.booleans(), spent=st.booleans())
def test_only_the_awaited_one_is_ever_admitted_and_only_into_an_unused_epoch(theirs, ours, awaited, taken, spent):
    if judge(theirs, ours, awaited, LinkState(taken, spent)) is None:
        assert not taken
        assert not spent
        assert theirs.stage == awaited
        assert theirs.epoch <= ours.epoch
        assert ours.run_id
        assert theirs.run_id in ("", ours.run_id)


@given(st.binary(max_size=200))
def test_noise_is_no_link_message(noise: bytes) -> None:
    try:
        message = decode_link_message(noise)
    except WireError:
        return
    assert decode_link_message(encode_link_message(message)) == message


def test_a_link_message_with_an_unknown_field_is_refused() -> None:
    message = msgspec.msgpack.decode(encode_link_message(Welcome(OURS, Window(), {})))
    for altered in (
        message | {"extra": 1},
        message | {"party": message["party"] | {"stage": "1"}},
        {"type": "nothing"},
    ):
        with pytest.raises(WireError, match="cannot be read"):
            decode_link_message(msgspec.msgpack.encode(altered))


def test_where_receivers_follow_their_sender_those_of_another_run_are_welcome_and_the_head_is_held() -> None:
    """A head that was started again names a new run; it reaches the last stage through all other stages."""
    following = LinkState(taken=False, spent=False, follows=True)
    assert judge(changed(THEIRS, run_id="older", epoch=9), OURS, 1, following) is None
    newer = changed(THEIRS, stage=HEAD, run_id="newer")
    assert isinstance(judge(newer, OURS, HEAD, following), Hold)
    assert isinstance(judge(newer, OURS, HEAD, FREE), Refused)
