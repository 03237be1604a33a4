# SPDX-License-Identifier: Apache-2.0
"""The flags that are read from vLLM's source are those of its parser, whose record was made by importing it."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from zpptool.config.engine_flags import RECORDS, recorded_flags

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from record_vllm_flags import flags_of, source_of_installation, source_of_wheel
from vllm_flags_of_source import ARGUMENTS, SERVE, Source, flags_of_source

ENGINE = """
import argparse
class EngineArgs:
    def add_cli_args(parser):
        kwargs = get_kwargs(CacheConfig)
        kwargs["listed"]["nargs"] = "*"
        del kwargs["plain_list"]["nargs"]
        group = parser.add_argument_group("x")
        group.add_argument("--switch", "-s", **kwargs["switch"])
        group.add_argument("--dict-of-one", **{**kwargs["switch"], "default": None})
        for name in ("listed", "plain_list"): pass
        group.add_argument("--listed", **kwargs["listed"])
        group.add_argument("--plain-list", **kwargs["plain_list"])
        group.add_argument("--choice", **kwargs["choice"])
        if True:
            one = get_kwargs(CacheConfig)["maybe"]
            group.add_argument("--maybe", **one)
        group.add_argument("--nested", **kwargs["nested"])
        group.add_argument("--stored", action="store_true")
        group.add_argument("positional")
"""
CONFIG = """
Kind = Literal["a", "b"]
class Inner: pass
class Base:
    switch: bool | None = None
class CacheConfig(Base):
    listed: list[str] = []
    plain_list: "tuple[int, ...] | None" = None
    choice: Kind | list[Kind] = "a"
    maybe: bool | str | None = None
    nested: Optional[Inner] = None
    shared: ClassVar[bool] = True
"""
FRONT = """
class BaseArgs:
    key: list[str] | None = None
    @classmethod
    def _customize_cli_kwargs(cls, frontend_kwargs):
        frontend_kwargs["key"]["action"] = "append"
        del frontend_kwargs["key"]["nargs"]
class FrontendArgs(BaseArgs):
    port: int = 8000
    quiet: bool = False
    @classmethod
    def _customize_cli_kwargs(cls, frontend_kwargs):
        frontend_kwargs["quiet"]["flags"] = ["-q"]
def make_arg_parser(parser):
    parser.add_argument("--headless", action="store_true")
"""
FILES = {ARGUMENTS: ENGINE, SERVE[0]: FRONT, "vllm/config/cache.py": CONFIG}


def test_kinds_follow_from_types_and_from_what_is_changed_afterwards() -> None:
    assert flags_of_source(Source(FILES.get, iter(FILES))) == {
        "--switch": "none", "--no-switch": "none", "-s": "none", "--dict-of-one": "none", "--no-dict-of-one": "none",
        "--listed": "many", "--plain-list": "one", "--choice": "one", "--maybe": "maybe", "--nested": "one",
        "--stored": "none", "--headless": "none", "--key": "one", "--port": "one", "--quiet": "none",
        "--no-quiet": "none", "-q": "none",
    }  # fmt: skip


def test_a_wheel_is_read_without_being_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "vllm-9.9.0+cpu-cp38-abi3-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in FILES.items():
            wheel.writestr(name, text)
    release, source = source_of_wheel(path)
    assert release == "9.9.0"
    assert flags_of(source)["--listed"] == "many"


def test_the_installed_release_has_the_flags_of_its_record() -> None:
    try:
        release, source = source_of_installation()
    except SystemExit:
        pytest.skip("vLLM is not installed")
    recorded = recorded_flags(release)
    assert recorded is not None
    assert flags_of(source) == {name: str(kind) for name, kind in sorted(recorded.items())}


def test_both_supported_releases_are_recorded() -> None:
    assert {path.stem for path in RECORDS.glob("*.json")} == {"0.32.0", "0.33.0"}
