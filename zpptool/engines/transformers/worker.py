# SPDX-License-Identifier: Apache-2.0
"""One stage's worker process: part of a transformers model, driven by the calls that arrive over the ring.

Started as `python -m zpptool.engines.transformers.worker SPEC`.

A step's call reaches every stage before the step's tensors, so each stage but the first receives exactly one tensor
message for each step, in order. A stage that fails at a step sends a message that reports the failure in place of the
tensors, and the stages after it forward that.
"""

from __future__ import annotations

from typing import Any

import torch

from zpptool.config.memory_budget import stage_bytes
from zpptool.config.stage_spec import StageSpec
from zpptool.engines.base import LOAD_MODEL, run_stage_worker
from zpptool.engines.device_memory import await_device_memory
from zpptool.engines.staging.exchange import TensorExchange
from zpptool.engines.transformers.calls import (
    FREE,
    STEP,
    Step,
    agreed_facts,
    check_arguments,
    decode_number,
    decode_step,
    device_of,
    encode_choice,
)
from zpptool.engines.transformers.media import decode_media
from zpptool.engines.transformers.model import PartialModel, load_part
from zpptool.engines.transformers.sampling import Sampler
from zpptool.engines.transformers.witness.stage import NO_WITNESS, RecordingWitness, StageWitness
from zpptool.errors import ZppError
from zpptool.log import place_logger
from zpptool.ring.messages import Call
from zpptool.ring.stage.node import StageNode

IN_FLIGHT = 16
"""How many sends may be outstanding where they are staged: each sequence has its own, and most are short."""
FAILED = "failed"
"""The value in place of the tensors of a step that failed."""


class TransformersStage:
    """Part of a transformers model at one place of the ring.

    Args:
        spec: its place and what it loads.
        node: its links, open.

    Raises:
        ZppError: (USAGE) the spec has arguments that this engine does not support.
    """

    def __init__(self, spec: StageSpec, node: StageNode) -> None:
        check_arguments(spec)
        self._spec = spec
        self._node = node
        self._exchange = TensorExchange(node, torch.device(device_of(spec)), in_flight=IN_FLIGHT)
        self._log = place_logger(__name__, spec.stage)
        self._loaded: PartialModel | None = None
        self._samplers: dict[int, Sampler] = {}
        self._epoch = node.doing
        self._witness: StageWitness = NO_WITNESS

    def agreed(self) -> dict[str, str]:
        """The facts that must be equal on every stage."""
        return agreed_facts(self._spec)

    def do(self, call: Call, payload: bytes) -> bytes | None:
        """Do one call of the head."""
        if call.method == LOAD_MODEL:
            return self._load()
        self._forget_past_epoch()
        if call.method == STEP:
            return self._step(decode_step(payload))
        if call.method == FREE:
            return self._free(decode_number(payload))
        raise ZppError(f"{call.method} is not a call that the transformers engine knows")

    def _forget_past_epoch(self) -> None:
        """Forget all sequences if a new epoch has begun: the head computes them again."""
        if self._epoch != self._node.doing:
            self._epoch = self._node.doing
            self._part.free_all()
            self._samplers.clear()
            self._witness.forget_all()

    def _load(self) -> bytes:
        spec = self._spec
        await_device_memory(torch.device(device_of(spec)), lambda _memory: stage_bytes(spec), self._log)
        self._log.info("loading layers %s from %s", spec.layers, spec.model)
        part = load_part(spec.directory, spec.stage, spec.ranges, dtype=spec.dtype, device=device_of(spec))
        part.on_layer(self._node.pulse.progress)
        self._loaded = part
        if spec.witness.is_on:
            self._witness = RecordingWitness(spec, part)
        self._log.info("loaded")
        return b""

    @property
    def _part(self) -> PartialModel:
        if self._loaded is None:
            raise ZppError(f"stage {self._spec.stage} has not loaded its layers")
        return self._loaded

    def _step(self, step: Step) -> bytes | None:
        """Run one step of one sequence.

        Returns:
            on the last stage the choice that it made, on the others no bytes; None where a stage before has failed at
            this step.
        """
        inputs: list[int] | dict[str, Any] | None = step.token_ids if self._spec.is_first else self._receive()
        if inputs is None:
            self._pass_on({FAILED: True})
            return None
        self._witness.begin(step, self._epoch.epoch, inputs)
        try:
            output = self._part.step(step.sequence, inputs, decode_media(step.media) if self._spec.is_first else None)
            if self._spec.is_last:
                choice = self._sampler(step).choose(output)
                self._witness.end(token=choice.token)
                return encode_choice(choice)
        except Exception:  # the next stage waits for this step's tensors, whichever error has kept them from it
            self._pass_on({FAILED: True})
            raise
        self._witness.end(output)
        self._pass_on(output)
        return b""

    def _free(self, sequence: int) -> bytes:
        self._part.free(sequence)
        self._samplers.pop(sequence, None)
        self._witness.forget(sequence)
        return b""

    def _receive(self) -> dict[str, Any] | None:
        """The tensors of the call that is being done; None where a stage before has failed at it.

        Raises:
            RingOver: the run was stopped.
            WireFault: they did not arrive in time, or those of another call arrived.
        """
        received = self._exchange.take().values
        return None if FAILED in received else received

    def _pass_on(self, outputs: dict[str, Any]) -> None:
        """Send a step's tensors to the next stage. The memory of a model's output is never written again, so it is sent
        without a copy and without waiting."""
        if not self._spec.is_last:
            self._exchange.send(outputs)

    def _sampler(self, step: Step) -> Sampler:
        """The sequence's sampler, made in its first step."""
        if step.sampling is not None:
            self._samplers[step.sequence] = Sampler(step.sampling, step.token_ids)
        return self._samplers[step.sequence]


if __name__ == "__main__":
    run_stage_worker(TransformersStage)
