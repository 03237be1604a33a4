# SPDX-License-Identifier: Apache-2.0
"""A step that fails in a stage again and again: at the first start the pipeline ends with the reason; later only the
head is restarted, and its stages continue."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("vllm")
pytest.importorskip("httpx")

import httpx

from tests.served import Served, wait_for

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

START_S = 450
FAILING = '''
from pathlib import Path

from vllm.v1.sample.logits_processor import LogitsProcessor


class Failing(LogitsProcessor):
    """Fails while its file exists."""

    def __init__(self, vllm_config, device, is_pin_memory):
        pass

    def is_argmax_invariant(self):
        return False

    def update_state(self, batch_update):
        pass

    def apply(self, logits):
        if Path({file!r}).exists():
            raise RuntimeError("this step was made to fail")
        return logits
'''


@pytest.mark.long
def test_a_step_that_fails_every_time(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / "bad"
    (tmp_path / "failing_step.py").write_text(FAILING.format(file=str(bad)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", os.getcwd()))))
    model = tiny_model("llama", hidden_size=128, intermediate_size=128, initializer_range=0.3)
    command = (
        model, "--num-stages", 2, "--engine", "vllm", "--served-model-name", "tiny", "--dtype", "float32", "--",
        "--enforce-eager", "--kv-cache-memory-bytes", 64 << 20, "--max-model-len", 256,
        "--logits-processors", "failing_step:Failing",
    )  # fmt: skip
    bad.touch()
    (tmp_path / "first").mkdir()
    first = Served(tmp_path / "first", *command)
    try:
        assert first.process.wait(START_S) == 6
        assert "head exited with code 1" in first.text()
        assert "this step was made to fail" in first.text()
        assert "it is started again" not in first.text()
    finally:
        first.close()
    bad.unlink()
    (tmp_path / "second").mkdir()
    second = Served(tmp_path / "second", *command)
    try:
        second.until_ready(within_s=START_S)
        before = second.look()
        bad.touch()
        request = {"model": "tiny", "prompt": "one two", "max_tokens": 4, "temperature": 0}
        with (
            httpx.Client(base_url=second.url, timeout=START_S, trust_env=False) as client,
            ThreadPoolExecutor() as pool,
        ):
            answer = pool.submit(client.post, "/v1/completions", json=request)  # repeated by the front
            second.find("head exited with code 1; it is started again")
            bad.unlink()
            assert answer.result(START_S).status_code == httpx.codes.OK
        wait_for(lambda: second.look().keys() == before.keys())
        after = second.look()
        assert [after[name] == before[name] for name in ("stage 0", "stage 1", "head")] == [True, True, False]
    finally:
        second.close()
