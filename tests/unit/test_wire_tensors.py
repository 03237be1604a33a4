# SPDX-License-Identifier: Apache-2.0
"""A tensor dict arrives bit for bit, whatever its dtypes, shapes and strides; what cannot be one is refused."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zpptool.wire.link_errors import WireError
from zpptool.wire.message.framing import Limits
from zpptool.wire.message.schema import JOIN_BELOW_BYTES, dtypes, plan_to_receive, plan_to_send
from zpptool.wire.message.tensors import pack, unpack

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

BASE_ELEMENTS = 200
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(0, 99), inner, max_size=3),
    max_leaves=8,
)


def round_trip(tensor_dict: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Pack and unpack, through memory that the receiver owns."""
    packed = pack(tensor_dict)
    return unpack(packed.header, [bytearray(frame) for frame in packed.frames], **options)


def bits(tensor: torch.Tensor) -> bytes:
    """The bytes of a contiguous tensor."""
    assert tensor.is_contiguous()
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


@st.composite
def strided(draw) -> tuple[torch.Tensor, bytes]:
    """A tensor of any dtype, shape, stride and offset over random bytes, and its elements' bytes in order."""
    dtype = dtypes()[draw(st.sampled_from(sorted(dtypes())))]
    size = dtype.itemsize
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    strides = [draw(st.integers(0, 9)) for _ in shape]
    reach = sum(max(length - 1, 0) * stride for length, stride in zip(shape, strides, strict=True))
    offset = draw(st.integers(0, BASE_ELEMENTS - 1 - reach))
    raw = os.urandom(BASE_ELEMENTS * size)
    base = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(dtype)
    places = (
        offset + sum(index * stride for index, stride in zip(indices, strides, strict=True))
        for indices in itertools.product(*map(range, shape))
    )
    expected = b"".join(raw[place * size : (place + 1) * size] for place in places)
    return torch.as_strided(base, shape, strides, offset), expected


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@settings(max_examples=400, deadline=None)
@given(
    sent=st.dictionaries(st.text(max_size=8), strided(), max_size=4),
    values=st.dictionaries(st.text(), plain, max_size=3),
)
def test_any_tensor_dict_arrives_bit_for_bit(sent, values):
    values = {name: value for name, value in values.items() if name not in sent}
    got = round_trip({name: tensor for name, (tensor, _) in sent.items()} | values)
    assert list(got) == [*sent, *values]
    for name, (tensor, expected) in sent.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape)
        assert bits(got[name]) == expected
    assert {name: got[name] for name in values} == values


@pytest.mark.parametrize("name", sorted(dtypes()))
def test_every_dtype_is_sent_joined_and_alone(name):
    dtype = dtypes()[name]
    for count in (3, JOIN_BELOW_BYTES // dtype.itemsize):
        raw = os.urandom(count * dtype.itemsize)
        tensor = torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(dtype)
        assert bits(round_trip({"t": tensor})["t"]) == raw


def test_the_dtypes_include_what_models_use():
    wanted = "bfloat16 float16 float32 float64 float8_e4m3fn float8_e5m2 bool int8 int64 uint16 uint64 complex64"
    assert set(wanted.split()) <= set(dtypes())


def test_small_tensors_share_one_frame_and_large_ones_have_their_own():
    small = {"a": torch.zeros(3), "b": torch.zeros(5, dtype=torch.bool)}
    large = {"a": torch.zeros(JOIN_BELOW_BYTES // 4), "b": torch.zeros(0), "c": torch.zeros(5)}
    assert [memoryview(frame).nbytes for frame in pack(small).frames] == [64 + 5]
    assert [memoryview(frame).nbytes for frame in pack(large).frames] == [JOIN_BELOW_BYTES, 0, 20]
    assert pack(large).nbytes == JOIN_BELOW_BYTES + 20


def test_large_tensors_are_sent_and_received_without_a_copy():
    tensor = torch.zeros(JOIN_BELOW_BYTES)
    packed = pack({"t": tensor})
    tensor[7] = 5.0
    received = bytearray(packed.frames[0])
    got = unpack(packed.header, [received])["t"]
    assert got[7] == 5.0
    received[:4] = b"\x00\x00\x80\x3f"
    assert got[0] == 1.0


@pytest.mark.parametrize("count", [4, JOIN_BELOW_BYTES])
@pytest.mark.parametrize("frame_type", [bytes, bytearray])
def test_received_tensors_may_be_written(count, frame_type):
    packed = pack({"a": torch.zeros(count), "b": torch.zeros(2)})
    got = unpack(packed.header, [frame_type(frame) for frame in packed.frames])
    got["a"].add_(1)
    assert got["a"].sum() == count
    assert got["b"].sum() == 0


def test_received_tensors_are_aligned():
    tensor = torch.arange(JOIN_BELOW_BYTES, dtype=torch.float64)
    packed = pack({"t": tensor})
    for shift in range(9):
        memory = bytearray(16 + packed.nbytes)
        frame = memoryview(memory)[shift : shift + packed.nbytes]
        frame[:] = memoryview(packed.frames[0]).cast("B")
        got = unpack(packed.header, [frame])["t"]
        assert got.data_ptr() % 8 == 0
        assert torch.equal(got, tensor)


def test_gradients_conjugates_and_parameters_travel_as_their_values():
    conjugate = torch.tensor([1 + 2j]).conj()
    sent = {
        "leaf": torch.ones(2, requires_grad=True),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "conjugate": conjugate,
        "negative": conjugate.imag,
    }
    got = round_trip(sent)
    for name, tensor in sent.items():
        assert torch.equal(got[name], tensor.detach())
        assert type(got[name]) is torch.Tensor
        assert not got[name].requires_grad


def test_tensors_go_to_the_device_that_was_asked_for():
    assert round_trip({"t": torch.zeros(3)}, device="meta")["t"].is_meta


class Wrapped(torch.Tensor):
    """A tensor that is more than its bytes."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(2).to_sparse(),
        lambda: torch.empty(2, device="meta"),
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
        lambda: torch.ones(2).as_subclass(Wrapped),
    ],
    ids=["sparse", "meta", "quantised", "nested", "subclass"],
)
def test_tensors_that_are_more_than_their_bytes_are_refused_by_name(make):
    with pytest.raises(WireError, match="'odd'"):
        pack({"odd": make()})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((1, 2), "tuple"),
        ({1, 2}, "set"),
        ([torch.zeros(1)], "Tensor"),
        (object(), "object"),
        ({(1,): 2}, "key of type tuple"),
        ({"a": [torch.float32]}, "dtype"),
    ],
)
def test_values_that_would_not_arrive_as_they_are_are_refused_by_name(value, expected):
    with pytest.raises(WireError, match=f"'odd'.*{expected}"):
        pack({"odd": value})


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, "\ud800"])
def test_values_that_msgpack_cannot_write_are_refused(value):
    with pytest.raises(WireError, match=r"odd.* cannot be sent"):
        pack({"odd": value})


def test_values_nested_beyond_reason_are_refused():
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(WireError, match="more than 64 deep"):
        pack({"odd": deep})


@pytest.mark.parametrize("name", [5, None, b"bytes", "\ud800"])
def test_names_are_strings(name):
    with pytest.raises(WireError, match="name"):
        pack({name: torch.zeros(1)})


def header(*tensors: Any, joined: Any = True, values: Any = None) -> bytes:
    """A header with these [name, dtype, shape]."""
    return msgspec.msgpack.encode([[joined, list(tensors)], {} if values is None else values])


BOMB = ["t", "float32", [2**20, 2**20]]


@pytest.mark.parametrize(
    ("head", "frames", "expected"),
    [
        (header(BOMB), [b""], "spans 4398046511104 bytes"),
        (header(["t", "uint8", [2**41]]), [b""], "dimension of 2199023255552"),
        (header(["t", "uint8", [0, 2**40, 2**40]]), [b""], "spans"),
        (header(["t", "uint8", [-1]]), [b""], "dimension of -1"),
        (header(["t", "uint8", [2**64 - 1]]), [b""], "dimension of 18446744073709551615"),
        (header(["t", "uint8", [1] * 17]), [b"x"], "rank 17"),
        (header(["t", "qint8", [1]]), [b"x"], "does not know"),
        (header(["t", "__class__", [1]]), [b"x"], "does not know"),
        (header(["t", "uint8", [1]], ["t", "uint8", [1]]), [bytes(65)], "comes twice"),
        (header(["t", "uint8", [1]], values={"t": 1}), [b"x"], "both a tensor and a plain value"),
        (header(["t", "uint8", [4]]), [b"abc"], "frames of 3 bytes came, its tensors need 4"),
        (header(["t", "uint8", [4]]), [], "frames of no bytes came"),
        (header(["t", "uint8", [4]]), [b"abcd", b""], "frames of 4, 0 bytes came"),
        (header(["a", "uint8", [1]], ["b", "uint8", [1]], joined=False), [b"ab"], "need 1, 1"),
        (header(*[[str(index), "uint8", [0]] for index in range(1024)]), [b""], "1024 tensors"),
        (header(["t" * 300_000, "uint8", [1]]), [b"x"], "schema of 3000"),
        (header(["t", "uint8", 1]), [b"x"], "cannot be read"),
        (header(["t", "uint8"]), [b"x"], "cannot be read"),
        (header(["t", "uint8", [1], "more"]), [b"x"], "cannot be read"),
        (header(["t", "uint8", [1]], joined="yes"), [b"x"], "cannot be read"),
        (header(["t", "uint8", [1.5]]), [b"x"], "cannot be read"),
        (header(values=[]), [], "plain values cannot be read"),
        (header(values={5: 1}), [], "plain values cannot be read"),
        (header(values={"v": msgspec.msgpack.Ext(7, b"x")}), [], "holds a Ext"),
        (msgspec.msgpack.encode([[True, []], {}, 3]), [], "cannot be read"),
        (msgspec.msgpack.encode({"a": 1}), [], "cannot be read"),
        (b"\x92\x92\xc3\xdd\xff\xff\xff\xff", [], "cannot be read"),
        (b"\x92" + b"\x91" * 100_000, [], "cannot be read"),
        (b"\x92\x92\xc3\x90\x81\xa1v" + b"\x91" * 2000 + b"\xc0", [], "cannot be read"),
        (b"", [], "cannot be read"),
        (b"\x80\x04\x95", [], "cannot be read"),
    ],
)
def test_a_header_with_false_sizes_is_refused_by_name(head, frames, expected):
    with pytest.raises(WireError, match=expected):
        unpack(head, frames)


def test_the_limits_are_the_caller_s():
    packed = pack({"t": torch.zeros(4, 4), "u": torch.zeros(1)})
    for change in (
        {"max_tensors": 1},
        {"max_rank": 1},
        {"max_dim": 3},
        {"max_frame_bytes": 63},
        {"max_schema_bytes": 9},
    ):
        with pytest.raises(WireError):
            unpack(packed.header, packed.frames, limits=replace(Limits(), **change))
    assert unpack(packed.header, packed.frames).keys() == {"t", "u"}


@settings(max_examples=600, deadline=None)
@given(head=st.binary(max_size=60), frames=st.lists(st.binary(max_size=30), max_size=3))
def test_arbitrary_bytes_raise_nothing_but_wire_error(head, frames):
    with suppress(WireError):
        unpack(head, frames)


@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_a_mutated_message_is_read_or_refused(data):
    packed = pack({"a": torch.zeros(2, 3), "b": torch.zeros(0, 5, dtype=torch.int8), "v": [1, {"k": b"x"}]})
    head = bytearray(packed.header)
    for _ in range(data.draw(st.integers(1, 4))):
        head[data.draw(st.integers(0, len(head) - 1))] = data.draw(st.integers(0, 255))
    with suppress(WireError):
        got = unpack(bytes(head), packed.frames)
        assert sum(value.nbytes for value in got.values() if isinstance(value, torch.Tensor)) <= 24 + 64


def test_a_repeated_schema_is_planned_once_and_only_so_many_are_kept():
    plan_to_send.cache_clear()
    plan_to_receive.cache_clear()
    for step in range(3):
        round_trip({"hidden_states": torch.zeros(2, 8), "residual": torch.zeros(2, 8), "step": step})
    assert (plan_to_send.cache_info().misses, plan_to_receive.cache_info().misses) == (1, 1)
    for length in range(500):
        round_trip({"t": torch.zeros(length)})
    assert plan_to_send.cache_info().currsize <= 128
    assert plan_to_receive.cache_info().currsize <= 128


def test_plain_values_need_no_torch():
    code = (
        "import sys\n"
        "from zpptool.wire.message.tensors import pack, unpack\n"
        "packed = pack({'step': 3})\n"
        "assert unpack(packed.header, packed.frames) == {'step': 3}\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
