# SPDX-License-Identifier: Apache-2.0
"""What a stage reads to load its tensors: from the full checkpoint, from its own directory, and by vLLM's own loader.

    python benchmarks/loading.py [--model DIR] [--stages 3] [--rounds 5]

Each load is a process of its own with the checkpoint's pages dropped from the page cache (`posix_fadvise`), in another
order each round. `asked` are the bytes that read calls returned, `disk` what came from the disk, both as parts of the
stage's own bytes; `s` is the time from asking for the tensors to having them all. vLLM's loader reads every shard and
skips a stage's missing layers only then; what it maps instead of reading shows in `disk` alone.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from zpptool.checkpoint.stage_tensors import count_layers, load_plan
from zpptool.partition import LayerRange, Partition, even_partition

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Load every stage in every way, in turns."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", type=Path, default=ROOT / ".cache/models/SmolLM2-135M-Instruct")
    options.add_argument("--stages", type=int, default=3)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--load", nargs=4, metavar=("WAY", "DIR", "STAGE", "RANGES"), help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.load:
        load(given.load[0], Path(given.load[1]), int(given.load[2]), msgspec.json.decode(given.load[3]))
        return
    partition = even_partition(count_layers(given.model), given.stages)
    with tempfile.TemporaryDirectory(dir=ROOT) as scratch:
        subprocess.run(
            [sys.executable, "-m", "zpptool", "split", given.model, "--num-stages", str(given.stages),
             "--output-dir", Path(scratch) / "stages", "--quiet", "--mode", "copy"],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        compare(given.model, Path(scratch) / "stages", partition, given.rounds)


def compare(model: Path, stages: Path, partition: Partition, rounds: int) -> None:
    """Print one line for each stage and way."""
    turns = [
        (stage, way, stages / f"stage_{stage}" if way == "pre-split" else model)
        for stage in range(len(partition))
        for way in ("dynamic", "pre-split", "vllm")
    ]
    taken: dict[tuple[int, str], list[dict[str, float]]] = {turn[:2]: [] for turn in turns}
    ranges = msgspec.json.encode([[own.start, own.end] for own in partition]).decode()
    for _round in range(rounds):
        for stage, way, directory in random.sample(turns, len(turns)):
            drop_pages(directory)
            words = [sys.executable, __file__, "--load", way, str(directory), str(stage), ranges]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            taken[stage, way].append(msgspec.json.decode(done.stdout.splitlines()[-1]))
    print(f"{len(partition)} stages of {model.name}, {rounds} rounds, load {os.getloadavg()[0]:.1f}")
    for (stage, way), results in taken.items():
        own = sum(info.nbytes for info in load_plan(model, stage, partition))
        asked, disk, seconds = (statistics.median(one[what] for one in results) for what in ("asked", "disk", "s"))
        parts = f"asked {asked / own:.4f} x, disk {disk / own:.4f} x"
        print(f"stage {stage} {way:>9}  {own / 1e6:7.1f} MB of its own, {parts}, {seconds:.3f} s")


def drop_pages(directory: Path) -> None:
    """Have the kernel forget the weights, so that reading them is reading the disk."""
    for file in directory.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def load(way: str, directory: Path, stage: int, ranges: list[list[int]]) -> None:
    """In a process of its own: load, and print what it took as JSON."""
    import torch  # noqa: F401
    from safetensors.torch import safe_open

    from zpptool.engines.weights import read_tensors

    partition = tuple(LayerRange(start, end) for start, end in ranges)
    before, began = _io(), time.monotonic()
    if way == "vllm":
        for file in sorted(directory.glob("*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    opened.get_tensor(name).clone()
    else:
        for _name, _tensor in read_tensors(load_plan(directory, stage, partition)):
            pass
    took, after = time.monotonic() - began, _io()
    asked, disk = after["rchar"] - before["rchar"], after["read_bytes"] - before["read_bytes"]
    print(msgspec.json.encode({"asked": asked, "disk": disk, "s": took}).decode())


def _io() -> dict[str, int]:
    lines = Path("/proc/self/io").read_text().splitlines()
    return {name: int(value) for name, value in (line.split(": ") for line in lines)}


if __name__ == "__main__":
    main()
