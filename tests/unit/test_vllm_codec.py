# SPDX-License-Identifier: Apache-2.0
"""vLLM's control objects are decoded as they were encoded, and objects of any other class are refused."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Callable
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

import numpy as np  # noqa: E402
import torch  # noqa: E402
from vllm.lora.request import LoRARequest  # noqa: E402
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams  # noqa: E402
from vllm.v1.core.sched.output import CachedRequestData, GrammarOutput, NewRequestData, SchedulerOutput  # noqa: E402
from vllm.v1.kv_cache_interface import (  # noqa: E402
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
    MambaSpec,
    SlidingWindowSpec,
)
from vllm.v1.outputs import LogprobsLists, LogprobsTensors, ModelRunnerOutput  # noqa: E402
from vllm.v1.worker.worker_base import CompilationTimes  # noqa: E402

from zpptool.engines.vllm import codec  # noqa: E402
from zpptool.errors import ZppError  # noqa: E402


def scheduler_output(**changes: object) -> SchedulerOutput:
    sampling = SamplingParams(
        temperature=0.7,
        seed=3,
        stop=["\n"],
        logit_bias={5: 1.5},
        n=2,
        structured_outputs=StructuredOutputsParams(json={"type": "object"}),
        output_kind=RequestOutputKind.DELTA,
    )
    new = NewRequestData("new", [1, 2, 3], [], sampling, None, ([1, 2], [3]), 0, LoRARequest("a", 1, "/lora"))
    old = CachedRequestData(["old"], {"old"}, [[7]], {"old": [1, 7]}, [([4],)], [9], [1])
    fields = {
        "scheduled_new_reqs": [new],
        "scheduled_cached_reqs": old,
        "num_scheduled_tokens": {"new": 3, "old": 1},
        "total_num_scheduled_tokens": 4,
        "scheduled_spec_decode_tokens": {},
        "scheduled_encoder_inputs": {},
        "finished_req_ids": {"finished"},
        "free_encoder_mm_hashes": [],
    }
    return SchedulerOutput(**{**fields, **changes})


def round_trip(value: object) -> object:
    return codec.decode(codec.encode(value))


def test_a_scheduler_output_is_unchanged() -> None:
    sent = scheduler_output()
    assert round_trip(sent) == sent


@pytest.mark.parametrize(
    "spec",
    [
        FullAttentionSpec(block_size=16, num_kv_heads=3, head_size=64, dtype=torch.bfloat16),
        SlidingWindowSpec(block_size=32, num_kv_heads=1, head_size=8, dtype=torch.float16, sliding_window=128),
        MambaSpec(block_size=16, shapes=((2, 3), (4,)), dtypes=(torch.float32, torch.bfloat16)),
    ],
)
def test_a_kv_cache_configuration_is_unchanged(spec: object) -> None:
    tensor = KVCacheTensor(size=4096, layers=["a", "b"], layer_stride=1, block_stride=2)
    sent = KVCacheConfig(num_blocks=7, kv_cache_tensors=[tensor], kv_cache_groups=[KVCacheGroupSpec(["a", "b"], spec)])
    assert round_trip([sent, {"layer": spec}]) == [sent, {"layer": spec}]


def test_an_output_with_logprobs_is_unchanged() -> None:
    lists = LogprobsLists(np.array([[3, 4]], np.int32), np.array([[-0.5, -np.inf]], np.float32), np.array([1]))
    tensors = LogprobsTensors(torch.tensor([[1]]), torch.tensor([[-0.25]]), torch.tensor([2]))
    sent = ModelRunnerOutput(["a"], {"a": 0}, [[3]], lists, {"a": tensors, "b": None}, pooler_output=[torch.ones(2, 3)])
    got = round_trip(sent)
    assert isinstance(got, ModelRunnerOutput)
    assert (got.req_ids, got.req_id_to_index, got.sampled_token_ids) == (["a"], {"a": 0}, [[3]])
    assert got.logprobs is not None
    for ours, theirs in zip(lists[:3], got.logprobs[:3], strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    assert got.prompt_logprobs_dict["b"] is None
    assert torch.equal(got.prompt_logprobs_dict["a"].logprobs, tensors.logprobs)
    assert torch.equal(got.pooler_output[0], torch.ones(2, 3))


def test_a_grammar_and_compilation_times_are_unchanged() -> None:
    grammar = GrammarOutput(["a"], np.arange(6, dtype=np.int32).reshape(2, 3))
    got = round_trip(grammar)
    np.testing.assert_array_equal(got.grammar_bitmask, grammar.grammar_bitmask)
    assert round_trip([CompilationTimes(1.5, 0.0)]) == [CompilationTimes(1.5, 0.0)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.int64])
def test_tensors_of_any_dtype_keep_their_bits(dtype: torch.dtype) -> None:
    sent = torch.arange(6).reshape(2, 3).to(dtype)
    got = round_trip({"t": sent})["t"]
    assert got.dtype is dtype
    assert torch.equal(got.view(torch.uint8), sent.view(torch.uint8))
    assert round_trip(torch.empty(0, 4, dtype=dtype)).shape == (0, 4)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(0, 99), inner)
        | st.sets(st.integers(0, 9) | st.text())
    ),
    max_leaves=20,
)


@given(plain)
def test_nested_plain_values_keep_their_types(value: object) -> None:
    got = round_trip(value)
    assert got == value
    assert type(got) is type(value)


def test_what_is_not_carried_is_refused_by_the_name_of_its_field() -> None:
    with pytest.raises(ZppError, match=r"SchedulerOutput\.kv_connector_metadata holds a builtins\.object"):
        codec.encode([scheduler_output(kv_connector_metadata=object())])


def test_bytes_that_name_a_class_that_is_not_carried_build_nothing() -> None:
    foreign = msgspec.msgpack.encode(
        msgspec.msgpack.Ext(codec._OBJECT, msgspec.msgpack.encode(["Popen", {"args": "true"}]))
    )
    with pytest.raises(ZppError, match="'Popen'"):
        codec.decode(foreign)


def test_a_field_that_this_vllm_does_not_have_is_refused() -> None:
    foreign = msgspec.msgpack.encode(
        msgspec.msgpack.Ext(codec._OBJECT, msgspec.msgpack.encode(["GrammarOutput", {"surprise": 1}]))
    )
    with pytest.raises(ZppError, match="no field surprise"):
        codec.decode(foreign)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_refusal(data: bytes) -> None:
    with suppress(ZppError):
        codec.decode(data)


def extension(code: int, value: object) -> bytes:
    return msgspec.msgpack.encode(msgspec.msgpack.Ext(code, msgspec.msgpack.encode(value)))


HOSTILE = {
    "a tensor whose bytes are a number": extension(4, ["uint8", [1 << 40], 1 << 40]),
    "an array whose bytes are a number": extension(3, ["<u1", [1 << 40], 1 << 40]),
    "a fraction of a billion digits": extension(8, ["1e1000000000"]),
    "a fraction with text": extension(8, ["1", 2]),
    "a negative dimension": extension(4, ["uint8", [-1], b"1234"]),
    "an empty shape with huge dimensions": extension(4, ["uint8", [0, 1 << 62, 1 << 62], b""]),
    "the largest dimension": extension(3, ["<u1", [(1 << 64) - 1], b""]),
    "too many dimensions": extension(4, ["uint8", [1] * 1000, b"1"]),
    "an array of objects": extension(3, ["|O", [1], bytes(8)]),
    "an array of a made-up dtype": extension(3, [[["a", "|O"]], [1], bytes(8)]),
    "a dtype that is none": extension(4, ["nn", [1], b"1"]),
    "a dtype without a name": extension(5, ["uint8"]),
    "a tuple of text": extension(1, "abc"),
    "a set of lists": extension(2, [[1]]),
    "an enum that is none": extension(7, ["SamplingParams", "n"]),
    "an object of an enum": extension(6, ["RequestOutputKind", {}]),
    "an object with nameless fields": extension(6, ["LoRARequest", {1: 2}]),
    "an object of a class without a name": extension(6, [["LoRARequest"], {}]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_extensions_are_refused_before_anything_is_allocated(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ZppError):
            codec.decode(HOSTILE[name])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("holder", [lambda n: n, lambda n: {"n": (n,)}], ids=["plain", "in an extension"])
@pytest.mark.parametrize("number", [2**64, -(2**63) - 1])
def test_an_integer_that_msgpack_cannot_encode_is_refused(holder: Callable[[int], object], number: int) -> None:
    with pytest.raises(ZppError, match="more than 64 bits"):
        codec.encode(holder(number))
    assert codec.decode(codec.encode(holder(2**64 - 1))) == holder(2**64 - 1)


@pytest.mark.parametrize(
    ("code", "content"),
    [
        (codec._OBJECT, ["GrammarOutput", ["no", "map"]]),
        (codec._OBJECT, ["SamplingParams", {"temperature": "warm"}]),
        (codec._OBJECT, ["SamplingType", {}]),
        (codec._ENUM, ["SamplingParams", "GREEDY"]),
        (codec._TENSOR, ["float32", [2**64 - 1], b"abcd"]),
        (codec._TENSOR, ["_dynamo", [1], b"abcd"]),
        (codec._TENSOR, [["float32"], [1], b"abcd"]),
        (codec._ARRAY, ["|O", [1], b"abcdefgh"]),
        (codec._ARRAY, ["<f4", [1 << 62], b"abcd"]),
        (codec._FRACTION, [1, 0]),
        (codec._SET, [[1], [2]]),
        (99, None),
    ],
)
def test_what_cannot_be_built_is_refused_with_a_zpp_error(code: int, content: object) -> None:
    with pytest.raises(ZppError):
        codec.decode(msgspec.msgpack.encode(msgspec.msgpack.Ext(code, msgspec.msgpack.encode(content))))


def test_very_deep_nesting_is_refused() -> None:
    data = msgspec.msgpack.encode(1)
    for _depth in range(5000):
        data = msgspec.msgpack.encode(msgspec.msgpack.Ext(codec._TUPLE, msgspec.msgpack.encode([1])[:1] + data))
    with pytest.raises(ZppError):
        codec.decode(data)


@dataclasses.dataclass
class Later:
    """A control object of a later vLLM: one field is old, two are new and of an unknown class."""

    old: int
    new: object = None
    made: list[object] = dataclasses.field(default_factory=list)


def test_a_new_field_of_a_later_vllm_is_accepted_while_it_has_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(codec._CARRIED, "Later", Later)
    monkeypatch.setitem(codec._SHAPES, Later, codec._shape_of(Later))
    assert round_trip(Later(3)) == Later(3)
    assert round_trip(Later(3, new={"plain": [1]})) == Later(3, new={"plain": [1]})
    with pytest.raises(ZppError, match=r"Later\.new holds a builtins\.object"):
        codec.encode(Later(3, new=object()))
    with pytest.raises(ZppError, match=r"Later\.made holds a builtins\.object"):
        codec.encode(Later(3, made=[object()]))
