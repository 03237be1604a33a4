# SPDX-License-Identifier: Apache-2.0
"""Time the commands that only plan on a checkpoint of 1.3 TB, which lies on no disk: its tensors are holes.

    python benchmarks/scale.py --rounds 3

The checkpoint has the names, dtypes and shapes of a large mixture of experts with block-scaled weights: 163 shards,
some 90,000 tensors. Wall time, processor time and peak memory are printed for each command; a plan has to stand in 3 s
and 250 MB.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

LAYERS, DENSE_LAYERS, EXPERTS, SHARDS = 61, 3, 256, 163
HIDDEN, VOCABULARY, BLOCK = 7168, 129280, 128
BYTES = {"BF16": 2, "F32": 4}
LIMIT_S, LIMIT_MB = 3.0, 250.0

Kind = tuple[str, str, list[int]]


def scaled(name: str, shape: list[int]) -> Iterator[Kind]:
    """A weight and its scales, one for each block."""
    yield f"{name}.weight", "BF16", shape
    yield f"{name}.weight_scale_inv", "F32", [-(-size // BLOCK) for size in shape]


def mlp(prefix: str, width: int) -> Iterator[Kind]:
    """The three projections of a feed-forward part."""
    yield from scaled(f"{prefix}.gate_proj", [width, HIDDEN])
    yield from scaled(f"{prefix}.up_proj", [width, HIDDEN])
    yield from scaled(f"{prefix}.down_proj", [HIDDEN, width])


def tensors() -> Iterator[Kind]:
    """Name, dtype and shape of every tensor."""
    yield "model.embed_tokens.weight", "BF16", [VOCABULARY, HIDDEN]
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", "BF16", [HIDDEN]
        yield f"{prefix}.post_attention_layernorm.weight", "BF16", [HIDDEN]
        for name, shape in (("q_a_proj", [1536, HIDDEN]), ("q_b_proj", [24576, 1536]), ("o_proj", [HIDDEN, 16384])):
            yield from scaled(f"{prefix}.self_attn.{name}", shape)
        if layer < DENSE_LAYERS:
            yield from mlp(f"{prefix}.mlp", 18432)
            continue
        yield f"{prefix}.mlp.gate.weight", "BF16", [EXPERTS, HIDDEN]
        for expert in range(EXPERTS):
            yield from mlp(f"{prefix}.mlp.experts.{expert}", 2048)
    yield "model.norm.weight", "BF16", [HIDDEN]
    yield "lm_head.weight", "BF16", [VOCABULARY, HIDDEN]


def make_checkpoint(directory: Path) -> tuple[int, int]:
    """Write headers, index and config; returns the number of tensors and their bytes."""
    kinds = list(tensors())
    per_shard = -(-len(kinds) // SHARDS)
    weight_map, total = {}, 0
    for shard in range(SHARDS):
        header, reached = {}, 0
        file = f"model-{shard + 1:05}-of-{SHARDS:06}.safetensors"
        for name, dtype, shape in kinds[shard * per_shard : (shard + 1) * per_shard]:
            end = reached + BYTES[dtype] * math.prod(shape)
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [reached, end]}
            weight_map[name], reached = file, end
        raw = json.dumps(header, separators=(",", ":")).encode()
        with (directory / file).open("wb") as stream:
            stream.write(len(raw).to_bytes(8, "little") + raw)
            stream.truncate(8 + len(raw) + reached)
        total += reached
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "num_hidden_layers": LAYERS,
        "hidden_size": HIDDEN,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return len(kinds), total


def timed(words: list[str]) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and peak resident MB of `zpptool` with these words."""
    start = time.monotonic()
    with subprocess.Popen([sys.executable, "-m", "zpptool", *words], stdout=subprocess.DEVNULL) as process:
        _pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"zpptool {words} failed with {process.returncode}")
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


def main() -> None:
    """Make the checkpoint, time each command, print its best round; exit 1 where a limit is passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, default=None, help="where to make the temporary directory")
    given = parser.parse_args()
    passed = True
    with tempfile.TemporaryDirectory(dir=given.dir) as folder:
        count, total = make_checkpoint(Path(folder))
        print(f"{SHARDS} shards, {count} tensors, {total / 1e12:.2f} TB; load {os.getloadavg()[0]:.1f}")
        for words in (
            ["validate-ranges", "--model", folder, "--num-stages", "4"],
            ["split", folder, "--num-stages", "4", "--dry-run"],
            ["split", folder, "--num-stages", "4", "--dry-run", "--json", "--quiet"],
            ["split", folder, "--num-stages", "4", "--stage", "2", "--dry-run"],
            ["split", folder, "--num-stages", "4", "--explain"],
        ):
            wall, processor, memory = min(timed(words) for _round in range(given.rounds))
            shown = " ".join(word for word in words if word != folder)
            print(f"{shown:55} {wall:5.2f} s  processor {processor:5.2f} s  peak {memory:4.0f} MB")
            passed &= wall <= LIMIT_S and memory <= LIMIT_MB
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
