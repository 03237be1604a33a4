# SPDX-License-Identifier: Apache-2.0
"""The embedded engine on a simulated device that is late: epochs that end under load change no token."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import toys
from conftest import ROOT
from toys import Ring, changed, ring_specs

pytest.importorskip("transformers")
sys.path.insert(0, str(ROOT / "scripts"))

import torch
from gpucheck.stub_device import StubDevice

from zpptool.engines.base import LOAD_MODEL
from zpptool.engines.staging import device as devices
from zpptool.engines.transformers.calls import STEP, Step, agreed_facts, decode_choice, encode_step
from zpptool.engines.transformers.sampling import SamplingParams
from zpptool.engines.transformers.unsplit import generate, load_unsplit
from zpptool.engines.transformers.worker import TransformersStage
from zpptool.ring.messages import Call
from zpptool.wire.link import StaleEpoch

pytestmark = pytest.mark.timeout(180)
DELAY_S = 0.01
TOKENS = 16
SEQUENCES = 4
EPOCHS = 4


class OneAtATime(TransformersStage):
    """transformers loads one model at a time in a process, where stages are threads."""

    loading = threading.Lock()

    def do(self, call: Call, payload: bytes) -> bytes | None:
        if call.method != LOAD_MODEL:
            return super().do(call, payload)
        with self.loading:
            return super().do(call, payload)


@pytest.fixture
def ring(tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ring]:
    """Three stages as threads of this process, each of which stages its tensors; they have loaded."""
    made: list[StubDevice] = []

    def late(_device: torch.device) -> StubDevice:
        made.append(StubDevice(computes_on_host=True, delay_s=DELAY_S, seed=len(made)))
        return made[-1]

    monkeypatch.setattr(devices, "device_apart", late)
    monkeypatch.setattr(toys.run_stage, "__defaults__", (OneAtATime,))
    model = str(tiny_model("llama", layers=6, initializer_range=0.5))
    ring_of_three = ring_specs(3, tmp_path, start_s=60.0, recovery_s=60.0)
    specs = [changed(spec, model=model, device="cpu") for spec in ring_of_three]
    ring = Ring(specs)
    try:
        ring.start()
        ring.head.gather(agreed_facts(specs[0]))
        ring.head.set_up(LOAD_MODEL, b"", timeout_s=60).result(60)
        yield ring
        assert ring.faults == []
    finally:
        ring.close()
        for device in made:
            device.close()
    assert len(made) == len(specs)


def answer(ring: Ring, number: int, sequence: int) -> list[int]:
    """The greedy tokens of one sequence."""
    token_ids, tokens = prompt_of(number), list[int]()
    sampling: SamplingParams | None = SamplingParams(temperature=0)
    while len(tokens) < TOKENS:
        step = ring.head.call(STEP, encode_step(Step(sequence, token_ids, sampling)), from_all=False)
        tokens.append(decode_choice(step.result(30)[0]).token)
        token_ids, sampling = tokens[-1:], None
    return tokens


def prompt_of(number: int) -> list[int]:
    return [2 + number, 50, 60 + number, 7]


def test_epochs_that_end_under_load_change_no_token(ring: Ring, tiny_model: Callable[..., Path]) -> None:
    unsplit = load_unsplit(tiny_model("llama", layers=6, initializer_range=0.5))
    right = [generate(unsplit, prompt_of(number), TOKENS) for number in range(SEQUENCES)]
    sequences = itertools.count()
    dropped = []

    def repeated(number: int) -> list[int]:
        while True:
            ring.head.wait_until_whole()
            try:
                return answer(ring, number, next(sequences))
            except StaleEpoch as over:
                dropped.append(over)

    with ThreadPoolExecutor(SEQUENCES) as pool:
        answers = [pool.submit(repeated, number) for number in range(SEQUENCES)]
        for _ in range(EPOCHS):
            time.sleep(0.3)
            ring.head.begin_epoch("a test wants it")
        assert [one.result(60) for one in answers] == right
    assert dropped
    assert ring.head.status().epoch == 1 + EPOCHS
