# SPDX-License-Identifier: Apache-2.0
"""Control messages: each arrives as it was sent, and any other bytes are one named error."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zpptool.places import HEAD
from zpptool.ring.messages import (
    Call,
    Control,
    Fault,
    Leave,
    Moved,
    Received,
    Reply,
    RollCall,
    Seat,
    StageFacts,
    Stop,
    Verdict,
    decode_control,
    encode_control,
)
from zpptool.wire.link import LinkError

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(0, 2**63 - 1)
places = st.integers(0, 2**15 - 1)
facts = st.builds(
    StageFacts, stage=places, host=text, pid=numbers, num_stages=places, layers=st.tuples(numbers, numbers),
    agreed=st.dictionaries(text, text, max_size=3),
)  # fmt: skip
controls = st.one_of(
    st.builds(RollCall, stages=st.lists(facts, max_size=3).map(tuple)),
    st.builds(Verdict, reasons=st.lists(text, max_size=3).map(tuple)),
    st.builds(Call, number=numbers, method=text, from_all=st.booleans()),
    st.builds(Reply, number=numbers, stage=places),
    st.builds(Fault, stage=places, number=st.none() | numbers, message=text, detail=text),
    st.builds(Stop, reason=text, broke=st.booleans()),
    st.builds(Leave, seats=st.lists(st.builds(Seat, places, text, numbers), max_size=3).map(tuple), why=text),
    st.builds(Moved, address=text),
)


def decode(header: bytes, *frames: bytes) -> Received:
    return decode_control(header, frames, stage=HEAD, peer="stage 1", endpoint="ipc:///tmp/ring")


def refused(header: bytes, *frames: bytes) -> LinkError:
    with pytest.raises(LinkError) as caught:
        decode(header, *frames)
    assert (caught.value.stage, caught.value.peer, caught.value.endpoint) == (HEAD, "stage 1", "ipc:///tmp/ring")
    return caught.value


@given(controls, st.none() | st.binary())
def test_a_message_comes_back_as_it_was(control: Control, payload: bytes | None) -> None:
    received = decode(encode_control(control), *(() if payload is None else (payload,)))
    assert received == Received(control, payload or b"")
    assert type(received.payload) is bytes


CALL = {"type": "call", "number": 1, "method": "step", "from_all": False}


@pytest.mark.parametrize(
    "fields",
    [
        {**CALL, "type": "shout"},
        {name: value for name, value in CALL.items() if name != "type"},
        {name: value for name, value in CALL.items() if name != "number"},
        {**CALL, "number": "1"},
        {**CALL, "number": None},
        {**CALL, "number": -1},
        {"type": "reply", "number": 1, "stage": 2**15},
        {**CALL, "from_all": 1},
        {**CALL, "method": b"step"},
        {**CALL, "more": 1},
        [1, "step", False],
        {"type": "roll-call", "stages": [{"stage": 0}]},
        "call",
    ],
)
def test_another_tag_field_or_type_is_refused(fields: Any) -> None:
    assert "stage 1 sent a control message that cannot be read" in refused(msgspec.msgpack.encode(fields)).message


@given(st.binary())
@example(b"")
@example(b"\x81\xa4type\xa2\xff\xff")  # no UTF-8
@example(b"\x82\xa4type\xa4stop\xa6reason\xa1\xff")
@example(b"\x91" * 10_000)  # nested deeper than any decoder allows
@example(b"\x83\xa4type\xa4stop\xa1x" + b"\x91" * 10_000)
@example(b"\xdf\xff\xff\xff\xff")  # a map of four billion fields
def test_no_bytes_raise_another_error(header: bytes) -> None:
    with suppress(LinkError):
        decode(header)


def test_more_than_one_payload_is_refused() -> None:
    assert "2 frames" in refused(encode_control(Stop(reason="enough", broke=False)), b"a", b"b").message
