# SPDX-License-Identifier: Apache-2.0
"""How long streams stand still when a stage is killed, without a spare process and with one.

    python benchmarks/standby.py [--model DIR] [--engine vllm] [--stages 3] [--rounds 5] [--streams 4]

Both sides are `zpptool serve` of the same model, up at once and killed in turns, each when the other is quiet and its
own spare is ready. A stall is the time from SIGKILL of a stage to the next token of any stream. The stages take turns.
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
        given: the command line.
        directory: for its logs.
    """

    def __init__(self, spares: int, given: argparse.Namespace, directory: Path) -> None:
        self._spares, self._streams, self._tokens = spares, given.streams, given.tokens
        words = [
            "serve", given.model, "--engine", given.engine, "--num-stages", given.stages, "--dtype", "float32",
            "--port", 0, "--standby", spares, "--log-dir", directory / "logs", "--served-model-name", "m",
        ]  # fmt: skip
        if given.engine == "vllm":
            words += ["--", "--enforce-eager", "--max-model-len", "1024", "--kv-cache-memory-bytes", str(256 << 20)]
        self._said = directory / "said"
        with self._said.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "zpptool", *map(str, words)], stdout=subprocess.DEVNULL, stderr=output
            )
        self._url = ""

    def until_ready(self) -> None:
        """Until requests are taken, and the spares are ready."""
        deadline = time.monotonic() + READY_S
        while not self._is_ready():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise SystemExit(f"not ready:\n{self._said.read_text()[-3000:]}")
            time.sleep(0.2)

    def stall_s(self, stage: int) -> float:
        """Kill a stage in the middle of streams; how long it is until the next token."""
        came: list[list[float]] = [[] for _ in range(self._streams)]
        asked = [threading.Thread(target=self._stream, args=(times,)) for times in came]
        for thread in asked:
            thread.start()
        while not all(len(times) >= TOKENS_BEFORE for times in came):
            time.sleep(0.005)
        os.kill(self._status()["stages"][stage]["pid"], signal.SIGKILL)
        killed_at = time.monotonic()
        for thread in asked:
            thread.join()
        if any(len(times) != self._tokens for times in came):
            raise SystemExit(f"answers of {[len(times) for times in came]} tokens, not {self._tokens}")
        times = sorted(time for stream in came for time in stream)
        longest = max(range(1, len(times)), key=lambda place: times[place] - times[place - 1])
        return times[longest] - killed_at

    def end(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()

    def _is_ready(self) -> bool:
        said = self._said.read_text(errors="replace")
        if " listens at " not in said:
            return False
        self._url = said.partition(" listens at ")[2].partition(";")[0]
        told = self._status()
        return bool(told["ready"]) and told["replicas"][0]["spares"] == self._spares

    def _status(self) -> dict[str, Any]:
        told: dict[str, Any] = httpx.get(f"{self._url}/pipeline/status", timeout=30, trust_env=False).json()
        return told

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
    """Kill, in turns."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, default=ROOT / ".cache/models/SmolLM2-135M-Instruct")
    options.add_argument("--engine", choices=("vllm", "transformers"), default="vllm")
    options.add_argument("--stages", type=int, default=3)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--streams", type=int, default=4)
    options.add_argument("--tokens", type=int, default=60)
    given = options.parse_args()
    stalls: dict[int, list[float]] = {0: [], 1: []}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as ended:
        sides = {}
        for spares in stalls:
            directory = Path(scratch) / str(spares)
            directory.mkdir()
            sides[spares] = Side(spares, given, directory)
            ended.callback(sides[spares].end)
            sides[spares].until_ready()
        for turn in range(given.rounds):
            for spares, side in sides.items():
                side.until_ready()
                time.sleep(2)
                load = os.getloadavg()[0]
                stalls[spares].append(side.stall_s(turn % given.stages))
                print(
                    f"stage {turn % given.stages}, --standby {spares}: {stalls[spares][-1]:6.2f} s  (load {load:.1f})",
                    flush=True,
                )
                side.until_ready()
    without, with_one = (statistics.median(stalls[spares]) for spares in stalls)
    print(f"{given.engine}, {given.stages} stages, {given.streams} streams, median of {given.rounds}")
    print(f"--standby 0  {without:6.2f} s\n--standby 1  {with_one:6.2f} s   {without / with_one:.1f} x shorter")


if __name__ == "__main__":
    main()
