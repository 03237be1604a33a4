# SPDX-License-Identifier: Apache-2.0
"""From what a user wants tried to a trial's order: the user's word wins, and what cannot be is refused at once."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from checkpoints import llama, llama_config, write_checkpoint

from zpptool.checkpoint.split import split_checkpoint
from zpptool.config.engine_kind import Engine
from zpptool.config.local_pipeline import split_stages
from zpptool.errors import ExitCode, ZppError
from zpptool.parity.trial_plan import TrialOptions, engine_arguments, plan_trial, whole_model
from zpptool.wire.compression.adaptive import WireCodec

LAYERS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("whole") / "model", llama(LAYERS), llama_config(LAYERS))


@pytest.fixture(scope="module")
def stages(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("split") / "stages"
    split_checkpoint(model, out, ranges=["0-1", "1-3", "3-4"])
    return out


@pytest.fixture
def own_stages(stages: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stages, tmp_path / "stages"))


def wish(**said: Any) -> TrialOptions:
    defaults = {
        "engine": Engine.TRANSFORMERS, "model": None, "pipeline_dir": None, "num_stages": None, "ranges": (),
        "prompts": ("hello",), "as_chat": False, "with_long_prompts": True, "batched": False, "max_new_tokens": 8,
        "dtype": "auto", "device": "auto", "gpu_ids": (), "base_port": None, "api_port": None, "engine_args": (),
        "start_timeout_s": 10.0, "step_timeout_s": 5.0, "wire_codec": WireCodec.ZSTD,
    }  # fmt: skip
    return TrialOptions(**{**defaults, **said})  # type: ignore[arg-type]


def refusal(code: ExitCode, function: Any, *args: Any) -> ZppError:
    with pytest.raises(ZppError) as refused:
        function(*args)
    assert refused.value.exit_code is code, refused.value.message
    return refused.value


OURS = ("--enforce-eager", "--kv-cache-memory-bytes", "--max-num-batched-tokens", "--max-model-len",
        "--no-enable-prefix-caching")  # fmt: skip


def test_vllm_is_told_what_the_user_left_open() -> None:
    told = engine_arguments(Engine.VLLM, (), 512)
    assert [word for word in told if word.startswith("--")] == list(OURS)
    assert told[told.index("--max-model-len") + 1] == "512"


@pytest.mark.parametrize(
    ("given", "replaced"),
    [
        (("--max-model-len", "64"), "--max-model-len"),
        (("--max-model-len=64",), "--max-model-len"),
        (("--max_model_len", "64"), "--max-model-len"),
        (("--max_num_batched_tokens=64",), "--max-num-batched-tokens"),
        (("--no-enforce-eager",), "--enforce-eager"),
        (("--enforce-eager",), "--enforce-eager"),
        (("--enable-prefix-caching",), "--no-enable-prefix-caching"),
        (("--kv-cache-memory-bytes", "1G"), "--kv-cache-memory-bytes"),
    ],
)
def test_what_the_user_tells_vllm_wins(given: tuple[str, ...], replaced: str) -> None:
    told = engine_arguments(Engine.VLLM, given, 512)
    assert told[-len(given) :] == given
    ours = [word for word in told[: -len(given)] if word.startswith("--")]
    assert ours == [flag for flag in OURS if flag != replaced]


def test_another_engine_is_told_nothing_more() -> None:
    assert engine_arguments(Engine.TRANSFORMERS, ("--own", "1"), 512) == ("--own", "1")


def test_a_shorter_model_length_makes_shorter_prompts(model: Path, tmp_path: Path) -> None:
    for given in (("--max-model-len", "100"), ("--max_model_len=100",)):
        order = plan_trial(wish(engine=Engine.VLLM, model=model, num_stages=2, engine_args=given), tmp_path, tmp_path)
        assert order.long_prompts == (92,)
    given = ("--max-model-len", "4k")  # vLLM's own way to write numbers; the model's length stands
    order = plan_trial(wish(engine=Engine.VLLM, model=model, num_stages=2, engine_args=given), tmp_path, tmp_path)
    assert order.long_prompts == (150, 300)


def test_the_stages_of_a_split_in_their_order(stages: Path) -> None:
    directories, manifests = split_stages(stages)
    assert directories == [stages / f"stage_{stage}" for stage in range(3)]
    assert [manifest.stage for manifest in manifests] == [0, 1, 2]


def test_a_directory_without_stages(tmp_path: Path, stages: Path) -> None:
    for wrong in (tmp_path, tmp_path / "none", stages / "stage_0"):
        assert f"{wrong} holds no stages" in refusal(ExitCode.INVALID, split_stages, wrong).message


def test_a_split_that_lacks_a_stage(own_stages: Path) -> None:
    shutil.rmtree(own_stages / "stage_1")
    assert "lacks stage_1: it was split into 3 stages" in refusal(ExitCode.INVALID, split_stages, own_stages).message


def test_a_stage_of_another_split(own_stages: Path, model: Path, tmp_path: Path) -> None:
    split_checkpoint(model, tmp_path / "other", ranges=["0-2", "2-3", "3-4"])
    shutil.rmtree(own_stages / "stage_2")
    shutil.copytree(tmp_path / "other/stage_2", own_stages / "stage_2")
    fault = refusal(ExitCode.INVALID, split_stages, own_stages)
    assert f"{own_stages / 'stage_2'} belongs to another split than" in fault.message


def test_a_stage_in_the_directory_of_another(own_stages: Path) -> None:
    shutil.rmtree(own_stages / "stage_1")
    shutil.copytree(own_stages / "stage_0", own_stages / "stage_1")
    fault = refusal(ExitCode.INVALID, split_stages, own_stages)
    assert f"{own_stages / 'stage_1'} holds stage 0" in fault.message


def test_a_stage_too_many(own_stages: Path) -> None:
    shutil.copytree(own_stages / "stage_0", own_stages / "stage_3")
    assert (
        "also holds stage_3: it was split into 3 stages" in refusal(ExitCode.INVALID, split_stages, own_stages).message
    )


def test_a_manifest_that_was_changed(own_stages: Path) -> None:
    manifest = own_stages / "stage_1/zpp-stage.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"BF16", b"F16 "))
    assert str(manifest) in refusal(ExitCode.INVALID, split_stages, own_stages).message


def test_the_whole_model_is_the_one_that_was_split(stages: Path, model: Path, tmp_path: Path) -> None:
    directories, manifests = split_stages(stages)
    assert whole_model(model, directories, manifests, tmp_path) == model
    other = write_checkpoint(tmp_path / "other", llama(LAYERS), llama_config(LAYERS, rope_theta=1.0))
    fault = refusal(ExitCode.INVALID, whole_model, other, directories, manifests, tmp_path)
    assert f"{other} is not the model that {stages} was split from" in fault.message
    assert whole_model(None, directories, manifests, tmp_path) == tmp_path / "joined"


def test_an_order_from_a_split(stages: Path, model: Path, tmp_path: Path) -> None:
    order = plan_trial(wish(pipeline_dir=stages, model=model, dtype="float32"), tmp_path, tmp_path / "logs")
    assert order.unsplit.model == str(model)
    assert order.unsplit.partition == ((0, LAYERS),)
    assert [spec.model for spec in order.stages] == [str(stages / f"stage_{stage}") for stage in range(3)]
    assert [spec.stage for spec in order.stages] == [0, 1, 2]
    assert {spec.partition for spec in order.stages} == {((0, 1), (1, 3), (3, 4))}
    assert {(spec.dtype, spec.api_port, spec.local) for spec in (*order.stages,)} == {
        ("float32", order.unsplit.api_port, f"ipc://{tmp_path}/head")
    }
    assert all(spec.bind.startswith(f"ipc://{tmp_path}/") for spec in order.stages)
    assert [spec.connect for spec in order.stages[1:]] == [spec.bind for spec in order.stages[:-1]]
    assert order.stages[0].connect == order.stages[-1].bind


def test_an_order_of_a_full_checkpoint(model: Path, tmp_path: Path) -> None:
    order = plan_trial(wish(model=model, ranges=("0-1", "1-4"), base_port=None), tmp_path, tmp_path)
    assert [spec.model for spec in order.stages] == [str(model)] * 2
    assert order.stages[0].partition == ((0, 1), (1, 4))


def test_vllm_computes_each_sequence_alone_unless_batches_are_wanted(model: Path, tmp_path: Path) -> None:
    alone = plan_trial(wish(engine=Engine.VLLM, model=model, num_stages=2), tmp_path, tmp_path)
    batched = plan_trial(wish(engine=Engine.VLLM, model=model, num_stages=2, batched=True), tmp_path, tmp_path)
    assert "--scheduler-cls" in alone.stages[0].engine_args
    assert "--scheduler-cls" not in alone.unsplit.engine_args
    assert batched.stages[0].engine_args == batched.unsplit.engine_args


@pytest.mark.parametrize(
    ("said", "code", "told"),
    [
        ({"num_stages": None}, ExitCode.USAGE, "into how many stages"),
        ({"num_stages": 5}, ExitCode.INVALID, "5 stages are more than the model's 4 layers"),
        ({"ranges": ("0-1", "2-4")}, ExitCode.INVALID, "no stage owns layer 1"),
        ({"num_stages": 2, "gpu_ids": (("0",),)}, ExitCode.USAGE, "1 GPUs are given for 2 stages"),
        ({"num_stages": 2, "max_new_tokens": 5000}, ExitCode.USAGE, "no room for a prompt"),
        ({"num_stages": 2, "base_port": 65534}, ExitCode.ADDRESS, "65536"),
        ({"num_stages": 2, "api_port": 70000}, ExitCode.ADDRESS, "70000"),
        ({"num_stages": 2, "base_port": 19000, "api_port": 19002}, ExitCode.ADDRESS, "19002"),
        ({"num_stages": 2, "prompts": ("\udcff",)}, ExitCode.USAGE, "UTF-8"),
    ],
)
def test_what_cannot_be_tried_is_refused(
    model: Path, tmp_path: Path, said: dict[str, Any], code: ExitCode, told: str
) -> None:
    assert told in refusal(code, plan_trial, wish(model=model, **said), tmp_path, tmp_path).message


def test_a_split_has_the_number_of_its_stages(stages: Path, tmp_path: Path) -> None:
    fault = refusal(ExitCode.INVALID, plan_trial, wish(pipeline_dir=stages, num_stages=2), tmp_path, tmp_path)
    assert f"{stages} holds 3 stages, not 2" in fault.message


@pytest.mark.parametrize("flag", ["base_port", "api_port"])
def test_a_port_that_is_taken_is_named_before_anything_starts(model: Path, tmp_path: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        fault = refusal(
            ExitCode.ADDRESS, plan_trial, wish(model=model, num_stages=2, **{flag: port}), tmp_path, tmp_path
        )
    assert f"127.0.0.1:{port} cannot be bound" in fault.message
