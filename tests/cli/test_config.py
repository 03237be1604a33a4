# SPDX-License-Identifier: Apache-2.0
"""Options from file and environment: which takes precedence, what is refused, and what `config show` shows of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main
from checkpoints import llama, llama_config, write_checkpoint
from commands import typed_here
from conftest import Ran

from zpptool.cli.app import app
from zpptool.cli.settings import environment_names, options, walk
from zpptool.log import FORMAT_VARIABLE, LEVEL_VARIABLE

Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own_logging: None) -> Run:
    monkeypatch.delenv(LEVEL_VARIABLE, raising=False)
    monkeypatch.delenv(FORMAT_VARIABLE, raising=False)
    return typed_here(monkeypatch, capsys)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "settings.yaml"
        path.write_text(text)
        return path

    return write


def base_port(run: Run, *words: object) -> int:
    ran = run("plan-ports", "--json", *words)
    assert ran.code == 0, ran.err
    return ran.json["base_port"]


def test_command_line_environment_file_and_default_take_precedence_in_this_order(
    run: Run, file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file("base-port: 2000\nnum-stages: 2\n")
    assert base_port(run, "--num-stages", 2) == 15550
    assert base_port(run, "--config", path) == 2000
    monkeypatch.setenv("ZPP_BASE_PORT", "3000")
    assert base_port(run, "--config", path) == 3000
    assert base_port(run, "--config", path, "--base-port", 4000) == 4000
    assert base_port(run, f"--config={path}", "--base-port=4000") == 4000
    assert run("--config", path, "plan-ports", "--json").json["base_port"] == 3000
    monkeypatch.setenv("ZPP_CONFIG", str(path))
    monkeypatch.delenv("ZPP_BASE_PORT")
    assert base_port(run) == 2000


def test_a_commands_own_key_takes_precedence_over_the_common_one(run: Run, file: Callable[[str], Path]) -> None:
    path = file("base-port: 2000\nnum-stages: 2\nplan-ports:\n  base-port: 2500\n  hosts: [a, b]\n")
    ran = run("plan-ports", "--json", "--config", path)
    assert ran.json["base_port"] == 2500
    assert [stage["host"] for stage in ran.json["stages"]] == ["a", "b"]


def test_every_name_of_an_option_works_in_file_and_environment(
    run: Run, file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert base_port(run, "--config", file("pipeline-parallel-size: 2\n")) == 15550
    monkeypatch.setenv("ZPP_PIPELINE_PARALLEL_SIZE", "3")
    assert run("plan-ports", "--json").json["num_stages"] == 3


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("base-prt: 1\n", "base-port"),
        ("base_port: 1\n", "base-port"),
        ("plan-port:\n  base-port: 1\n", "plan-ports"),
        ("plan-ports:\n  bas-port: 1\n", "plan-ports.base-port"),
        ("plan-ports: 3\n", "plan-ports is a command"),
        ("base-port: many\n", "base-port"),
        ("plan-ports:\n  base-port: 2.5\n", "plan-ports.base-port"),
        ("base-port: {a: 1}\n", "base-port"),
        ("engine-args: --max-model-len 3\n", "engine-args"),
        ("version: true\n", "version"),
        ("log-level: loud\n", "log-level"),
        ("log-leve: debug\n", "log-level"),
        ("plan-ports:\n  log-level: debug\n", "plan-ports.log-level"),
    ],
)
def test_an_unknown_key_or_an_invalid_value_is_named(
    text: str, named: str, run: Run, file: Callable[[str], Path]
) -> None:
    ran = run("--config", file(text), "plan-ports", "--num-stages", 2)
    assert ran.code == 2
    assert named in ran.err
    assert not ran.out


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "\x00"])
def test_a_file_that_is_not_a_mapping_is_refused(text: str, run: Run, file: Callable[[str], Path]) -> None:
    assert run("--config", file(text), "plan-ports", "--num-stages", 2).code == 3
    assert run("--config", "/no/such/file", "plan-ports", "--num-stages", 2).code == 3


def test_model_and_ranges_that_are_typed_replace_those_of_the_file(
    tmp_path: Path, run: Run, file: Callable[[str], Path]
) -> None:
    for layers in (4, 6):
        write_checkpoint(tmp_path / str(layers), llama(layers=layers), llama_config(layers=layers))
    path = file(f"model: {tmp_path / '4'}\nranges: 0-1 1-4\n")
    assert run("--config", path, "split", "--dry-run", "--json").json["stages"][0]["layers"] == [0, 1]
    other = run("--config", path, "split", tmp_path / "6", "--ranges", "0-3", "3-6", "--dry-run", "--json")
    assert other.code == 0, other.err
    assert [stage["layers"] for stage in other.json["stages"]] == [[0, 3], [3, 6]]


def test_stages_in_the_file_do_not_turn_validate_into_another_command(
    tmp_path: Path, run: Run, file: Callable[[str], Path]
) -> None:
    write_checkpoint(tmp_path / "model", llama(), llama_config())
    path = file("num-stages: 2\n")
    assert run("--config", path, "split", tmp_path / "model", "-o", tmp_path / "out").code == 0
    checked = run("--config", path, "validate", tmp_path / "out", "--json")
    assert checked.code == 0, checked.err
    assert len(checked.json["stages"]) == 2


def test_engine_arguments_may_be_in_file_and_environment(
    tmp_path: Path, run: Run, file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "model", llama(), llama_config())
    path = file("engine-args: [--max-model-len, 64]\n")

    def planned(*words: str) -> str:
        out = tmp_path / "zpp.yaml"
        ran = run("--config", path, "plan", tmp_path / "model", "--num-stages", 2, "--force", "-o", out, *words)
        assert ran.code == 0, ran.err
        return out.read_text()

    assert "'64'" in planned()
    monkeypatch.setenv("ZPP_ENGINE_ARGS", "--max-model-len 65")
    assert "'65'" in planned()
    assert "'66'" in planned("--", "--max-model-len", "66")
    assert run("--config", path, "split", tmp_path / "model", "--num-stages", 2, "--dry-run").code == 0


def test_config_show_names_the_source_of_each_value(
    run: Run, file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file("base-port: 2000\nplan-ports:\n  transport: ipc\n")
    monkeypatch.setenv("ZPP_HOSTS", "a")
    ran = run("--config", path, "config", "show", "--json", "plan-ports", "--num-stages", 3)
    assert ran.code == 0, ran.err
    rows = {row["option"]: (row["value"], row["source"]) for row in ran.json["settings"]}
    assert rows["base-port"] == (2000, f"{path}: base-port")
    assert rows["transport"] == ("ipc", f"{path}: plan-ports.transport")
    assert rows["hosts"] == ("a", "ZPP_HOSTS")
    assert rows["num-stages"] == (3, "command line")
    assert rows["api-port"] == (8000, "default")
    shown = run("--config", path, "config", "show")
    assert "ZPP_HOSTS" in shown.out
    assert "8000" not in shown.out
    assert run("config", "show", "nonsense").code == 2


def test_log_options_may_be_in_the_file_for_all_commands(
    run: Run, file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file("log-level: error\nlog-format: json\n")

    def logged(*words: object) -> str:
        """What is logged about a port that only a privileged process may bind: a warning."""
        ran = run("plan-ports", "--num-stages", 2, "--base-port", 80, "--config", path, *words)
        assert ran.code == 0
        return ran.err

    assert logged() == ""
    assert json.loads(logged("--log-level", "warning"))["level"] == "warning"
    assert logged("--log-level", "warning", "--log-format", "text").startswith("warning: only a privileged process")
    monkeypatch.setenv(LEVEL_VARIABLE, "info")
    assert json.loads(logged())["level"] == "warning"


def test_config_show_has_the_options_of_zpptool_itself(
    run: Run, file: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file("log-level: error\n")
    shown = run("--config", path, "config", "show", "--json").json["settings"]
    own = {row["option"]: (row["value"], row["source"]) for row in shown if row["command"] == "zpptool"}
    assert own == {"log-level": ("error", f"{path}: log-level"), "log-format": ("text", "default")}
    assert "log-format" not in run("--config", path, "config", "show").out
    monkeypatch.setenv(LEVEL_VARIABLE, "debug")
    assert LEVEL_VARIABLE in run("--config", path, "config", "show").out
    assert "command line" in run("--config", path, "config", "show", "--log-level", "info").out
    assert LEVEL_VARIABLE not in run("--config", path, "config", "show", "plan-ports").out


def test_a_secret_is_never_shown(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from zpptool.cli import settings

    monkeypatch.setattr(settings, "_SECRET", __import__("re").compile("hosts"))
    monkeypatch.setenv("ZPP_HOSTS", "hunter2")
    ran = run("config", "show", "plan-ports")
    assert "hunter2" not in ran.out
    assert "not shown" in ran.out
    monkeypatch.undo()
    assert settings._SECRET.fullmatch("api-key")
    assert settings._SECRET.fullmatch("hub-token")


def test_every_option_of_every_command_has_a_variable_of_its_own() -> None:
    root = typer.main.get_command(app)
    for name, command in walk(root):  # type: ignore[arg-type]
        variables = [variable for option in options(command) for variable in environment_names(option)]
        assert len(variables) == len(set(variables)), name


def test_the_shell_can_complete_commands_and_options(zpptool: Callable[..., Ran]) -> None:
    asked = {"_ZPPTOOL_COMPLETE": "complete_bash", "_TYPER_COMPLETE_ARGS": "zpptool plan-"}
    asked |= {"COMP_WORDS": "zpptool plan-", "COMP_CWORD": "1"}
    ran = zpptool(env=asked)
    assert "plan-ports" in ran.out
    options_asked = asked | {"COMP_WORDS": "zpptool plan-ports --bas", "COMP_CWORD": "2"}
    assert "--base-port" in zpptool(env=options_asked).out
