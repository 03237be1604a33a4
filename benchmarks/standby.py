# SPDX-License-Identifier: Apache-2.0
"""How long streams pause when a stage is killed, without a spare process and with one.

    python benchmarks/standby.py [--model DIR] [--engine vllm] [--stages 3] [--rounds 5] [--streams 4]

Both sides are `zpptool serve` of the same model. They run at the same time, and a stage of each is killed in turn,
while the other side is idle and the spare is ready. A stall is the time from the SIGKILL of a stage to the next token
of any stream. The stage that is killed is another one in each round.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
READY_S = 600.0
TOKENS_BEFORE = 5


class Side:
    """One pipeline, served.

    Args:
        spares: its `--standby`.
        options: of the command line.
        directory: for its logs.
    """

    def __init__(self, spares: int, options: argparse.Namespace, directory: Path) -> None:
        self._spares, self._streams, self._tokens = spares, options.streams, options.tokens
        argv = [
            "serve", options.model, "--engine", options.engine, "--num-stages", options.stages, "--dtype", "float32",
            "--port", 0, "--standby", spares, "--log-dir", directory / "logs", "--served-model-name", "m",
        ]  # fmt: skip
        if options.engine == "vllm":
            argv += ["--", "--enforce-eager", "--max-model-len", "1024", "--kv-cache-memory-bytes", str(256 << 20)]
        self._stderr = directory / "stderr"
        with self._stderr.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "zpptool", *map(str, argv)], stdout=subprocess.DEVNULL, stderr=output
            )
        self._url = ""

    def until_ready(self) -> None:
        """Wait until requests are served, and the spares are ready."""
        deadline = time.monotonic() + READY_S
        while not self._is_ready():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise SystemExit(f"not ready:\n{self._stderr.read_text()[-3000:]}")
            time.sleep(0.2)

    def stall_s(self, stage: int) -> float:
        """Kill a stage in the middle of streams; return the seconds until the next token."""
        arrivals: list[list[float]] = [[] for _ in range(self._streams)]
        clients = [threading.Thread(target=self._stream, args=(times,)) for times in arrivals]
        for thread in clients:
            thread.start()
        while not all(len(times) >= TOKENS_BEFORE for times in arrivals):
            time.sleep(0.005)
        os.kill(self._status()["stages"][stage]["pid"], signal.SIGKILL)
        killed_at = time.monotonic()
        for thread in clients:
            thread.join()
        if any(len(times) != self._tokens for times in arrivals):
            raise SystemExit(f"responses of {[len(times) for times in arrivals]} tokens, not {self._tokens}")
        times = sorted(time for stream in arrivals for time in stream)
        longest = max(range(1, len(times)), key=lambda place: times[place] - times[place - 1])
        return times[longest] - killed_at

    def end(self) -> None:
        """Stop it."""
        self._process.terminate()
        self._process.wait()

    def _is_ready(self) -> bool:
        text = self._stderr.read_text(errors="replace")
        if " listens at " not in text:
            return False
        self._url = text.partition(" listens at ")[2].partition(";")[0]
        status = self._status()
        return bool(status["ready"]) and status["replicas"][0]["spares"] == self._spares

    def _status(self) -> dict[str, Any]:
        status: dict[str, Any] = httpx.get(f"{self._url}/pipeline/status", timeout=30, trust_env=False).json()
        return status

    def _stream(self, times: list[float]) -> None:
        body = {
            "model": "m", "prompt": "The capital of France is", "max_tokens": self._tokens, "ignore_eos": True,
            "temperature": 0, "stream": True, "return_token_ids": True,
        }  # fmt: skip
        with httpx.stream("POST", f"{self._url}/v1/completions", json=body, timeout=READY_S, trust_env=False) as lines:
            for line in lines.iter_lines():
                if line.startswith("data: {") and '"token_ids":[' in line.replace(" ", ""):
                    times.append(time.monotonic())


def main() -> None:
    """Measure, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / ".cache/models/SmolLM2-135M-Instruct")
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="vllm")
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=60)
    options = parser.parse_args()
    stalls: dict[int, list[float]] = {0: [], 1: []}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as ended:
        sides = {}
        for spares in stalls:
            directory = Path(scratch) / str(spares)
            directory.mkdir()
            sides[spares] = Side(spares, options, directory)
            ended.callback(sides[spares].end)
            sides[spares].until_ready()
        for turn in range(options.rounds):
            for spares, side in sides.items():
                side.until_ready()
                time.sleep(2)
                load, stage = os.getloadavg()[0], turn % options.stages
                stalls[spares].append(side.stall_s(stage))
                print(
                    f"stage {stage}, --standby {spares}: {stalls[spares][-1]:6.2f} s  (load {load:.1f})",
                    flush=True,
                )
                side.until_ready()
    without, with_one = (statistics.median(stalls[spares]) for spares in stalls)
    print(f"{options.engine}, {options.stages} stages, {options.streams} streams, median of {options.rounds}")
    print(f"--standby 0  {without:6.2f} s\n--standby 1  {with_one:6.2f} s   {without / with_one:.1f} x shorter")


if __name__ == "__main__":
    main()
