# SPDX-License-Identifier: Apache-2.0
"""The launch plan of a trial: the user's options take precedence, and impossible options are refused before a start."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from checkpoints import llama, llama_config, split_into, write_checkpoint, written_llama

from zpptool.checkpoint.split import split_checkpoint
from zpptool.config.engine_kind import Engine
from zpptool.config.local_pipeline import split_stages
from zpptool.config.runtime_options import RuntimeOptions
from zpptool.errors import ExitCode, ZppError
from zpptool.parity.trial_plan import (
    TRIAL_MODEL_LEN,
    TrialOptions,
    engine_arguments,
    long_prompts,
    longest_sequence,
    plan_trial,
    whole_model,
)
from zpptool.wire.compression.adaptive import WireCodec
from zpptool.witness.options import Level

LAYERS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written_llama(tmp_path_factory, LAYERS)


@pytest.fixture(scope="module")
def stages(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return split_into(tmp_path_factory, model, "0-1", "1-3", "3-4")


@pytest.fixture
def own_stages(stages: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stages, tmp_path / "stages"))


def options(**changes: Any) -> TrialOptions:
    defaults = {
        "engine": Engine.TRANSFORMERS, "model": None, "pipeline_dir": None, "num_stages": None, "ranges": (),
        "prompts": ("hello",), "as_chat": False, "with_long_prompts": True, "batched": False, "max_new_tokens": 8,
        "dtype": "auto", "gpu_ids": (), "base_port": None, "api_port": None, "engine_args": (),
        "runtime": RuntimeOptions(
            start_timeout_s=10.0, step_timeout_s=5.0, wire_codec=WireCodec.ZSTD, trace="/tmp/trace.json"
        ),
    }  # fmt: skip
    return TrialOptions(**{**defaults, **changes})  # type: ignore[arg-type]


def refusal(code: ExitCode, function: Any, *args: Any) -> ZppError:
    with pytest.raises(ZppError) as refused:
        function(*args)
    assert refused.value.exit_code is code, refused.value.message
    return refused.value


DEFAULTS = ("--enforce-eager", "--kv-cache-memory-bytes", "--max-num-batched-tokens", "--max-model-len",
        "--no-enable-prefix-caching")  # fmt: skip


def test_vllm_gets_defaults_for_arguments_that_are_not_given() -> None:
    arguments = engine_arguments(Engine.VLLM, (), 512)
    assert [argument for argument in arguments if argument.startswith("--")] == list(DEFAULTS)
    assert arguments[arguments.index("--max-model-len") + 1] == "512"


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
def test_the_users_arguments_replace_defaults(given: tuple[str, ...], replaced: str) -> None:
    arguments = engine_arguments(Engine.VLLM, given, 512)
    assert arguments[-len(given) :] == given
    added = [argument for argument in arguments[: -len(given)] if argument.startswith("--")]
    assert added == [flag for flag in DEFAULTS if flag != replaced]


def test_other_engines_get_no_defaults() -> None:
    assert engine_arguments(Engine.TRANSFORMERS, ("--own", "1"), 512) == ("--own", "1")


def test_a_shorter_model_length_makes_shorter_prompts(model: Path, tmp_path: Path) -> None:
    for given in (("--max-model-len", "100"), ("--max_model_len=100",)):
        plan = plan_trial(options(engine=Engine.VLLM, model=model, num_stages=2, engine_args=given), tmp_path, tmp_path)
        assert plan.long_prompts == (92,)
    given = ("--max-model-len", "4k")  # vLLM's own notation, which is not parsed here: the model's length applies
    plan = plan_trial(options(engine=Engine.VLLM, model=model, num_stages=2, engine_args=given), tmp_path, tmp_path)
    assert plan.long_prompts == (150, 300)


def test_the_stages_of_a_split_are_in_order(stages: Path) -> None:
    directories, manifests = split_stages(stages)
    assert directories == [stages / f"stage_{stage}" for stage in range(3)]
    assert [manifest.stage for manifest in manifests] == [0, 1, 2]


def test_a_directory_without_stages_is_refused(tmp_path: Path, stages: Path) -> None:
    for wrong in (tmp_path, tmp_path / "none", stages / "stage_0"):
        assert f"{wrong} holds no stages" in refusal(ExitCode.INVALID, split_stages, wrong).message


def test_a_split_that_lacks_a_stage_is_refused(own_stages: Path) -> None:
    shutil.rmtree(own_stages / "stage_1")
    assert "lacks stage_1: it was split into 3 stages" in refusal(ExitCode.INVALID, split_stages, own_stages).message


def test_a_stage_of_another_split_is_refused(own_stages: Path, model: Path, tmp_path: Path) -> None:
    split_checkpoint(model, tmp_path / "other", ranges=["0-2", "2-3", "3-4"])
    shutil.rmtree(own_stages / "stage_2")
    shutil.copytree(tmp_path / "other/stage_2", own_stages / "stage_2")
    fault = refusal(ExitCode.INVALID, split_stages, own_stages)
    assert f"{own_stages / 'stage_2'} belongs to another split than" in fault.message


def test_a_stage_in_the_directory_of_another_is_refused(own_stages: Path) -> None:
    shutil.rmtree(own_stages / "stage_1")
    shutil.copytree(own_stages / "stage_0", own_stages / "stage_1")
    fault = refusal(ExitCode.INVALID, split_stages, own_stages)
    assert f"{own_stages / 'stage_1'} holds stage 0" in fault.message


def test_a_surplus_stage_is_refused(own_stages: Path) -> None:
    shutil.copytree(own_stages / "stage_0", own_stages / "stage_3")
    assert (
        "also holds stage_3: it was split into 3 stages" in refusal(ExitCode.INVALID, split_stages, own_stages).message
    )


def test_a_changed_manifest_is_refused(own_stages: Path) -> None:
    manifest = own_stages / "stage_1/zpp-stage.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"BF16", b"F16 "))
    assert str(manifest) in refusal(ExitCode.INVALID, split_stages, own_stages).message


def test_the_unsplit_model_is_the_one_that_was_split(stages: Path, model: Path, tmp_path: Path) -> None:
    directories, manifests = split_stages(stages)
    assert whole_model(model, directories, manifests, tmp_path) == model
    other = write_checkpoint(tmp_path / "other", llama(LAYERS), llama_config(LAYERS, rope_theta=1.0))
    fault = refusal(ExitCode.INVALID, whole_model, other, directories, manifests, tmp_path)
    assert f"{other} is not the model that {stages} was split from" in fault.message
    assert whole_model(None, directories, manifests, tmp_path) == tmp_path / "joined"


def test_the_plan_for_a_split(stages: Path, model: Path, tmp_path: Path) -> None:
    plan = plan_trial(options(pipeline_dir=stages, model=model, dtype="float32"), tmp_path, tmp_path / "logs")
    assert plan.unsplit.model == str(model)
    assert plan.unsplit.partition == ((0, LAYERS),)
    assert [spec.model for spec in plan.stages] == [str(stages / f"stage_{stage}") for stage in range(3)]
    assert [spec.stage for spec in plan.stages] == [0, 1, 2]
    assert {spec.partition for spec in plan.stages} == {((0, 1), (1, 3), (3, 4))}
    assert {(spec.dtype, spec.api_port, spec.local) for spec in (*plan.stages,)} == {
        ("float32", plan.unsplit.api_port, f"ipc://{tmp_path}/head")
    }
    assert all(spec.bind.startswith(f"ipc://{tmp_path}/") for spec in plan.stages)
    assert [spec.connect for spec in plan.stages[1:]] == [spec.bind for spec in plan.stages[:-1]]
    assert plan.stages[0].connect == plan.stages[-1].bind


def test_the_plan_for_a_full_checkpoint(model: Path, tmp_path: Path) -> None:
    plan = plan_trial(options(model=model, ranges=("0-1", "1-4"), base_port=None), tmp_path, tmp_path)
    assert [spec.model for spec in plan.stages] == [str(model)] * 2
    assert plan.stages[0].partition == ((0, 1), (1, 4))
    assert {spec.runtime for spec in plan.stages} == {options().runtime}
    assert plan.unsplit.trace == ""


def test_vllm_computes_each_sequence_in_steps_of_its_own_unless_batched(model: Path, tmp_path: Path) -> None:
    unbatched = plan_trial(options(engine=Engine.VLLM, model=model, num_stages=2), tmp_path, tmp_path)
    batched = plan_trial(options(engine=Engine.VLLM, model=model, num_stages=2, batched=True), tmp_path, tmp_path)
    assert "--scheduler-cls" in unbatched.stages[0].engine_args
    assert "--scheduler-cls" not in unbatched.unsplit.engine_args
    assert batched.stages[0].engine_args == batched.unsplit.engine_args


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"num_stages": None}, ExitCode.USAGE, "into how many stages"),
        ({"model": Path("nowhere"), "num_stages": None}, ExitCode.INVALID, "nowhere is not a directory"),
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
def test_impossible_options_are_refused(
    model: Path, tmp_path: Path, changes: dict[str, Any], code: ExitCode, message: str
) -> None:
    assert message in refusal(code, plan_trial, options(**{"model": model, **changes}), tmp_path, tmp_path).message


def test_another_number_of_stages_than_the_splits_is_refused(stages: Path, tmp_path: Path) -> None:
    fault = refusal(ExitCode.INVALID, plan_trial, options(pipeline_dir=stages, num_stages=2), tmp_path, tmp_path)
    assert f"{stages} holds 3 stages, not 2" in fault.message


@pytest.mark.parametrize("flag", ["base_port", "api_port"])
def test_a_port_in_use_is_named_before_anything_starts(model: Path, tmp_path: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        fault = refusal(
            ExitCode.ADDRESS, plan_trial, options(model=model, num_stages=2, **{flag: port}), tmp_path, tmp_path
        )
    assert f"127.0.0.1:{port} cannot be bound" in fault.message


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({"max_position_embeddings": 300}, 300),
        ({"n_positions": 128, "n_ctx": 64}, 128),
        ({"max_seq_len": 99}, 99),
        ({"text_config": {"num_hidden_layers": 2, "max_position_embeddings": 77}, "max_position_embeddings": 5}, 5),
        ({"text_config": {"num_hidden_layers": 2, "max_position_embeddings": 77}, "num_hidden_layers": None}, 77),
        ({"max_position_embeddings": 8192}, TRIAL_MODEL_LEN),
        ({"max_position_embeddings": None}, TRIAL_MODEL_LEN),
        ({}, TRIAL_MODEL_LEN),
    ],
)
def test_the_longest_sequence_is_the_minimum_of_the_models_and_the_trials(
    config: dict[str, object], longest: int, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 2, **config}))
    assert longest_sequence(tmp_path) == longest


def test_long_prompts_leave_room_for_their_answers() -> None:
    assert long_prompts(1024, 32) == (150, 300)
    assert long_prompts(200, 32) == (150, 168)
    assert long_prompts(100, 32) == (68,)
    assert long_prompts(33, 32) == (1,)


def test_a_load_and_a_long_prompt_are_added(model: Path, tmp_path: Path) -> None:
    plan = plan_trial(options(model=model, num_stages=2, load=64, long=90), tmp_path, tmp_path)
    assert plan.long_prompts[-1] == 90
    assert (plan.load, plan.load_room) == (64, 1024 - 8)
    short = write_checkpoint(tmp_path / "short", llama(LAYERS), llama_config(LAYERS, max_position_embeddings=100))
    fault = refusal(ExitCode.USAGE, plan_trial, options(model=short, num_stages=2, long=93), tmp_path, tmp_path)
    assert "a prompt of 93 tokens and its answer are 101 tokens, and the model takes 100" in fault.message


def test_a_witness_is_kept_in_a_directory_of_the_trial(model: Path, tmp_path: Path) -> None:
    plan = plan_trial(options(model=model, num_stages=2, witness=Level.LAYERS), tmp_path, tmp_path)
    directories = {spec.witness.directory for spec in (plan.unsplit, *plan.stages)}
    assert directories == {str(tmp_path / "witness")}
    assert (tmp_path / "witness").is_dir()
    off = plan_trial(options(model=model, num_stages=2), tmp_path, tmp_path)
    assert not any(spec.witness.is_on for spec in (off.unsplit, *off.stages))
    for wrong in ({"engine": Engine.VLLM, "witness": Level.OPS}, {"witness_reference": tmp_path / "a.zppw"}):
        refusal(ExitCode.USAGE, plan_trial, options(model=model, num_stages=2, **wrong), tmp_path, tmp_path)


@pytest.mark.parametrize("max_new_tokens", [32, 33, 4000])
def test_answers_that_leave_no_room_are_refused(max_new_tokens: int) -> None:
    with pytest.raises(ZppError, match=f"answers of {max_new_tokens} tokens") as caught:
        long_prompts(32, max_new_tokens)
    assert caught.value.exit_code == ExitCode.USAGE
