# SPDX-License-Identifier: Apache-2.0
"""Time `zpptool split` against `cp` of the same bytes, durable or not, in turns; and sample RssAnon.

    python benchmarks/split.py --gib 2 --rounds 5

A sharded checkpoint of random bytes is made in a temporary directory (twice its size is needed there). Each round
runs every side once, each after a `sync`, beginning with another one each time; medians, their ratios to `cp` (of the
same kind: synced or not) and the peak of RssAnon are printed. The load average stands beside each round, since a busy
machine shifts the ratio: hashing takes processor time that `cp` does not. With `--load-all` the plain way runs too:
load every tensor with safetensors, save those of each stage.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from zpptool.checkpoint.header import TensorInfo, write_header

SHARDS = 4
LAYERS_PER_SHARD = 6
SAMPLE_S = 0.005
CP, UNSYNCED_CP = "cp", "cp, not synced"
NO_SYNC = "--no-sync"
"""With it the bytes are in memory when a split ends, and not yet on the disk, as `cp` leaves them."""


def make_checkpoint(directory: Path, total_bytes: int) -> None:
    """Write a Llama-shaped checkpoint of about `total_bytes` in `SHARDS` shards."""
    layers = SHARDS * LAYERS_PER_SHARD
    width = 1024
    rows = total_bytes // (2 * width) // (7 * layers + 2)
    names = [f"model.layers.{layer}.part_{part}.weight" for layer in range(layers) for part in range(7)]
    names = ["model.embed_tokens.weight", *names, "lm_head.weight"]
    weight_map = {}
    per_shard = -(-len(names) // SHARDS)
    for shard in range(SHARDS):
        own = names[shard * per_shard : (shard + 1) * per_shard]
        file = directory / f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        infos = [TensorInfo(name, "BF16", (rows, width), file, 0, rows * width * 2) for name in own]
        with file.open("wb") as stream:
            stream.write(write_header(infos, {"format": "pt"}))
            for info in infos:
                stream.write(os.urandom(info.nbytes))
        weight_map |= dict.fromkeys(own, file.name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = {"num_hidden_layers": layers, "hidden_size": width, "vocab_size": rows, "tie_word_embeddings": False}
    (directory / "config.json").write_text(json.dumps(config))


LOAD_ALL = """
import sys
from pathlib import Path
from safetensors.torch import load_file, save_file
source, target, stages = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
tensors = {}
for path in sorted(source.glob("*.safetensors")):
    tensors |= load_file(path)
names = list(tensors)
for stage in range(stages):
    own = names[stage * len(names) // stages : (stage + 1) * len(names) // stages]
    (target / str(stage)).mkdir(parents=True)
    save_file({name: tensors[name] for name in own}, target / str(stage) / "model.safetensors")
"""


def commands(source: Path, target: Path, stages: int, *, load_all: bool) -> dict[str, list[str]]:
    """What is timed, by name."""
    split = [sys.executable, "-m", "zpptool", "split", str(source), "--num-stages", str(stages), "-o", str(target)]
    sides = {
        CP: ["cp", "-r", str(source), str(target)],
        UNSYNCED_CP: ["cp", "-r", str(source), str(target)],
        "split": [*split, "--quiet"],
        "split --no-hash": [*split, "--quiet", "--no-hash"],
        f"split {NO_SYNC}": [*split, "--quiet", NO_SYNC],
        f"split --no-hash {NO_SYNC}": [*split, "--quiet", "--no-hash", NO_SYNC],
    }
    if load_all:
        sides["load all, save all"] = [sys.executable, "-c", LOAD_ALL, str(source), str(target), str(stages)]
    return sides


def is_synced(name: str) -> bool:
    """Whether that side is timed until its bytes are on the disk."""
    return name != UNSYNCED_CP and NO_SYNC not in name


def timed(command: list[str], target: Path, *, synced: bool) -> tuple[float, int]:
    """Seconds until a command has ended and, if asked, all it wrote is on the disk; and its peak anonymous memory."""
    start = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(SAMPLE_S)
        if process.returncode:
            raise SystemExit(f"{command[:4]} failed with {process.returncode}")
    for path in [target, *target.rglob("*")] if synced else []:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    return time.monotonic() - start, peak


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def main() -> None:
    """Make the checkpoint, run the rounds, print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stages", type=int, default=3)
    parser.add_argument("--load-all", action="store_true", help="also load and save all; needs torch and safetensors")
    parser.add_argument("--dir", type=Path, default=None, help="where to make the temporary directory")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.dir) as folder:
        source, target = Path(folder, "model"), Path(folder, "made")
        source.mkdir()
        make_checkpoint(source, int(given.gib * 2**30))
        total = sum(path.stat().st_size for path in source.iterdir())
        sides = commands(source, target, given.stages, load_all=given.load_all)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        peaks = dict.fromkeys(sides, 0)
        for place in range(given.rounds):
            names = [*sides][place % len(sides) :] + [*sides][: place % len(sides)]
            load = os.getloadavg()[0]
            for name in names:
                os.sync()
                took, peak = timed(sides[name], target, synced=is_synced(name))
                shutil.rmtree(target)
                seconds[name].append(took)
                peaks[name] = max(peaks[name], peak)
            print("   ".join(f"{name} {seconds[name][-1]:.2f} s" for name in sides), f"  load {load:.1f}", flush=True)
    print(f"{total / 2**30:.2f} GiB in {given.stages} stages, median of {given.rounds} rounds")
    for name, took in seconds.items():
        own, copy = statistics.median(took), statistics.median(seconds[CP if is_synced(name) else UNSYNCED_CP])
        rate, memory = total / own / 1e9, peaks[name] / 2**20
        print(f"{name:26} {own:6.2f} s  {rate:5.2f} GB/s  {own / copy:5.2f} x cp  RssAnon {memory:.0f} MiB")


if __name__ == "__main__":
    main()
