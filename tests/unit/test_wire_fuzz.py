# SPDX-License-Identifier: Apache-2.0
"""Malformed bytes are a named error in every decoder; `scripts/fuzz_wire.py --frames 10000000` runs long."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpptool.errors import ZppError
from zpptool.places import HEAD
from zpptool.ring import messages as c
from zpptool.ring.stage.order import split_call
from zpptool.wire.message.framing import Limits, decode
from zpptool.wire.message.tensors import unpack
from zpptool.wire.protocol import link_messages

FUZZ = Path(__file__).parents[2] / "scripts" / "fuzz_wire.py"

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=9)
    | st.binary(max_size=9) | st.sampled_from(["hello", "call", "roll-call", "stage", "number", "bfloat16", "type"]),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=6) | st.just("type"), inner, max_size=4)
    ),
    max_leaves=12,
)  # fmt: skip
noise = st.binary(max_size=300) | plain.map(msgspec.msgpack.encode)


@given(noise, st.lists(st.binary(max_size=100), max_size=3))
def test_no_bytes_make_a_decoder_fail_otherwise_than_by_name(header: bytes, frames: list[bytes]) -> None:
    for take in (
        lambda: decode([header, *frames], Limits()),
        lambda: unpack(header, frames),
        lambda: c.decode_control(header, frames, stage=HEAD, peer="stage 1", endpoint="here", epoch=0),
        lambda: link_messages.decode_link_message(header),
        lambda: split_call(header),
    ):
        message = ""
        try:
            take()
        except ZppError as error:
            message = error.message
        assert len(message) < 10_000


@pytest.mark.torch
@pytest.mark.timeout(300)
def test_a_short_run_of_the_long_fuzz() -> None:
    pytest.importorskip("torch")
    ran = subprocess.run(
        [sys.executable, FUZZ, "--frames", "60000", "--seed", "5"], capture_output=True, text=True, timeout=280
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    outcome = json.loads(ran.stdout)
    assert outcome["frames"] >= 60_000
    assert outcome["refused"] > outcome["taken"] > 0


@pytest.mark.parametrize(
    "control",
    [
        {"type": "reply", "number": -1, "stage": 0},
        {"type": "reply", "number": 0, "stage": -1},
        {"type": "reply", "number": 0, "stage": 1 << 40},
        {"type": "call", "number": -5, "method": "x", "from_all": True},
        {"type": "call", "number": 1, "method": "x", "from_all": True, "more": 1},
        {"type": "fault", "stage": -1, "number": None, "message": "", "detail": ""},
        {"type": "verdict", "reasons": "x"},
        {"type": "nothing"},
    ],
)
def test_control_that_cannot_be_is_refused(control: dict[str, object]) -> None:
    with pytest.raises(ZppError, match="cannot be read"):
        c.decode_control(msgspec.msgpack.encode(control), (), stage=HEAD, peer="stage 1", endpoint="here")


@pytest.mark.parametrize(
    "link_message",
    [
        {"type": "taken", "count": -1},
        {"type": "taken", "count": 1, "more": 2},
        {"type": "hello", "party": {"stage": -2}, "window": {}, "limits": {}, "offers": {}},
        {"type": "hello", "party": {"stage": 1, "epoch": -1}, "window": {}, "limits": {}, "offers": {}},
        {"type": "hello", "party": {"stage": 1}, "window": {"messages": 0}, "limits": {}, "offers": {}},
        {"type": "hello", "party": {"stage": 1}, "window": {"nbytes": -1}, "limits": {}, "offers": {}},
        {"type": "ping", "at": "now"},
    ],
)
def test_invalid_link_messages_are_refused(link_message: dict[str, object]) -> None:
    with pytest.raises(ZppError, match="cannot be read"):
        link_messages.decode_link_message(msgspec.msgpack.encode(link_message))
