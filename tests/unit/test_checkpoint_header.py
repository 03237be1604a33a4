# SPDX-License-Identifier: Apache-2.0
"""Headers of safetensors files: read as safetensors reads them, and refused if they are wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import write_raw, write_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from zpptool.checkpoint.header import (
    DTYPE_BITS,
    MAX_HEADER_BYTES,
    HeaderFault,
    TensorInfo,
    _parse_fast,
    _parse_with_diagnosis,
    read_header,
    write_header,
)
from zpptool.errors import ExitCode, ZppError

TWO = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}
NEXT = {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}


def refusal(path: Path) -> str:
    with pytest.raises(ZppError) as caught:
        read_header(path)
    assert caught.value.exit_code == ExitCode.INVALID
    return caught.value.message


def test_a_header_locates_each_tensor(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"b": ("BF16", (2, 3)), "a": ("F32", ()), "none": ("I64", (0, 4))}, {"format": "pt"})
    header = read_header(path)
    assert header.metadata == {"format": "pt"}
    assert [(t.name, t.dtype, t.shape, t.nbytes) for t in header.tensors] == [
        ("b", "BF16", (2, 3), 12), ("a", "F32", (), 4), ("none", "I64", (0, 4), 0),
    ]  # fmt: skip
    assert header.tensors[0].offset == header.header_bytes
    assert header.tensors[1].offset + 4 == header.file_bytes == path.stat().st_size


@pytest.mark.parametrize(
    ("header", "body", "text"),
    [
        ({"a": TWO, "b": {**NEXT, "data_offsets": [3, 5]}}, b"12345", "tensor b leaves a gap"),
        ({"a": TWO, "b": {**NEXT, "data_offsets": [1, 3]}}, b"123", "tensor b overlaps"),
        ({"a": {**TWO, "data_offsets": [1, 3]}}, b"123", "tensor a leaves a gap"),
        ({"a": TWO, "b": NEXT}, b"12345", "longer than its header states"),
        ({"a": TWO, "b": NEXT}, b"123", "truncated"),
        ({"a": {**TWO, "shape": [3]}}, b"12", "does not fit the 2 bytes"),
        ({"a": {**TWO, "dtype": "BF16"}}, b"12", "does not fit the 2 bytes"),
        ({"a": {**TWO, "dtype": "F4", "shape": [3]}}, b"12", "does not fit the 2 bytes"),
        ({"a": {**TWO, "dtype": "X9"}}, b"12", "dtype X9"),
        ({"a": {**TWO, "dtype": ["U8"]}}, b"12", "dtype"),
        ({"a": {**TWO, "shape": [-2]}}, b"12", "no usable shape"),
        ({"a": {**TWO, "shape": [2.0]}}, b"12", "no usable shape"),
        ({"a": {**TWO, "shape": [True, 2]}}, b"12", "no usable shape"),
        ({"a": {**TWO, "shape": [2, *[1] * 100]}}, b"12", "no usable shape"),
        ({"a": {**TWO, "shape": [1 << 70]}}, b"12", "no usable shape"),
        ({"a": {**TWO, "data_offsets": [2, 0]}}, b"12", "does not fit"),
        ({"a": {**TWO, "data_offsets": [0]}}, b"12", "no usable data_offsets"),
        ({"a": [1]}, b"12", "not an object"),
        ({"__metadata__": {"a": 1}, "a": TWO}, b"12", "__metadata__"),
        (b"[]", b"", "not a JSON object"),
        (b"{", b"", "cannot be parsed as JSON"),
        (b"\xff{}", b"", "cannot be parsed as JSON"),
        (b"[" * 100_000, b"", "cannot be parsed as JSON"),
        (f'{{"a": {json.dumps(TWO)}, "a": {json.dumps(TWO)}}}'.encode(), b"12", "the name a occurs twice"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path: Path, header: Any, body: bytes, text: str) -> None:
    write_raw(tmp_path / "a.safetensors", header, body)
    message = refusal(tmp_path / "a.safetensors")
    assert text in message
    assert str(tmp_path / "a.safetensors") in message


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "truncated"),
        (b"1234567", "truncated"),
        ((1000).to_bytes(8, "little") + b"{}", "truncated"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little"), "more than the 100000000"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_a_file_that_is_not_one_is_refused(tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    assert text in refusal(tmp_path / "a.safetensors")


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    assert "is missing" in refusal(tmp_path / "none.safetensors")


KINDS = st.dictionaries(
    st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(sorted(DTYPE_BITS)), st.lists(st.integers(0, 3).map(lambda n: 4 * n), max_size=3)),
    min_size=1,
    max_size=8,
)


@settings(deadline=None)
@given(KINDS, st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
def test_what_is_written_reads_the_same_here_and_in_safetensors(
    tmp_path_factory: pytest.TempPathFactory, kinds: dict[str, tuple[str, list[int]]], metadata: dict[str, str]
) -> None:
    safetensors = pytest.importorskip("safetensors")
    path = tmp_path_factory.mktemp("header") / "a.safetensors"
    infos = []
    for name, (dtype, shape) in kinds.items():
        count = 1
        for size in shape:
            count *= size
        # A single element of less than a byte has no whole byte.
        count, shape = (count, shape) if count * DTYPE_BITS[dtype] % 8 == 0 else (8, [8])
        infos.append(TensorInfo(name, dtype, tuple(shape), path, 0, count * DTYPE_BITS[dtype] // 8))
    head = write_header(infos, metadata)
    assert len(head) % 8 == 0
    path.write_bytes(head + bytes(sum(info.nbytes for info in infos)))
    header = read_header(path)
    wanted = {(info.name, info.dtype, info.shape, info.nbytes) for info in infos}
    assert {(tensor.name, tensor.dtype, tensor.shape, tensor.nbytes) for tensor in header.tensors} == wanted
    assert header.metadata == metadata
    with safetensors.safe_open(path, "np") as opened:
        assert set(opened.keys()) == set(kinds)
        assert (opened.metadata() or {}) == metadata


# The fast parser for valid headers must agree with the parser that diagnoses faults.

ENTRIES = st.fixed_dictionaries({
    "dtype": st.sampled_from(["BF16", "U8", "F4", "Q9", 3]),
    "shape": st.one_of(st.lists(st.integers(-1, 4), max_size=3), st.sampled_from([None, [1.0], [True], [2**63, 0]])),
    "data_offsets": st.one_of(st.lists(st.integers(-1, 16), max_size=3), st.sampled_from([None, [0, 1.5]])),
})  # fmt: skip
HEADERS = st.dictionaries(
    st.sampled_from(["a", "b", 'q"', "\\", "ü", "dtype", "shape", "data_offsets"]), ENTRIES, max_size=3
)
METADATA = st.sampled_from([None, {}, {"format": "pt"}, {"dtype": "x"}, {"a": 1}, [], "text"])


@given(entries=HEADERS, metadata=METADATA, ascii_only=st.booleans())
def test_the_fast_parser_agrees_with_the_diagnosing_one(entries: dict, metadata: object, ascii_only: bool) -> None:
    header = {**entries} if metadata is None else {"__metadata__": metadata, **entries}
    raw = json.dumps(header, ensure_ascii=ascii_only).encode()
    file = Path("a.safetensors")

    def read(reader: Callable) -> object:
        try:
            return reader(file, raw)
        except HeaderFault as fault:
            return str(fault)

    fast, diagnosed = read(_parse_fast), read(_parse_with_diagnosis)
    assert fast is None or fast == diagnosed


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"\\u0061":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b'{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}',
        b'{"__metadata__":{"a":"b","a":"c"},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b'{"__metadata__":{},"__metadata__":{},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
    ],
)
def test_a_name_that_occurs_twice_is_refused(tmp_path: Path, raw: bytes) -> None:
    write_raw(tmp_path / "a.safetensors", raw, b"1")
    assert "occurs twice" in refusal(tmp_path / "a.safetensors")


def test_a_special_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.safetensors")
    assert "is not a file" in refusal(tmp_path / "a.safetensors")


def test_a_deep_header_is_refused(tmp_path: Path) -> None:
    write_raw(tmp_path / "a.safetensors", b'{"a":' * 200_000 + b"1" + b"}" * 200_000)
    assert "cannot be parsed as JSON" in refusal(tmp_path / "a.safetensors")


@pytest.mark.parametrize("where", ["name", "metadata"])
def test_an_unpaired_surrogate_is_refused(tmp_path: Path, where: str) -> None:
    name, value = ("a\ud800", "b") if where == "name" else ("a", "b\ud800")
    entry = {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}
    write_raw(tmp_path / "a.safetensors", {"__metadata__": {"key": value}, name: entry}, bytes(8))
    assert "cannot be parsed as JSON" in refusal(tmp_path / "a.safetensors")


def test_the_fault_names_its_tensor(tmp_path: Path) -> None:
    for begin in (4, 12):
        entries = {
            "first": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]},
            "second": {"dtype": "U8", "shape": [8], "data_offsets": [begin, begin + 8]},
        }
        write_raw(tmp_path / "a.safetensors", entries, bytes(begin + 8))
        with pytest.raises(HeaderFault) as caught:
            read_header(tmp_path / "a.safetensors")
        assert caught.value.tensor == "second"
