# SPDX-License-Identifier: Apache-2.0
"""`zpptool test-pipeline` as a user runs it, up to where an engine starts."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from checkpoints import llama, llama_config, split_into, write_checkpoint, written_llama
from commands import typed_here

from tests.conftest import Ran

pytest.importorskip("transformers")
pytestmark = pytest.mark.timeout(60)

LAYERS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written_llama(tmp_path_factory, LAYERS)


@pytest.fixture(scope="module")
def stages(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = split_into(tmp_path_factory, model, "0-1", "1-4")
    shutil.copytree(out, out.with_name("half"))
    shutil.rmtree(out.with_name("half") / "stage_1")
    return out


@pytest.fixture
def trial(
    model: Path, stages: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    zpptool = typed_here(monkeypatch, capsys)

    def run(*words: object) -> Ran:
        places = {"MODEL": str(model), "STAGES": str(stages), "HALF": str(stages.with_name("half"))}
        typed = [str(word) for word in words]
        for name, place in places.items():
            typed = [word.replace(name, place) for word in typed]
        return zpptool("test-pipeline", *typed)

    return run


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "no model is named"),
        (["MODEL"], 2, "into how many stages?"),
        (["MODEL", "MODEL", "--num-stages", "2"], 2, "2 models are named"),
        (["MODEL", "--num-stages", "5"], 3, "5 stages are more than the model's 4 layers"),
        (["MODEL", "--num-stages", "2", "--ranges", "0-1", "1-2", "2-4"], 3, "3 layer ranges are given for 2 stages"),
        (["MODEL", "--ranges", "0-1", "2-4"], 3, "no stage owns layer 1"),
        (["nowhere", "--num-stages", "2"], 3, "nowhere"),
        (["--pipeline-dir", "nowhere"], 3, "nowhere holds no stages"),
        (["--pipeline-dir", "MODEL"], 3, "holds no stages"),
        (["--pipeline-dir", "STAGES/stage_0"], 3, "holds no stages"),
        (["--pipeline-dir", "HALF"], 3, "lacks stage_1"),
        (["--pipeline-dir", "STAGES", "--ranges", "0-2", "2-4"], 2, "--pipeline-dir has its ranges"),
        (["--pipeline-dir", "STAGES", "--num-stages", "3"], 3, "holds 2 stages, not 3"),
        (["--pipeline-dir", "STAGES", "--engine", "other"], 2, "other"),
        (["--pipeline-dir", "STAGES", "--gpu-ids", "0"], 2, "1 GPUs are given for 2 stages"),
        (["--pipeline-dir", "STAGES", "--tensor-parallel-size", "2"], 2, "the embedded engine runs on one device"),
        (["--pipeline-dir", "STAGES", "--max-new-tokens", "0"], 2, "greater than or equal"),
        (["--pipeline-dir", "STAGES", "--max-new-tokens", "9999"], 2, "9999"),
        (["--pipeline-dir", "STAGES", "--base-port", "65535"], 5, "65537"),
        (["--pipeline-dir", "STAGES", "--api-port", "0x1"], 2, "integer"),
        (["--pipeline-dir", "STAGES", "--api-port", "70000"], 5, "70000"),
        (["--pipeline-dir", "STAGES", "--report", "nowhere/report.json"], 2, "nowhere/report.json cannot be written"),
        (["--pipeline-dir", "STAGES", "--junit", "STAGES"], 2, "cannot be written"),
        (["--pipeline-dir", "STAGES", "--log-dir", "STAGES/stage_0/config.json"], 2, "the logs cannot be kept"),
    ],
)
def test_invalid_options_are_refused(trial: Callable[..., Ran], words: list[str], code: int, message: str) -> None:
    ran = trial(*words)
    assert ran.code == code, ran.err
    assert message in " ".join(ran.err.replace("│", " ").split())
    assert "Traceback" not in ran.err
    assert "starting" not in ran.err
    assert ran.out == ""


def test_a_model_that_is_not_the_one_that_was_split(trial: Callable[..., Ran], tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", llama(LAYERS, tied=True), llama_config(LAYERS))
    ran = trial("--pipeline-dir", "STAGES", "--model", other)
    assert ran.code == 3
    assert f"{other} is not the model that" in ran.err


def test_a_port_that_is_taken_is_named(trial: Callable[..., Ran]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = trial("--pipeline-dir", "STAGES", "--api-port", taken.getsockname()[1])
    assert ran.code == 5
    assert "cannot be bound" in ran.err
    assert "starting" not in ran.err


def test_a_prompt_that_is_not_text(trial: Callable[..., Ran]) -> None:
    ran = trial("--pipeline-dir", "STAGES", "--test-input", "\udcff")
    assert ran.code == 2
    assert "is not UTF-8" in ran.err


def test_scripts_get_one_object_and_a_verdict_of_error(trial: Callable[..., Ran], tmp_path: Path) -> None:
    report, junit = tmp_path / "report.json", tmp_path / "junit.xml"
    ran = trial("MODEL", "--num-stages", 5, "--json", "--report", report, "--junit", junit)
    assert ran.code == 3
    assert ran.json["schema_version"] == 1
    assert ran.json["verdict"] == "error"
    assert ran.json["engine"] == "transformers"
    assert ran.json["num_stages"] == 5
    assert ran.json["prompts"] == []
    assert ran.json["error"]["exit_code"] == 3
    assert "5 stages are more" in ran.json["error"]["message"]
    assert ran.err.startswith("error: 5 stages are more")
    assert json.loads(report.read_text()) == ran.json
    suite = ElementTree.fromstring(junit.read_text())
    assert (suite.attrib["tests"], suite.attrib["errors"]) == ("1", "1")


def test_a_split_without_its_model_is_compared_with_its_stages_joined(
    zpptool: Callable[..., Ran], stages: Path
) -> None:
    """These bytes are not a model, which the engine detects, so that everything before it has worked."""
    ran = zpptool("test-pipeline", "--pipeline-dir", stages, "--no-long-prompts", "--max-new-tokens", 1)
    assert "the unsplit model, " in ran.err
    assert "/joined, on transformers: starting" in ran.err
    assert "error: the unsplit model exited with code" in ran.err
    assert ran.code not in (0, 4)
    assert not Path(ran.err.partition("the unsplit model, ")[2].partition(", on")[0]).exists()


@pytest.mark.parametrize("words", [["--test-input", "Hi", "--multiprocess", "--device", "cpu"], ["--gpu-ids", "0,1"]])
def test_the_prior_arts_flags_are_taken(trial: Callable[..., Ran], words: list[str]) -> None:
    ran = trial("--pipeline-dir", "HALF", *words)
    assert ran.code == 3
    assert "lacks stage_1" in ran.err
