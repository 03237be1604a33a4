# SPDX-License-Identifier: Apache-2.0
"""examples/slurm runs as a job of three tasks on one machine; `srun` and `scontrol` are stand-ins, all else is real."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("transformers")

pytestmark = [pytest.mark.torch, pytest.mark.long, pytest.mark.timeout(400)]

SLURM = Path(__file__).resolve().parents[2] / "examples/slurm"
STAND_INS = {
    "scontrol": "printf '127.0.0.1\\n127.0.0.1\\n127.0.0.1\\n'",
    "srun": """while [[ $1 == --* ]]; do shift; done
pids=()
trap 'kill -TERM "${pids[@]}"; wait' TERM
for SLURM_PROCID in 0 1 2; do export SLURM_PROCID; "$@" >"$RUN/task-$SLURM_PROCID.log" 2>&1 & pids+=($!); done
wait""",
    "zpptool": f'exec {sys.executable} -m zpptool "$@"',
}


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def test_a_job_of_three_tasks_is_a_pipeline(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    for name, body in STAND_INS.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/usr/bin/env bash\n{body}\n")
        program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "n[1-3]",
        "STAGE_SCRIPT": str(SLURM / "stage.sh"),
        "ENGINE": "transformers",
        "DEVICE": "cpu",
        "API_PORT": str(free_port()),
        "START_S": "200",
        "OMP_NUM_THREADS": "1",
    }
    work = ["bash", "-c", 'zpptool complete "one two" --max-tokens 4 --json --url "${OPENAI_BASE_URL%/v1}"']
    command = ["bash", SLURM / "pipeline.sbatch", tiny_model("llama", layers=6), *work]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=350, check=False
    )
    logs = "".join(path.read_text() for path in (tmp_path / "zpptool-7").glob("task-*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    assert '"finish_reason": "length"' in done.stdout
