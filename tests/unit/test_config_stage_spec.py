# SPDX-License-Identifier: Apache-2.0
"""A stage's spec is read back from a command line unchanged, and anything else is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zpptool.config.engine_kind import Engine
from zpptool.config.runtime_options import RuntimeOptions
from zpptool.config.stage_spec import StageSpec, spec_from_argv
from zpptool.errors import ExitCode, ZppError
from zpptool.partition import LayerRange
from zpptool.wire.compression.adaptive import WireCodec

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
seconds = st.floats(0, 1e6, allow_nan=False)


@st.composite
def specs(draw: st.DrawFn) -> StageSpec:
    cuts = sorted(draw(st.sets(st.integers(1, 40), min_size=1, max_size=5)))
    partition = tuple(zip([0, *cuts[:-1]], cuts, strict=True))
    return StageSpec(
        draw(st.sampled_from(Engine)), draw(text), partition, draw(st.integers(0, len(partition) - 1)),
        bind=draw(text), connect=draw(text), local=draw(text), dtype=draw(text),
        api_host=draw(text), api_port=draw(st.integers(1, 65535)), engine_args=tuple(draw(st.lists(text, max_size=3))),
        runtime=RuntimeOptions(
            device=draw(text), start_timeout_s=draw(seconds), step_timeout_s=draw(seconds),
            beat_timeout_s=draw(seconds), recovery_deadline_s=draw(seconds), trace=draw(text), keys=draw(text),
            insecure=draw(st.booleans()), wire_codec=draw(st.sampled_from(WireCodec)),
        ),
    )  # fmt: skip


@given(specs())
def test_a_spec_is_read_back_unchanged(spec: StageSpec) -> None:
    assert spec_from_argv(["worker", spec.to_json()]) == spec


def test_a_spec_has_its_place_and_its_layers() -> None:
    first, last = (StageSpec(Engine.VLLM, "/m", ((0, 3), (3, 4)), stage, "b", "c") for stage in range(2))
    assert (first.num_stages, first.num_layers, first.directory) == (2, 4, Path("/m"))
    assert (first.is_first, first.is_last, first.layers) == (True, False, LayerRange(0, 3))
    assert (last.is_first, last.is_last, last.layers) == (False, True, LayerRange(3, 4))
    assert last.ranges == (LayerRange(0, 3), LayerRange(3, 4))


@given(specs())
def test_the_properties_are_those_of_the_runtime_options(spec: StageSpec) -> None:
    for name in RuntimeOptions.__struct_fields__:
        assert getattr(spec, name) == getattr(spec.runtime, name)
    changed = spec.with_runtime(step_timeout_s=1.5)
    assert changed.step_timeout_s == 1.5
    assert changed.with_runtime(step_timeout_s=spec.step_timeout_s) == spec


GOOD = json.loads(StageSpec(Engine.VLLM, "/m", ((0, 3),), 0, "b", "c").to_json())


@pytest.mark.parametrize(
    "argv",
    [
        ["worker"],
        ["worker", ""],
        ["worker", "[]"],
        ["worker", "\udcff"],
        ["worker", "[" * 100_000],
        ["worker", json.dumps({**GOOD, "engine": "other"})],
        ["worker", json.dumps({**GOOD, "stage": "0"})],
        ["worker", json.dumps({**GOOD, "unknown": 1})],
        ["worker", json.dumps({**GOOD, "step_timeout_s": 1.0})],
        ["worker", json.dumps({**GOOD, "runtime": {"unknown": 1}})],
        ["worker", json.dumps({name: value for name, value in GOOD.items() if name != "bind"})],
    ],
    ids=["none", "empty", "list", "not text", "nested", "engine", "type", "unknown", "moved", "runtime", "missing"],
)
def test_anything_else_is_refused_with_what_to_do(argv: list[str]) -> None:
    with pytest.raises(ZppError, match="started by zpptool") as refused:
        spec_from_argv(argv)
    assert refused.value.exit_code is ExitCode.USAGE
    assert "zpptool run-stage" in (refused.value.hint or "")


def test_a_name_that_is_not_utf8_is_refused_by_name() -> None:
    spec = StageSpec(Engine.VLLM, "/models/\udcff", ((0, 3),), 0, "b", "c")
    with pytest.raises(ZppError, match=r"/models/.*udcff.* is not UTF-8") as refused:
        spec.to_json()
    assert refused.value.exit_code is ExitCode.USAGE
