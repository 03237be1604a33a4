# SPDX-License-Identifier: Apache-2.0
"""The files of measured numbers: what is written is read back, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from zpptool.errors import ExitCode, ZppError
from zpptool.planner.device_profile import LinksFile, Source, read_links, read_profile

PROFILE = """\
zpptool-profile: 1
device: a100-80g
engine: vllm
model: {name: org/name, digest: abc, dtype: bfloat16}
layer_types: [attention, mamba]
layers:
  attention:
    prefill: [{tokens: 512, sequences: 1, context: 0, seconds: 0.0012, source: measured, at: 2026-11-30T10:00:00}]
    decode: [{tokens: 8, sequences: 8, context: 256, seconds: 0.0004, source: given, stable: false}]
  mamba:
    decode: [{tokens: 8, sequences: 8, seconds: 0.0002, source: spec}]
lm_head: {decode: [{tokens: 8, sequences: 8, seconds: 0.001, source: measured}]}
workspace: [{max_num_batched_tokens: 512, bytes: 123}]
load: {bytes_per_second: 1e9, source: measured}
kv: {bytes_per_token: {attention: 1024}, bytes_per_sequence: {mamba: 4096}, block_size: 16, page_bytes: 16384}
"""
LINKS = """\
zpptool-links: 1
links:
- {from: a, to: b, round_trip_seconds: 0.001, rates: [{bytes: 1024, bytes_per_second: 1e8}], source: measured}
"""


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_profile_is_read_and_written_back(tmp_path: Path) -> None:
    profile = read_profile(written(tmp_path / "a.yaml", PROFILE))
    assert profile.layers["attention"].prefill[0].seconds == 0.0012
    assert profile.layers["attention"].decode[0].source is Source.GIVEN
    assert not profile.layers["attention"].decode[0].stable
    assert profile.kv is not None
    assert profile.kv.bytes_per_sequence == {"mamba": 4096}
    assert read_profile(written(tmp_path / "b.yaml", profile.to_yaml())) == profile


def test_links_are_read_and_written_back(tmp_path: Path) -> None:
    links = read_links(written(tmp_path / "a.yaml", LINKS))
    assert (links[0].origin, links[0].target, links[0].rates[0].bytes_per_second) == ("a", "b", 1e8)
    assert read_links(written(tmp_path / "b.yaml", LinksFile(version=1, links=links).to_yaml())) == links


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("zpptool-profile: 1", "zpptool-profile: 2", "version 2"),
        ("device: a100-80g", "", "device"),
        ("seconds: 0.0012", "seconds: -1", "seconds"),
        ("source: measured", "source: guessed", "guessed"),
        ("[attention, mamba]", "[attention, moe]", "'moe'"),
        ("workspace:", "workspaces:", "workspaces"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, named: str) -> None:
    with pytest.raises(ZppError) as refused:
        read_profile(written(tmp_path / "a.yaml", PROFILE.replace(old, new)))
    assert named in refused.value.message
    assert refused.value.exit_code is ExitCode.INVALID
