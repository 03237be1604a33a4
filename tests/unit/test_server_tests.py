# SPDX-License-Identifier: Apache-2.0
"""`scripts/server_tests.py`: which of vLLM's tests are run, under which names, and the table of what came of them."""

from __future__ import annotations

import io
import sys
import tarfile
from collections import Counter, namedtuple
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

from page_part import replace_part
from servertests import selection, table
from servertests.groups import CAPACITY, GROUPS, HUB_NAMES, LEFT_OUT, MODEL_NAME, Group, Module
from servertests.results import Result, append, latest, read
from servertests.sides import EMBEDDED, STAGES, UNSPLIT, command
from servertests.source import prepare_tests

PAGE = ROOT / "docs/compatibility.md"


@pytest.mark.parametrize(
    ("fixtures", "source", "asks"),
    [
        (["client", "model_name"], "", True),
        (["server_with_store"], "", True),
        (["basic_server_with_lora"], "", True),
        (["request", "dtype"], "def test(): pass", False),
        (["default_server_args", "server_args"], "", False),
        ([], "with RemoteOpenAIServer(name, args) as server:", True),
    ],
)
def test_a_test_asks_a_server_by_its_fixtures_or_starts_one(fixtures: list[str], source: str, asks: bool) -> None:
    assert selection.uses_a_server(fixtures, source) is asks


def test_tests_come_in_the_order_of_the_modules_and_by_words_in_their_names() -> None:
    group = Group("g", (Module("b.py", without=("lora",)), Module("a.py", only=("one", "two"))))
    collected = ["a.py::one", "a.py::three", "a.py::two[x]", "b.py::plain", "b.py::plain[lora]", "c.py::one"]
    assert selection.of_group(group, collected) == ["b.py::plain", "a.py::one", "a.py::two[x]"]
    assert selection.of_group(group, collected, "two") == ["a.py::two[x]"]


def test_what_has_a_result_is_left_out_unless_its_outcome_is_to_be_tried_again() -> None:
    done = {"a": Result(STAGES, "a", "passed", 1), "b": Result(STAGES, "b", "timeout", 9)}
    assert selection.remaining(["a", "b", "c"], done) == ["c"]
    assert selection.remaining(["a", "b", "c"], done, ("timeout",)) == ["b", "c"]


@pytest.mark.parametrize(
    ("asked", "offered", "missing"),
    [
        (["--max-model-len", "8192", "--dtype", "half", "--enforce-eager"], [], []),
        (["--enable-lora"], ["--enable-lora"], []),
        (["--enable-lora"], [], ["--enable-lora"]),
        (["--tool-call-parser", "hermes"], ["--tool-call-parser", "hermes"], []),
        (["--tool-call-parser", "granite4"], ["--tool-call-parser", "hermes"], ["--tool-call-parser granite4"]),
        (["--api-key=test"], ["--api-key", "test"], []),
        (["--reasoning-parser", "qwen3"], [], []),
    ],
)
def test_arguments_that_the_server_lacks_are_named(asked: list[str], offered: list[str], missing: list[str]) -> None:
    assert selection.unmet(asked, offered) == missing


def test_names_of_models_are_replaced_wherever_they_are() -> None:
    case = namedtuple("case", "model_name key")
    names = {"Qwen/Qwen3-0.6B"}
    given = {"text": "Qwen/Qwen3-0.6B", "more": ["Qwen/Qwen3-0.6B", 1], "case": case("Qwen/Qwen3-0.6B", "k"), "no": "Q"}
    assert selection.renamed(given, names, "m") == {"text": "m", "more": ["m", 1], "case": case("m", "k"), "no": "Q"}


def test_a_file_that_starts_a_server_is_in_a_group_or_left_out_or_reported() -> None:
    group = Group("g", (Module("openai/a.py"),))
    assert selection.unknown_modules(["openai/a.py", "pooling/b.py", "openai/new.py"], [group]) == ["openai/new.py"]


def test_groups_are_named_apart_and_run_nothing_that_is_left_out() -> None:
    assert max(Counter(group.name for group in GROUPS).values()) == 1
    paths = {module.path for group in GROUPS for module in group.modules}
    assert not [path for path in paths if any(path.startswith(entry) for entry in LEFT_OUT)]
    assert MODEL_NAME in HUB_NAMES
    assert not {word for group in GROUPS for word in group.args if word in CAPACITY} - {
        "--no-enable-prefix-caching", "--max-logprobs",
    }  # fmt: skip


def test_only_vllm_is_given_arguments_of_vllm() -> None:
    group = Group("g", (), ("--enable-scale-out",), api_key="k", adapters=("a",))
    lines = {side: command(side, group, Path("m"), Path("lora"), 1) for side in (UNSPLIT, STAGES, EMBEDDED)}
    assert all(line[line.index("--api-key") + 1] == "k" for line in lines.values())
    assert "--enable-scale-out" in lines[UNSPLIT]
    assert lines[STAGES].index("--") < lines[STAGES].index("--enable-scale-out") < lines[STAGES].index("a=lora")
    assert not {"--", "--enable-scale-out", "--enable-lora"} & set(lines[EMBEDDED])


def test_of_several_results_the_last_one_counts(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    assert read(file) == []
    for outcome in ("timeout", "passed"):
        append(file, Result(STAGES, "a", outcome, 1.5, "why", "0.32.0"))
    append(file, Result(UNSPLIT, "a", "failed", 1))
    assert latest(read(file), STAGES) == {"a": Result(STAGES, "a", "passed", 1.5, "why", "0.32.0")}


REFUSED = """openai.BadRequestError: Error code: 400 - {'error': {'message': "n: it's not supported", 'type': 'x'}}"""


def results() -> dict[str, dict[str, Result]]:
    """Three tests, one of which is lost on stages and two on the embedded engine."""
    rows = [
        Result(UNSPLIT, "m.py::a", "passed", 1, "", "9.9"), Result(UNSPLIT, "m.py::b", "passed", 1),
        Result(UNSPLIT, "n.py::c", "failed", 1), Result(UNSPLIT, "n.py::d", "skipped", 1),
        Result(STAGES, "m.py::a", "passed", 1), Result(STAGES, "m.py::b", "timeout", 9, "Timeout (>9s) | so"),
        Result(STAGES, "n.py::c", "failed", 1), Result(EMBEDDED, "m.py::a", "failed", 1, REFUSED),
        Result(EMBEDDED, "m.py::b", "failed", 1, "AssertionError: assert 1 == 2\nmore"),
    ]  # fmt: skip
    return table.by_side(rows)


def test_a_difference_is_what_passes_unsplit_and_not_there() -> None:
    sides = results()
    assert [one.test for one in table.lost(sides, STAGES)] == ["m.py::b"]
    assert [table.reason_of(one) for one in table.lost(sides, EMBEDDED)] == [
        "n: it's not supported",
        "AssertionError: assert 1 == 2",
    ]


def test_the_table_counts_by_file_and_names_every_difference_on_stages() -> None:
    lines = table.render(results(), "2030-01-02").splitlines()
    assert lines[0].startswith("vLLM 9.9, run on 2030-01-02")
    assert "| `m.py` | 2 | 2 | 1 | 0 |" in lines
    assert "| `n.py` | 1 | 0 | 0 | 0 |" in lines
    assert "| all | 3 | 2 | 1 | 0 |" in lines
    assert "| `m.py::b` | timeout | Timeout (>9s) \\| so |" in lines
    assert "| n: it's not supported | 1 |" in lines
    assert "| an answer that the test does not accept | 1 |" in lines


def test_only_what_is_between_the_markers_is_replaced() -> None:
    page = f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n"
    assert replace_part(page, "new", table.BEGIN, table.END) == f"before\n{table.BEGIN}\nnew\n{table.END}\nafter\n"
    with pytest.raises(ValueError, match="has no part between"):
        replace_part("before", "new", table.BEGIN, table.END)


def test_the_page_has_a_place_for_the_table() -> None:
    replace_part(PAGE.read_text(), "new", table.BEGIN, table.END)


def test_a_source_distribution_gives_its_tests_and_not_its_package(tmp_path: Path) -> None:
    sdist = tmp_path / "vllm-9.9.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        for name in ("tests/entrypoints/test_a.py", "tests/utils.py", "examples/t.jinja", "vllm/__init__.py"):
            member = tarfile.TarInfo(f"vllm-9.9/{name}")
            member.size = 4
            archive.addfile(member, io.BytesIO(b"x=1\n"))
    tree = prepare_tests(tmp_path / "cache", "9.9", sdist)
    assert sorted(path.name for path in tree.iterdir()) == ["examples", "pytest.ini", "tests"]
    assert (tree / "tests/entrypoints/test_a.py").read_text() == "x=1\n"
    sdist.unlink()
    assert prepare_tests(tmp_path / "cache", "9.9", sdist) == tree, "it is kept"


def test_an_archive_without_tests_is_refused_by_name(tmp_path: Path) -> None:
    sdist = tmp_path / "other.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("other/setup.py"))
    with pytest.raises(SystemExit, match=r"other.tar.gz has no tests/entrypoints"):
        prepare_tests(tmp_path / "cache", "9.9", sdist)
