# SPDX-License-Identifier: Apache-2.0
"""A batch's input: files, patterns, compressed files, standard input and URLs; duplicates are refused."""

from __future__ import annotations

import gzip
import io
import json
import random
from pathlib import Path

import pytest
import zstandard
from batches import request, write_input
from fronts import ReceivedRequest, ToyServer

from zpptool.batch.file_operations import FileOperations
from zpptool.batch.input_files import files_of, shown_input, spooled
from zpptool.batch.input_lines import InputLines
from zpptool.errors import ZppError

FILES = FileOperations()


def lines_of(*paths: Path) -> InputLines:
    return InputLines(paths, [path.name for path in paths])


def test_lines_are_numbered_over_all_files_and_empty_ones_have_none(tmp_path: Path) -> None:
    one, two = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    one.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"b": 2}')
    two.write_bytes(b'{"c": 3}\n')
    found = list(lines_of(one, two))
    assert [line.content for line in found] == [b'{"a": 1}', b'{"b": 2}', b'{"c": 3}']
    assert [line.number for line in found] == [1, 2, 3]
    assert [line.place for line in found] == ["a.jsonl, line 1", "a.jsonl, line 4", "b.jsonl, line 1"]
    whole = one.read_bytes() + two.read_bytes()
    for line in found[1:]:
        assert line.content is not None
        assert whole[line.offset :].startswith(line.content)


@pytest.mark.parametrize("kind", ["plain", "gzip", "zstd", "frames"])
def test_compression_is_recognised_by_content(tmp_path: Path, kind: str) -> None:
    plain = write_input(tmp_path / "plain", 50).read_bytes()
    half = len(plain) // 2
    compress = zstandard.ZstdCompressor().compress
    content = {
        "plain": plain,
        "gzip": gzip.compress(plain[:half]) + gzip.compress(plain[half:]),
        "zstd": compress(plain),
        "frames": compress(plain[:half]) + compress(plain[half:]),
    }[kind]
    path = tmp_path / "packed"
    path.write_bytes(content)
    assert [line.content for line in lines_of(path)] == plain.splitlines()
    facts = lines_of(path).check(tmp_path)
    assert (facts.lines, facts.nbytes) == (50, len(plain))
    assert facts.digest == lines_of(tmp_path / "plain").check(tmp_path).digest


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_a_compressed_file_that_is_cut_off_is_refused(tmp_path: Path, pack: object) -> None:
    noise = random.Random(0).randbytes(40_000).hex().encode()
    path = tmp_path / "packed"
    path.write_bytes(pack(noise)[:-2000])  # type: ignore[operator]
    with pytest.raises(ZppError, match=r"packed is damaged or cut off"):
        list(lines_of(path))


def test_a_line_that_is_too_long_is_skipped_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zpptool.batch.input_lines.MAX_LINE_BYTES", 100)
    path = tmp_path / "in"
    path.write_bytes(b"x" * 100 + b"\n" + b"y" * 101 + b"\n" + b"z" * 5000 + b"\nend\n")
    found = list(lines_of(path))
    assert [line.content for line in found] == [b"x" * 100, None, None, b"end"]
    assert path.read_bytes()[found[3].offset :] == b"end\n"


def test_duplicates_are_refused_with_both_lines(tmp_path: Path) -> None:
    one, two = write_input(tmp_path / "a.jsonl", 30), tmp_path / "b.jsonl"
    two.write_text("\n" + json.dumps({**request(1), "custom_id": "new"}) + "\n" + json.dumps(request(6)) + "\n")
    with pytest.raises(ZppError) as caught:
        lines_of(one, two).check(tmp_path)
    assert "a.jsonl, line 7 and b.jsonl, line 3 have the same custom_id 'request-6'" in caught.value.message


def test_lines_without_a_custom_id_are_no_duplicates(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"custom_id": ""}\n{"custom_id": ""}\n{}\n{}\nnot JSON\nnot JSON\n')
    assert lines_of(path).check(tmp_path).lines == 6


def test_a_pattern_names_files_in_order(tmp_path: Path) -> None:
    for name in ("b-2.jsonl", "b-1.jsonl", "c.jsonl"):
        (tmp_path / name).write_text("{}\n")
    assert [path.name for path in files_of(f"{tmp_path}/b-*.jsonl").paths] == ["b-1.jsonl", "b-2.jsonl"]
    odd = tmp_path / "odd[1].jsonl"
    odd.write_text("{}\n")
    assert files_of(str(odd)).paths == (odd,)
    for none in (f"{tmp_path}/d-*", f"{tmp_path}/absent"):
        with pytest.raises(ZppError, match="no such file"):
            files_of(none)


def test_a_directory_and_a_fifo_are_refused(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "fifo")
    for path, words in ((tmp_path, "a directory"), (tmp_path / "fifo", "a FIFO")):
        with pytest.raises(ZppError, match=words):
            list(lines_of(path))


def test_standard_input_is_copied_once_and_another_one_is_refused(tmp_path: Path) -> None:
    content = write_input(tmp_path / "in", 5).read_bytes()
    for again in (content, content, b""):
        found = spooled("-", tmp_path, FILES, io.BytesIO(again))
        assert [path.read_bytes() for path in found.paths] == [content]
    for other in (content[:-1], content + b"x", b"other"):
        with pytest.raises(ZppError, match="standard input is not what this run was begun with"):
            spooled("-", tmp_path, FILES, io.BytesIO(other))


def test_a_url_is_fetched_once(tmp_path: Path) -> None:
    content = write_input(tmp_path / "in", 5).read_bytes()

    async def give(received: ReceivedRequest, writer: object) -> None:
        status = b"200 OK" if received.path == "/a?signature=secret" else b"404 Not Found"
        head = b"HTTP/1.1 " + status + b"\r\ncontent-length: %d\r\n\r\n" % len(content)
        writer.write(head + content)  # type: ignore[attr-defined]

    server = ToyServer(give)
    try:
        with pytest.raises(ZppError, match="answers with 404"):
            spooled(f"{server.url}/b", tmp_path, FILES)
        for _ in range(2):
            found = spooled(f"{server.url}/a?signature=secret", tmp_path, FILES)
            assert found.paths[0].read_bytes() == content
        assert [each.path for each in server.received] == ["/b", "/a?signature=secret"]
    finally:
        server.close()
    assert shown_input("https://user:secret@host/a?signature=b") == "https://***@host/a"
    empty = tmp_path / "other"
    empty.mkdir()
    with pytest.raises(ZppError, match="cannot be read"):
        spooled(server.url, empty, FILES)
