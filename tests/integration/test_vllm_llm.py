# SPDX-License-Identifier: Apache-2.0
"""`zpptool.LLM` in a script gives the results of `vllm.LLM`, with stages that it starts or that were started before. No
process is left running.

The model is tiny, with 16384 positions: one prompt has more than 8k tokens, one ends just before the last position.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from plugin import install_plugin
from served import wait_for
from stages import free_base_port, started

pytest.importorskip("vllm")

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1500)]

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests/offline.py"
TOLERANCE = 1e-4
"""The greatest difference of logprobs and embeddings in float32."""
START_S = 1000
ENGINE = (
    "--enforce-eager", "--max-model-len", "16384", "--no-enable-prefix-caching", "--max-num-batched-tokens", "512",
    "--kv-cache-memory-bytes", str(64 << 20), "--max-num-seqs", "8",
)  # fmt: skip


@pytest.fixture(scope="module")
def long_model(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model(
        "llama", hidden_size=128, intermediate_size=128, max_position_embeddings=16384, initializer_range=0.3
    )


def _with_plugins(installed: Path | None) -> dict[str, str]:
    """The environment in which vLLM finds the distributions in a directory."""
    found = (installed, ROOT, os.environ.get("PYTHONPATH"))
    return {"PYTHONPATH": os.pathsep.join(str(path) for path in found if path)}


class Script:
    """A user's script as a process, and the file of its results."""

    def __init__(
        self, directory: Path, which: str, model: Path, *, plugins: Path | None = None, **options: Any
    ) -> None:
        self.which = which
        name = f"{len(list(directory.iterdir()))}-{which}"
        self.made = directory / f"{name}.json"
        self.log = directory / f"{name}.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(SCRIPT), which, str(model), str(self.made), json.dumps(options)],
                stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", **_with_plugins(plugins)},
            )  # fmt: skip

    def result(self) -> Any:
        """The script's results. The exit code of vLLM alone is not tested: its threads abort the process now and
        then."""
        code = self.process.wait(START_S)
        assert self.made.exists(), self.log.read_text()[-3000:]
        assert code == 0 or self.which == "vllm", self.log.read_text()[-3000:]
        return json.loads(self.made.read_text())

    def tree(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Script]]:
    """Starts scripts; each is killed at the end if it is still running."""
    directory = tmp_path_factory.mktemp("scripts")
    running: list[Script] = []

    def start(*arguments: Any, **options: Any) -> Script:
        running.append(Script(directory, *arguments, **options))
        return running[-1]

    yield start
    for script in running:
        script.process.kill()


@pytest.fixture(scope="module")
def vllms(long_model: Path, scripts: Callable[..., Script]) -> Script:
    """The script with `vllm.LLM`."""
    return scripts("vllm", long_model)


def close(one: Any, other: Any) -> None:
    """Assert that both are equal, floats to `TOLERANCE`."""
    if isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            close(left, right)
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=TOLERANCE)
    else:
        assert one == other


def test_a_script_with_headless_stages_gives_vllms_results(
    long_model: Path, scripts: Callable[..., Script], vllms: Script, tmp_path: Path
) -> None:
    """Greedy, seeded, n, logprobs, prompt logprobs, chat. The stages were started before and end with the script."""
    base = free_base_port(4)
    links = ("--total-stages", 2, "--base-port", base, "--dtype", "float32", "--headless", "--", *ENGINE)
    commands = [(long_model, "--stage-idx", stage, *links) for stage in range(2)]
    with started(tmp_path, commands) as stages:
        ours = scripts("zpptool", long_model, num_stages=2, launch=False, base_port=base)
        tokens, logprobs, prompt_logprobs = ours.result()
        assert [stage.wait(30) for stage in stages] == [0, 0], stages[0].text()[-2000:]
    assert len({token for answer in tokens for choice in answer for token in choice}) > 20
    assert len(prompt_logprobs[1]) == 39
    assert "waits for its head at tcp://127.0.0.1:" in stages[0].text()
    close(vllms.result(), [tokens, logprobs, prompt_logprobs])


@pytest.mark.long
def test_stages_that_die_while_they_start_and_while_they_compute_change_nothing(
    long_model: Path, scripts: Callable[..., Script], vllms: Script
) -> None:
    """They are restarted, and what they had computed is computed again."""
    ours = scripts("zpptool", long_model, num_stages=2)
    workers = wait_for(lambda: [process for process in ours.tree() if is_worker(process)], START_S)
    workers[0].kill()
    wait_for(lambda: "all stages have loaded" in ours.log.read_text(), START_S)
    wait_for(lambda: "Processed prompts" in ours.log.read_text(), START_S)
    for worker in filter(is_worker, ours.tree()):
        worker.kill()
    close(vllms.result(), ours.result())
    log = ours.log.read_text()
    assert log.count("was killed by SIGKILL; it is started again") == 3, log[-3000:]
    assert "recovered: every stage knows the" in log


@pytest.mark.long
def test_embeddings_and_a_script_that_is_killed(
    long_model: Path, scripts: Callable[..., Script], tmp_path: Path
) -> None:
    """Equal to stock vLLM's, which reads its weights with the plugin. SIGKILL of the script ends stages and engine
    core."""
    pooling = {"runner": "pooling", "max_model_len": 2048}
    plugins = install_plugin(tmp_path / "plugins")
    expected = scripts("vllm", long_model, plugins=plugins, load_format="zpptool-own", **pooling)
    ours = scripts("zpptool", long_model, num_stages=2, hold=True, **pooling)
    wait_for(lambda: ours.made.exists() or ours.process.poll() is not None, START_S)
    assert ours.process.poll() is None, ours.log.read_text()[-3000:]
    processes = ours.tree()
    assert sum(map(is_worker, processes)) == 2
    ours.process.kill()
    assert psutil.wait_procs(processes, timeout=30)[1] == []
    close(expected.result(), json.loads(ours.made.read_text()))


def test_without_recovery_a_stage_that_dies_while_it_starts_is_the_scripts_error(
    long_model: Path, scripts: Callable[..., Script]
) -> None:
    """vLLM's engine core alone would wait ten minutes for it."""
    ours = scripts("zpptool", long_model, ranges=["0-1", "1-4"], recovery_deadline_s=0)
    workers = wait_for(lambda: [process for process in ours.tree() if is_worker(process)], START_S)
    workers[0].kill()
    assert ours.process.wait(START_S) == 1
    assert "was killed by SIGKILL" in ours.log.read_text()
    assert psutil.wait_procs(workers, timeout=30)[1] == []


def is_worker(process: psutil.Process) -> bool:
    try:
        return "zpptool.engines.vllm.worker" in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False
