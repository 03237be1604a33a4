# SPDX-License-Identifier: Apache-2.0
"""Real profiles on vLLM: a tiny model with windows on some layers, and the 135M model twice."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zpptool.planner.device_profile import DeviceProfile, Source, TimeGrid, TimeSample, read_profile
from zpptool.profiling.agreement import agree

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
GUARD_S = 500.0


def profiled(zpptool: Callable, model: Path, file: Path, *words: str) -> DeviceProfile:
    """The profile that the command writes."""
    ran = zpptool("profile", model, "--engine", "vllm", "-o", file, *words, timeout_s=GUARD_S)
    assert ran.code == 0, ran.err
    return read_profile(file)


def grids(profile: DeviceProfile) -> Iterator[tuple[str, TimeGrid]]:
    """All grids by name."""
    yield from profile.layers.items()
    yield from (("step", profile.step), ("embedding", profile.embedding), ("lm_head", profile.lm_head))
    yield "sampler", profile.sampler


def samples(profile: DeviceProfile) -> dict[tuple[str, str, int, int, int], TimeSample]:
    """All times, by what they are of."""
    return {
        (name, phase, sample.tokens, sample.sequences, sample.context): sample
        for name, grid in grids(profile)
        for phase, own in (("prefill", grid.prefill), ("decode", grid.decode))
        for sample in own
    }


def test_a_tiny_model_of_two_types_of_layers(
    zpptool: Callable, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    kinds = ("sliding_attention", "full_attention") * 3
    model = tiny_model("gemma3_text", layers=6, layer_types=kinds, sliding_window=8, head_dim=32)
    profile = profiled(zpptool, model, tmp_path / "tiny.yaml", "--seconds", "5", "--", "--enforce-eager")
    assert profile.layer_types == ("sliding_attention", "attention") * 3
    for name, grid in grids(profile):
        assert grid.prefill, name
        assert grid.decode, name
    assert all(sample.source is Source.MEASURED for sample in samples(profile).values())
    assert profile.workspace[-1].max_num_batched_tokens == 2048
    assert profile.workspace[0].bytes <= profile.workspace[-1].bytes * 1.2
    assert profile.kv is not None
    assert profile.kv.layout is not None
    assert sum(len(group.layers) for group in profile.kv.layout.groups) == 6
    assert profile.kv.tokens_at_most == {"sliding_attention": 8}
    assert profile.kv.layout.rank_factors[2] == 2


def test_two_profiles_of_the_real_model_agree_where_they_say_so(
    zpptool: Callable, real_model: Path, tmp_path: Path
) -> None:
    """Numbers that are stable in both profiles agree within twice the tolerance; nine in ten within it."""
    words = ("--seconds", "60", "--", "--enforce-eager")
    first, second = (samples(profiled(zpptool, real_model, tmp_path / f"{number}.yaml", *words)) for number in (1, 2))
    assert first.keys() == second.keys()
    both = [(first[key].seconds, second[key].seconds) for key in first if first[key].stable and second[key].stable]
    assert all(agree(*pair, tolerance=0.1) for pair in both)
    assert sum(agree(*pair) for pair in both) >= 0.9 * len(both)
