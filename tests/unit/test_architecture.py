# SPDX-License-Identifier: Apache-2.0
"""docs/architecture.md describes the packages that there are, on the floors that import-linter enforces."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "zpptool"
PAGE = ROOT / "docs/architecture.md"
PAGES = [*ROOT.glob("docs/**/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
_ROW = re.compile(r"^\| (\d+) \| ([^|]+) \|", re.MULTILINE)
_MODULE = re.compile(r"`((?:zpptool/)?[a-z_]+(?:/[a-z_]+)*/[a-z_]+\.py)`")


def floors_of_the_page() -> dict[str, int]:
    """Each package or module of the table, and its floor."""
    return {
        name.strip("/").removesuffix(".py"): int(floor)
        for floor, names in _ROW.findall(PAGE.read_text())
        for name in re.findall(r"`([^`]+)`", names)
    }


def floors_of_the_contract() -> dict[str, int]:
    """Likewise, as import-linter has it."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return {
        name: len(layers) - number for number, layer in enumerate(layers) for name in re.split(r"\s*[|:]\s*", layer)
    }


def test_the_floors_of_the_page_are_those_that_are_enforced() -> None:
    assert floors_of_the_page() == floors_of_the_contract()


def test_every_package_is_on_the_page() -> None:
    packages = {str(path.parent.relative_to(PACKAGE)) for path in PACKAGE.rglob("__init__.py")} - {"."}
    named = set(re.findall(r"`([a-z_/]+)/`", PAGE.read_text()))
    short = {name.rpartition("/")[2] for name in named}
    assert {name for name in packages if name not in named and name.rpartition("/")[2] not in short} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_module_that_a_page_names_exists(page: Path) -> None:
    for name in _MODULE.findall(page.read_text()):
        candidates = (ROOT / name, PACKAGE / name, ROOT / "tests" / name)
        assert any(path.is_file() for path in candidates), f"{page.name} names {name}"


SOURCES = [path for folder in ("zpptool", "tests", "scripts", "benchmarks") for path in (ROOT / folder).rglob("*.py")]


def test_no_file_is_longer_than_400_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_no_class_has_more_than_20_attributes() -> None:
    def attributes(node: ast.ClassDef) -> set[str]:
        return {
            child.attr
            for child in ast.walk(node)
            if isinstance(child, ast.Attribute)
            and isinstance(child.ctx, ast.Store)
            and isinstance(child.value, ast.Name)
            and child.value.id == "self"
        }

    counts = {
        f"{path.relative_to(ROOT)}: {node.name}": len(attributes(node))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    assert {name: count for name, count in counts.items() if count > 20} == {}


def test_no_two_test_files_have_the_same_name() -> None:
    """pytest cannot collect both in one run, as `make test-long` does."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert [name for name in set(names) if names.count(name) > 1] == []
