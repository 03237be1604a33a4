# SPDX-License-Identifier: Apache-2.0
"""The engine's arguments that zpptool reads, and those that it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from zpptool.config.engine_arguments import (
    DECIDED,
    REQUEST_IDS,
    allowed_origins,
    expanded_arguments,
    has_flag,
    has_option,
    names_option,
    refuse_decided,
)
from zpptool.config.engine_kind import Engine
from zpptool.errors import ExitCode, ZppError

FILE = """\
allowed-origins: '["https://app.example.com"]'
enable-request-id-headers: true
enforce-eager: false
middleware: [one, two]
seed: 7
compilation-config: {mode: 0}
"""
FROM_FILE = (
    "--allowed-origins", '["https://app.example.com"]', "--enable-request-id-headers", "--no-enforce-eager",
    "--middleware", "one", "two", "--seed", "7", "--compilation-config", '{"mode": 0}',
)  # fmt: skip


def test_flags_are_found_however_they_are_spelled() -> None:
    assert has_flag(["--enforce-eager", "--enable_request_id_headers"], REQUEST_IDS)
    assert not has_flag(["--enforce-eager"], REQUEST_IDS)
    assert not has_flag([REQUEST_IDS, "--no-enable-request-id-headers"], REQUEST_IDS)
    assert has_option(["--api_key=x"], "--api-key")


@pytest.mark.parametrize(
    ("arguments", "origins"),
    [
        ([], ()),
        (["--allowed-origins", '["*"]'], ("*",)),
        (['--allowed_origins=["http://a", "http://b"]', "--seed", "1"], ("http://a", "http://b")),
        (["--allowed-origins", '["*"]', "--allowed-origins", '["http://a"]'], ("http://a",)),
    ],
)
def test_allowed_origins_are_read_as_vllm_reads_them(arguments: list[str], origins: tuple[str, ...]) -> None:
    assert allowed_origins(arguments) == origins


@pytest.mark.parametrize("arguments", [["--allowed-origins", "*"], ["--allowed-origins"], ["--allowed-origins=[1]"]])
def test_other_values_are_refused(arguments: list[str]) -> None:
    with pytest.raises(ZppError, match="not a JSON list of origins") as refused:
        allowed_origins(arguments)
    assert refused.value.exit_code is ExitCode.USAGE


def test_vllms_own_config_file_is_read_before_the_arguments(tmp_path: Path) -> None:
    path = tmp_path / "vllm.yaml"
    path.write_text(FILE)
    given = ("--seed", "1", "--config", str(path), "--enforce-eager")
    expanded = expanded_arguments(Engine.VLLM, given)
    assert expanded == (*FROM_FILE, "--seed", "1", "--enforce-eager")
    assert allowed_origins(expanded) == ("https://app.example.com",)
    assert has_flag(expanded, REQUEST_IDS)
    assert expanded_arguments(Engine.TRANSFORMERS, given) == given


@pytest.mark.vllm
def test_vllm_reads_its_config_file_in_the_same_way(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    from zpptool.engines.vllm.compat.arguments import serve_parser

    path = tmp_path / "vllm.yaml"
    path.write_text(FILE)
    assert tuple(serve_parser().load_config_file(str(path))) == FROM_FILE  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--config"], ExitCode.USAGE, "one file"),
        (["--config", "a.yaml", "--config", "b.yaml"], ExitCode.USAGE, "one file"),
        (["--config=a.yaml"], ExitCode.USAGE, "ignores"),
        (["--config", "a.json"], ExitCode.INVALID, "a.json"),
        (["--config", "absent.yaml"], ExitCode.INVALID, "absent.yaml"),
        (["--config", "/dev/null"], ExitCode.INVALID, "/dev/null"),
    ],
)
def test_a_config_file_that_vllm_does_not_read_is_refused(arguments: list[str], code: ExitCode, words: str) -> None:
    with pytest.raises(ZppError, match=words) as refused:
        expanded_arguments(Engine.VLLM, arguments)
    assert refused.value.exit_code is code


@pytest.mark.parametrize(
    "argument",
    [*DECIDED, "--pipeline_parallel_size=3", "-pp=3", "--pipeline-parallel", "--distributed_executor_backend=ray"],
)
def test_what_zpptool_decides_is_refused_by_name(argument: str) -> None:
    with pytest.raises(ZppError) as refused:
        refuse_decided(["--enforce-eager", argument, "3"])
    assert argument.partition("=")[0].replace("_", "-") in refused.value.message
    assert refused.value.exit_code is ExitCode.USAGE


def test_other_options_with_similar_names_are_taken() -> None:
    refuse_decided(["--model-impl", "vllm", "--prefix-caching-hash-algo", "sha256", "-tp", "1", "--max-model-len", "9"])
    assert not names_option("--", "--model")
    assert not names_option("--api-key-file", "--api-key")
