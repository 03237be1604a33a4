# SPDX-License-Identifier: Apache-2.0
"""A trial logs its steps, and a process that ends is the error. Whole trials: test_embedded_pipeline.py."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from checkpoints import llama, llama_config, write_checkpoint

pytest.importorskip("transformers")
pytest.importorskip("httpx")

from zpptool.config.engine_kind import Engine
from zpptool.config.runtime_options import RuntimeOptions
from zpptool.errors import ZppError
from zpptool.log import LogFormat, LogLevel, configure
from zpptool.parity.trial import run_trial
from zpptool.parity.trial_plan import TrialOptions, plan_trial


@pytest.mark.usefixtures("own_logging")
def test_a_server_that_ends_is_the_error_and_leaves_no_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(LogLevel.INFO, LogFormat.TEXT)
    model = write_checkpoint(tmp_path / "model", llama(layers=4), llama_config(layers=4))
    options = TrialOptions(
        engine=Engine.TRANSFORMERS, model=model, pipeline_dir=None, num_stages=2, ranges=(), prompts=("hello",),
        as_chat=False, with_long_prompts=False, batched=False, max_new_tokens=8, dtype="auto",
        gpu_ids=(), base_port=None, api_port=None, engine_args=(),
        runtime=RuntimeOptions(device="cpu", start_timeout_s=100.0, step_timeout_s=5.0),
    )  # fmt: skip
    plan = plan_trial(options, tmp_path, tmp_path)
    (model / "config.json").unlink()
    with pytest.raises(ZppError, match="the unsplit model exited with"):
        run_trial(plan)
    assert f"the unsplit model, {model}, on transformers: starting\n" in capsys.readouterr().err
    assert psutil.Process().children(recursive=True) == []
