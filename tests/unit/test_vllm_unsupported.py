# SPDX-License-Identifier: Apache-2.0
"""What stages do not support, and what vLLM itself does not support across them, is refused in one sentence with exit
code 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Ran

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from zpptool.config.engine_kind import Engine  # noqa: E402
from zpptool.config.stage_spec import StageSpec  # noqa: E402
from zpptool.engines.vllm.compat.arguments import serve_arguments  # noqa: E402
from zpptool.engines.vllm.compat.engine_config import engine_config  # noqa: E402
from zpptool.engines.vllm.compat.unsupported import REFUSALS, refuse_scores_on_a_stage, vllms_refusal  # noqa: E402
from zpptool.engines.vllm.core.executor import RingExecutor  # noqa: E402
from zpptool.errors import ExitCode, ZppError  # noqa: E402

DOCS = Path(__file__).resolve().parents[2] / "docs/compatibility.md"
VALUES = {
    "--async-scheduling": (), "--speculative-config": ('{"method": "ngram", "num_speculative_tokens": 2}',),
    "--spec-method": ("ngram",), "--spec-model": ("draft",),
    "--kv-transfer-config": ('{"kv_connector": "ExampleConnector", "kv_role": "kv_both"}',),
    "--ec-transfer-config": ('{"ec_connector": "ExampleConnector", "ec_role": "ec_both"}',),
    "--kv-offloading-size": ("1",), "--weight-transfer-config": ('{"backend": "nccl"}',), "--nnodes": ("2",),
    "--mm-processor-cache-type": ("shm",), "--video-pruning-rate": ("0.5",), "--mm-encoder-only": (),
    "--decode-context-parallel-size": ("2",), "--prefill-context-parallel-size": ("2",), "--api-server-count": ("2",),
}  # fmt: skip


def refused(model: Path, *arguments: str) -> ZppError:
    """The error of a stage that is started with these engine arguments."""
    spec = StageSpec(
        engine=Engine.VLLM, model=str(model), partition=((0, 2), (2, 4)), stage=0, bind="", connect="",
        engine_args=("--enforce-eager", *arguments),
    )  # fmt: skip
    with pytest.raises(ZppError) as fault:
        engine_config(serve_arguments(spec, RingExecutor))
    assert fault.value.exit_code is ExitCode.USAGE
    assert "\n" not in fault.value.message
    return fault.value


@pytest.mark.parametrize("spelling", ["-pp=2", "--pipeline_parallel_size=2", "--pipeline-parallel-s=2", "file"])
def test_the_number_of_stages_is_decided_by_zpptool(
    tiny_model: Callable[..., Path], tmp_path: Path, spelling: str
) -> None:
    if spelling == "file":
        (tmp_path / "own.yaml").write_text("pipeline-parallel-size: 2\n")
        arguments = ["--config", str(tmp_path / "own.yaml")]
    else:
        arguments = [spelling]
    assert "--pipeline-parallel-size after --" in refused(tiny_model("llama"), *arguments).message


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.flag)
def test_an_unsupported_feature_is_refused_with_its_reason(tiny_model: Callable[..., Path], refusal) -> None:
    message = refused(tiny_model("llama"), refusal.flag, *VALUES[refusal.flag]).message
    assert message == f"{refusal.flag} does not work across stages: {refusal.reason}"
    assert f"`{refusal.flag}`" in DOCS.read_text()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--max-model-len", "100000"), "max_model_len"),
        (("--enable-return-routed-experts",), "vLLM refuses this"),
        (("--quantization", "awq"), "vLLM refuses this"),
    ],
    ids=["length", "routed experts", "quantization"],
)
def test_what_vllm_refuses_is_refused_with_its_message(
    tiny_model: Callable[..., Path], arguments: tuple[str, ...], expected: str
) -> None:
    assert expected in refused(tiny_model("llama"), *arguments).message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--no-such-flag", "3"), "unrecognized arguments: --no-such-flag 3"),
        (("--max_model_lenn", "64"), "(did you mean --max-model-len?)"),
        (("--max-model-len", "many"), "--max-model-len"),
        (("--dtype", "float13"), "--dtype: invalid choice: 'float13'"),
        (("--max-num-seqs",), "--max-num-seqs: expected one argument"),
        (("--tensor-parallel-size", "2"), "Give --tensor-parallel-size before the --"),
    ],
    ids=["unknown", "mistyped", "no number", "dtype", "no value", "tensor parallel"],
)
def test_arguments_that_vllm_does_not_know_are_reported_in_one_line(
    tiny_model: Callable[..., Path], capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], expected: str
) -> None:
    fault = refused(tiny_model("llama"), *arguments)
    assert expected in f"{fault.message} {fault.hint}"
    assert "usage:" not in capfd.readouterr().err


def test_a_model_that_needs_torchvision_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM imports a model's class in another process, and says only that it failed; a processor's import names it."""
    inspected = ValueError("Model architectures ['LlavaForConditionalGeneration'] failed to be inspected.")
    processor = ValueError("no processor")
    processor.__cause__ = ImportError("PixtralImageProcessor requires the Torchvision library")
    broken = RuntimeError("operator torchvision::nms does not exist")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    for cause in (inspected, processor, broken):
        fault = vllms_refusal(cause)
        assert fault is not None
        assert fault.exit_code is ExitCode.USAGE
        assert "needs torchvision" in fault.message
        assert "pytorch.org/get-started" in (fault.hint or "")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: object())
    assert vllms_refusal(inspected) is None


def test_scoring_that_would_keep_a_query_on_the_last_stage_is_refused() -> None:
    with pytest.raises(ZppError, match="would be kept on the last stage") as fault:
        refuse_scores_on_a_stage("late-interaction", on_the_last_stage=True)
    assert fault.value.exit_code is ExitCode.USAGE
    assert "--no-enable-flash-late-interaction" in (fault.value.hint or "")
    refuse_scores_on_a_stage("late-interaction", on_the_last_stage=False)
    refuse_scores_on_a_stage("bi-encoder", on_the_last_stage=True)


def test_a_model_without_pipeline_parallelism_is_refused(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    config = tiny_model("llama") / "config.json"
    for file in config.parent.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(
        config.read_text().replace("LlamaForCausalLM", "WhisperForConditionalGeneration")
    )
    assert "vLLM refuses this" in refused(tmp_path).message


@pytest.mark.timeout(300)
def test_a_user_sees_one_sentence_and_exit_code_2(zpptool: Callable[..., Ran], tiny_model: Callable[..., Path]) -> None:
    command = ("run-stage", tiny_model("llama"), "--stage-idx", "0", "--total-stages", "2", "--", "--nnodes", "2")
    ran = zpptool(*command, timeout_s=240)
    assert ran.code == 2, ran.err
    assert "error: --nnodes does not work across stages: each stage is started where" in ran.err
    assert "Traceback" not in ran.err
