# SPDX-License-Identifier: Apache-2.0
"""Constructor arguments reach stages as command-line arguments, or are refused by name."""

from __future__ import annotations

import argparse
import enum
from pathlib import Path
from typing import Any

import pytest

from zpptool.config.stage_links import head_endpoint
from zpptool.engines.vllm.offline.engine_args import command_line
from zpptool.errors import ExitCode, ZppError


class Kind(enum.Enum):
    FAST = "fast"


def parser() -> argparse.ArgumentParser:
    """The kinds of flags that vLLM has."""
    made = argparse.ArgumentParser(exit_on_error=False)
    made.add_argument("model_tag", nargs="?")
    made.add_argument("--max-model-len", type=int)
    made.add_argument("--enforce-eager", action=argparse.BooleanOptionalAction)
    made.add_argument("--trust-remote-code", action="store_true")
    made.add_argument("--hf-overrides")
    made.add_argument("--middle", nargs="*")
    made.add_argument("--kind", dest="kind")
    return made


@pytest.mark.parametrize(
    ("given", "arguments"),
    [
        ({"max_model_len": 7}, ("--max-model-len", "7")),
        ({"enforce_eager": True}, ("--enforce-eager",)),
        ({"enforce_eager": False}, ("--no-enforce-eager",)),
        ({"trust_remote_code": True}, ("--trust-remote-code",)),
        ({"trust_remote_code": False}, ()),
        ({"hf_overrides": {"a": [1, None]}}, ("--hf-overrides", '{"a": [1, null]}')),
        ({"middle": ["a", Path("b")]}, ("--middle", "a", "b")),
        ({"kind": Kind.FAST}, ("--kind", "fast")),
        ({"max_model_len": None, "chat_template": "x"}, ()),
    ],
)
def test_an_argument_is_converted(given: dict[str, Any], arguments: tuple[str, ...]) -> None:
    assert command_line(given, parser()._actions) == arguments
    parser().parse_args(list(arguments))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pipeline_parallel_size": 2}, "does not take pipeline_parallel_size"),
        ({"no_such": 1}, "no engine argument no_such"),
        ({"hf_overrides": lambda config: config}, "hf_overrides is a function"),
        ({"hf_overrides": {"f": object()}}, "hf_overrides cannot be passed"),
        ({"model_tag": "x"}, "model_tag cannot be passed to a stage"),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ZppError, match=message) as fault:
        command_line(given, parser()._actions)
    assert fault.value.exit_code is ExitCode.USAGE


def test_the_head_of_headless_stages_is_at_the_port_after_the_return_port() -> None:
    assert head_endpoint("tcp://10.0.0.3:15553") == "tcp://127.0.0.1:15554"
    assert head_endpoint("ipc:///run/return", "10.0.0.1:9000") == "tcp://10.0.0.1:9000"
    for link in ("ipc:///run/return", "tcp://127.0.0.1:65535"):
        with pytest.raises(ZppError, match="--head-addr") as fault:
            raise_with_hint(link)
        assert fault.value.exit_code is ExitCode.ADDRESS


def raise_with_hint(link: str) -> None:
    """Call `head_endpoint`, with the hint added to the message of its error."""
    try:
        head_endpoint(link)
    except ZppError as fault:
        raise ZppError(f"{fault.message} {fault.hint}", exit_code=fault.exit_code) from fault
