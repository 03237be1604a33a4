# SPDX-License-Identifier: Apache-2.0
"""Engine arguments are checked against the recorded flags of vLLM, without vLLM."""

from __future__ import annotations

import pytest

from zpptool.config.engine_flags import (
    FlagKind,
    GivenFlag,
    check_engine_args,
    read_flags,
    recorded_flags,
    release_of,
)
from zpptool.config.engine_kind import Engine
from zpptool.config.unsupported_flags import UNSUPPORTED
from zpptool.config.vllm_releases import VLLM_VERSION
from zpptool.errors import ExitCode, ZppError

FLAGS = {
    "--max-model-len": FlagKind.ONE,
    "--enforce-eager": FlagKind.NONE,
    "--allowed-origins": FlagKind.MANY,
    "--compilation-config": FlagKind.ONE,
}


@pytest.fixture(autouse=True)
def supported_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpptool.config.engine_flags.release_here", lambda: VLLM_VERSION)


def test_the_supported_release_is_recorded() -> None:
    flags = recorded_flags(VLLM_VERSION)
    assert flags is not None
    assert flags["--max-model-len"] is FlagKind.ONE
    assert flags["--enforce-eager"] is FlagKind.NONE
    assert set(UNSUPPORTED) <= set(flags)
    assert recorded_flags("0.0.1") is None


def test_flags_are_read_as_vllm_reads_them() -> None:
    words = ["--max_model_len=4096", "--enforce-eager", "--allowed-origins", "a", "b", "--compilation-config.mode", "3"]
    assert read_flags(words, FLAGS) == [
        GivenFlag("--max-model-len", ("4096",)),
        GivenFlag("--enforce-eager", ()),
        GivenFlag("--allowed-origins", ("a", "b")),
        GivenFlag("--compilation-config", ("3",)),
    ]
    assert release_of("0.32.0+cpu") == "0.32.0"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-modle-len", "1"], "has no flag --max-modle-len"),
        (["--max-model-len"], "--max-model-len needs a value"),
        (["--enforce-eager", "yes"], "'yes' among the engine's arguments is neither a flag nor the value of one"),
        (["--speculative-config", '{"method": "ngram"}'], "--speculative-config does not work across stages"),
        (["--nnodes", "2"], "--nnodes does not work across stages"),
        (["--async-scheduling"], "--async-scheduling does not work across stages"),
    ],
)
def test_what_vllm_or_stages_refuse_is_refused_by_name(words: list[str], message: str) -> None:
    with pytest.raises(ZppError) as refused:
        check_engine_args(Engine.VLLM, words)
    assert message in refused.value.message
    assert refused.value.exit_code is ExitCode.USAGE


def test_a_misspelled_flag_gets_a_suggestion() -> None:
    with pytest.raises(ZppError) as refused:
        check_engine_args(Engine.VLLM, ["--max-modle-len", "1"])
    assert refused.value.hint == "Did you mean --max-model-len?"


@pytest.mark.parametrize(
    "words",
    [[], ["--nnodes", "1"], ["--kv-offloading-size", "0"], ["--no-enable-prefix-caching"], ["-O3"], ["-cc", "{}"]],
)
def test_what_both_accept_is_accepted(words: list[str]) -> None:
    check_engine_args(Engine.VLLM, words)


def test_the_embedded_engine_takes_none() -> None:
    check_engine_args(Engine.TRANSFORMERS, [])
    with pytest.raises(ZppError, match="takes no arguments of its own"):
        check_engine_args(Engine.TRANSFORMERS, ["--max-model-len", "1"])


def test_a_release_that_was_not_recorded_decides_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zpptool.config.engine_flags.release_here", lambda: "0.0.1")
    check_engine_args(Engine.VLLM, ["--a-flag-of-tomorrow"])
