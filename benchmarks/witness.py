# SPDX-License-Identifier: Apache-2.0
"""What the witness costs: tokens a second of the embedded engine with each level, in turns.

    python benchmarks/witness.py MODEL --tokens 64 --rounds 7

The whole model runs as one stage in this process, once for each level, so that nothing but the witness differs: no
ring, no HTTP. Every round takes the levels in another order. Beside each median is how much longer a token takes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from zpptool.config.engine_kind import Engine
from zpptool.config.stage_spec import StageSpec
from zpptool.engines.transformers.calls import Step
from zpptool.engines.transformers.loading import load_config
from zpptool.engines.transformers.model import PartialModel, load_part
from zpptool.engines.transformers.sampling import Sampler, SamplingParams
from zpptool.engines.transformers.witness.stage import NO_WITNESS, RecordingWitness, StageWitness
from zpptool.witness.options import Level, WitnessOptions

GREEDY = SamplingParams()


class Side:
    """The model with one level of the witness."""

    def __init__(self, model: Path, level: Level, directory: str) -> None:
        layers = load_config(model).get_text_config(decoder=True).num_hidden_layers
        spec = StageSpec(Engine.TRANSFORMERS, str(model), ((0, layers),), 0, "", "")
        spec = spec.with_runtime(witness=WitnessOptions(level, directory), device="cpu")
        self.part: PartialModel = load_part(model, 0, spec.ranges)
        self.witness: StageWitness = RecordingWitness(spec, self.part) if spec.witness.is_on else NO_WITNESS
        self.record = spec.witness.record_file("stage-0")
        self._sequence = 0

    def run(self, prompt: list[int], tokens: int) -> float:
        """Answer one prompt; the tokens a second after the first."""
        self._sequence += 1
        sampler, ids = Sampler(GREEDY, prompt), prompt
        began = 0.0
        for number in range(tokens + 1):
            step = Step(self._sequence, ids, None if number else GREEDY)
            self.witness.begin(step, 0, ids)
            token = sampler(self.part.step(self._sequence, ids))
            self.witness.end(token=token)
            ids = [token]
            began = began or time.perf_counter()
        took = time.perf_counter() - began
        self.part.free(self._sequence)
        return tokens / took


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--levels", nargs="+", type=Level, default=[*Level], help="the first is what others are held against"
    )
    options = parser.parse_args()
    first, *_others = options.levels
    prompt = list(range(100, 132))
    speeds: dict[Level, list[float]] = {level: [] for level in options.levels}
    with tempfile.TemporaryDirectory() as scratch:
        directories = {level: Path(scratch) / level for level in options.levels}
        for directory in directories.values():
            directory.mkdir()
        sides = {level: Side(options.model, level, str(directories[level])) for level in options.levels}
        for side in sides.values():
            side.run(prompt, 4)
        for number in range(options.rounds):
            turn = number % len(options.levels)
            for level in options.levels[turn:] + options.levels[:turn]:
                speeds[level].append(sides[level].run(prompt, options.tokens))
    load = os.getloadavg()[0]
    print(f"{options.model.name}, {torch.get_num_threads()} threads, {options.rounds} rounds, load {load:.1f}")
    off = statistics.median(speeds[first])
    for level, each in speeds.items():
        paired = statistics.median(1 - got / without for got, without in zip(each, speeds[first], strict=True))
        speed = statistics.median(each)
        print(f"{level:<10}{speed:8.2f} tokens/s   {1000 * (1 / speed - 1 / off):6.2f} ms a token more than {first}")
        print(f"{'':<10}in its round {100 * paired:.1f} % slower (median)")


if __name__ == "__main__":
    main()
