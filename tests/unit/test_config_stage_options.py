# SPDX-License-Identifier: Apache-2.0
"""What a user asks of one stage becomes its spec: every option that runs a stage reaches it, from flags or a plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoints import llama, llama_config, write_checkpoint

from zpptool.checkpoint.sample import read_samples
from zpptool.checkpoint.split import Origin, write_split
from zpptool.checkpoint.splitplan import plan_split
from zpptool.config.engine_kind import Engine
from zpptool.config.plan import make_plan
from zpptool.config.runtime_options import RuntimeOptions
from zpptool.config.stage_links import LinkAddresses
from zpptool.config.stage_options import StageOptions, resolve_stage
from zpptool.errors import ExitCode, ZppError
from zpptool.wire.compression.adaptive import WireCodec
from zpptool.wire.security.key_files import generate, write_key_files

RUNTIME = RuntimeOptions(
    device="cpu",
    start_timeout_s=1.0,
    step_timeout_s=2.0,
    beat_timeout_s=3.0,
    recovery_deadline_s=4.0,
    trace="/tmp/trace.json",
    wire_codec=WireCodec.ZSTD,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("full") / "model", llama(4), llama_config(4))


def options(model: Path, **changes: Any) -> StageOptions:
    return StageOptions(**{"model": model, "stage": 1, "num_stages": 2, "runtime": RUNTIME, **changes})


def refusal(code: ExitCode, given: StageOptions) -> str:
    with pytest.raises(ZppError) as refused:
        resolve_stage(given)
    assert refused.value.exit_code is code, refused.value.message
    return refused.value.message


def test_every_option_reaches_the_spec(model: Path) -> None:
    given = options(
        model,
        ranges=("0-1", "1-4"),
        engine=Engine.VLLM,
        addresses=LinkAddresses(base_port=9000),
        api_port=9100,
        dtype="float32",
        tensor_parallel_size="2",
        engine_args=("--x",),
    )
    spec = resolve_stage(given)
    assert (spec.engine, spec.partition, spec.stage) == (Engine.VLLM, ((0, 1), (1, 4)), 1)
    assert (spec.bind, spec.connect) == ("tcp://127.0.0.1:9002", "tcp://127.0.0.1:9000")
    assert (spec.api_port, spec.dtype, spec.tensor_parallel_size, spec.engine_args) == (9100, "float32", 2, ("--x",))
    assert spec.runtime == RUNTIME


def test_a_plan_gives_all_but_how_the_stage_runs(model: Path, tmp_path: Path) -> None:
    plan = make_plan(model, num_stages=2, base_port=9000, api_port=8000, dtype="float16", wire_codec=WireCodec.AUTO)
    file = tmp_path / "zpp.yaml"
    file.write_text(plan.to_yaml())
    spec = resolve_stage(options(model, plan_file=file, num_stages=None))
    assert (spec.plan_digest, spec.dtype, spec.bind) == (plan.digest, "float16", "tcp://127.0.0.1:9002")
    assert spec == spec.with_runtime(**{name: getattr(RUNTIME, name) for name in ("device", "step_timeout_s", "trace")})
    assert spec.wire_codec is WireCodec.AUTO


def test_a_directory_of_keys_becomes_the_stages_own_file(model: Path, tmp_path: Path) -> None:
    write_key_files(generate(2), tmp_path / "keys")
    keyed = RuntimeOptions(keys=str(tmp_path / "keys"))
    assert resolve_stage(options(model, runtime=keyed)).keys == str(tmp_path / "keys" / "stage_1.keys")


def test_the_head_of_a_script_does_not_survive_a_loss(model: Path) -> None:
    spec = resolve_stage(options(model, stage=0, headless=True, head_addr="127.0.0.1:7000"))
    assert (spec.headless, spec.local, spec.recovery_deadline_s) == (True, "tcp://127.0.0.1:7000", 0.0)
    other = resolve_stage(options(model, headless=True))
    assert (other.headless, other.local, other.recovery_deadline_s) == (False, "", 0.0)


def test_links_without_keys_are_warned_of(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    addresses = LinkAddresses(bind_host="0.0.0.0", previous="10.0.0.1:1")
    assert "needs keys" in refusal(ExitCode.ADDRESS, options(model, addresses=addresses))
    resolve_stage(options(model, addresses=addresses, runtime=RuntimeOptions(insecure=True)))
    assert "WITHOUT encryption" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensor_parallel_size": "2,1"}, "a stage has one size"),
        ({"tensor_parallel_size": "0"}, "not numbers from 1 up"),
        ({"tensor_parallel_size": "2", "engine": Engine.TRANSFORMERS}, "runs on one device"),
        ({"head_addr": "a:1"}, "--head-addr is for a headless stage 0"),
        ({"head_addr": "a:1", "headless": True}, "--head-addr is for a headless stage 0"),
        ({"headless": True, "engine": Engine.TRANSFORMERS}, "--headless is for vLLM"),
        ({"headless": True, "standby": 1}, "--standby is for a pipeline that survives"),
    ],
)
def test_options_that_contradict_each_other_are_refused(model: Path, changes: dict[str, Any], message: str) -> None:
    assert message in refusal(ExitCode.USAGE, options(model, **changes))


def test_a_stage_directory_remembers_the_name_and_the_commit_of_its_model(model: Path, tmp_path: Path) -> None:
    source = "hf://org/name@0123456789abcdef0123456789abcdef01234567"
    plan = plan_split(model, 2)
    write_split(plan, tmp_path / "stages", origin=Origin(source, read_samples))
    spec = resolve_stage(options(tmp_path / "stages/stage_1", runtime=RuntimeOptions()))
    assert (spec.source, spec.served_name) == (source, "org/name")
    named = resolve_stage(options(tmp_path / "stages/stage_1", runtime=RuntimeOptions(), served_name="mine"))
    assert (named.source, named.served_name) == (source, "mine")
    plain = resolve_stage(options(model, runtime=RuntimeOptions()))
    assert (plain.source, plain.served_name) == ("", "")
