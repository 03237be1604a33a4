# SPDX-License-Identifier: Apache-2.0
"""A step that fails on one stage fails only its own sequence: each later step still gets its own tensors."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("transformers")

from toys import changed, ring_specs, run_stage

from zpptool.config.stage_spec import StageSpec
from zpptool.engines.base import LOAD_MODEL
from zpptool.engines.transformers.calls import agreed_facts
from zpptool.engines.transformers.ring_model import RingModel
from zpptool.engines.transformers.ring_sequence import RingSequence
from zpptool.engines.transformers.sampling import SamplingParams
from zpptool.engines.transformers.unsplit import generate, load_unsplit
from zpptool.engines.transformers.worker import TransformersStage
from zpptool.errors import ExitCode, ZppError
from zpptool.ring.head.node import HeadNode
from zpptool.ring.membership import open_head_node
from zpptool.ring.stage.node import StageNode

pytestmark = [pytest.mark.torch, pytest.mark.timeout(60)]

NUM_SEQUENCES = 6
TOKENS = 8


loading = threading.Lock()


class ThreadStage(TransformersStage):
    """A stage as a thread. transformers modifies torch while it builds a model, so only one thread may load at a
    time."""

    made: ClassVar[list[TransformersStage]] = []

    def __init__(self, spec: StageSpec, node: StageNode) -> None:
        super().__init__(spec, node)
        self.made.append(self)

    def _load(self) -> bytes:
        with loading:
            return super()._load()


class FullStage(ThreadStage):
    """A stage that runs out of memory in the step of one sequence after `steps_left` steps of it."""

    sequence = 3
    steps_left = 2

    def _load(self) -> bytes:
        answer = super()._load()
        step, left = self._part.step, self.steps_left

        def out_of_memory(sequence: int, inputs: Any, media: Any = None) -> Any:
            nonlocal left
            if sequence == self.sequence:
                left -= 1
                if left < 0:
                    raise MemoryError("no room for this sequence")
            return step(sequence, inputs, media)

        self._part.step = out_of_memory
        return answer


@contextmanager
def ring(specs: list[StageSpec], full: int) -> Iterator[HeadNode]:
    """A head, and the stages as threads of this process, loaded; stage `full` is a `FullStage`."""
    kinds: list[Callable[[StageSpec, StageNode], TransformersStage]] = [ThreadStage] * len(specs)
    kinds[full] = FullStage
    ThreadStage.made.clear()
    with ThreadPoolExecutor(len(specs)) as pool:
        stages = [pool.submit(run_stage, spec, kind) for spec, kind in zip(specs, kinds, strict=True)]
        head = open_head_node(specs[0])
        try:
            head.gather(agreed_facts(specs[0]))
            head.call(LOAD_MODEL, b"", from_all=True).result(30)
            yield head
        finally:
            head.stop("the test is over")
            head.close()
    assert [stage.result(5) for stage in stages] == [None] * len(specs)


@pytest.mark.parametrize("full", [0, 1, 2])
def test_a_step_that_fails_on_one_stage_fails_only_its_own_sequence(
    full: int, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = tiny_model("llama", layers=3, initializer_range=0.5)
    specs = [
        changed(spec, model=str(model), partition=((0, 1), (1, 2), (2, 3)), device="cpu")
        for spec in ring_specs(3, tmp_path)
    ]
    prompts = [[5 + n, 80 - n, 7] for n in range(NUM_SEQUENCES)]
    sampling = [SamplingParams(0.7, seed=n) for n in range(NUM_SEQUENCES)]
    with ring(specs, full) as head, closing(RingModel(head)) as ring_model:
        streams = [ring_model.generate(prompts[n], TOKENS, (), sampling[n]) for n in range(NUM_SEQUENCES)]
        # First one after the other, so that sequences are numbered in the order of the prompts; then all at once.
        answers: list[list[int] | ZppError] = [[next(stream).token] for stream in streams]

        def the_rest(n: int) -> list[int] | ZppError:
            try:
                return [*answers[n], *(choice.token for choice in streams[n])]
            except ZppError as fault:
                return fault

        with ThreadPoolExecutor(NUM_SEQUENCES) as pool:
            answers = list(pool.map(the_rest, range(NUM_SEQUENCES)))
        cancelled = ring_model.generate(prompts[0], TOKENS, (), sampling[0])
        next(cancelled)
        cancelled.close()
        again = [choice.token for choice in ring_model.generate(prompts[3], TOKENS, (), sampling[3])]
        assert head.fault is None, "the pipeline continues"

    for stage in ThreadStage.made:
        assert stage._part._sequences == stage._samplers == {}, (
            "finished, failed or cancelled: every sequence is forgotten"
        )
    failed = answers[FullStage.sequence]
    assert isinstance(failed, ZppError)
    assert failed.exit_code == ExitCode.STAGE
    assert failed.message == f"stage {full}: step failed: MemoryError: no room for this sequence"
    whole = load_unsplit(model)
    expected = [generate(whole, prompts[n], TOKENS, (), sampling[n]) for n in range(NUM_SEQUENCES)]
    answers[FullStage.sequence] = again
    assert answers == expected
    assert len({tuple(answer) for answer in expected}) == NUM_SEQUENCES


def test_a_call_that_the_engine_does_not_know_is_refused(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    model = str(tiny_model("llama", layers=3, initializer_range=0.5))
    specs = [
        changed(spec, model=model, partition=((0, 1), (1, 2), (2, 3)), device="cpu") for spec in ring_specs(3, tmp_path)
    ]
    with ring(specs, 0) as head, pytest.raises(ZppError, match="sleep is not a call that the transformers engine"):
        head.call("sleep", b"", from_all=False).result(10)


def abandoned(sequence: RingSequence) -> Generator[int, None, None]:
    """The tokens of a sequence that is closed when this generator is, also by the garbage collection."""
    try:
        while True:
            yield next(sequence).token
    finally:
        sequence.close()


def test_a_garbage_collection_inside_a_link_call_ends_a_sequence_and_nothing_else(
    tiny_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that collects an abandoned generator has the link's socket just then, so it must not use the link."""
    model = str(tiny_model("llama", layers=3, initializer_range=0.5))
    specs = [
        changed(spec, model=model, partition=((0, 1), (1, 2), (2, 3)), device="cpu") for spec in ring_specs(3, tmp_path)
    ]
    with ring(specs, 0) as head, closing(RingModel(head)) as ring_model:
        turn = head._downstream._turn
        enter, thread, collected = turn.enter, threading.current_thread(), []

        def enter_and_collect(*args: Any) -> None:
            enter(*args)
            if threading.current_thread() is thread and not collected:
                collected.append(gc.collect())

        tokens = abandoned(ring_model.generate([5, 6], TOKENS, (), SamplingParams()))
        next(tokens)
        other = ring_model.generate([7, 8], TOKENS, (), SamplingParams())
        next(other)
        gc.collect()
        gc.disable()
        try:
            cycle: list[Any] = [tokens]
            cycle.append(cycle)
            del tokens, cycle
            monkeypatch.setattr(turn, "enter", enter_and_collect)
            assert len(list(other)) == TOKENS - 1
        finally:
            gc.enable()
        assert collected, "the collection took place while this thread had the socket"
        until = time.monotonic() + 10
        while any(stage._part._sequences for stage in ThreadStage.made):
            assert time.monotonic() < until, "the stages forget the abandoned sequence"
            time.sleep(0.01)
        assert head.fault is None
