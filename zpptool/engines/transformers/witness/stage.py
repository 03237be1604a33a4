# SPDX-License-Identifier: Apache-2.0
"""What a stage of the embedded engine records of its steps.

Requests and positions are counted from the head's calls, never from what the model or its cache says, so a fault in
those cannot move what is recorded along with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import transformers
from torch import Tensor
from transformers import PreTrainedModel

from zpptool.checkpoint.stage_tensors import model_digest
from zpptool.config.stage_spec import StageSpec
from zpptool.engines.transformers.calls import Step
from zpptool.engines.transformers.cut import HIDDEN_STATES
from zpptool.engines.transformers.model import PartialModel
from zpptool.engines.transformers.witness.hooks import token_rows, watch_model
from zpptool.engines.witness.machine import dtype_of, fingerprint_here, weights_in_memory
from zpptool.engines.witness.recorder import StepRecorder
from zpptool.partition import LayerRange
from zpptool.witness.options import Level
from zpptool.witness.record import REFERENCE, Header, RecordWriter
from zpptool.witness.taps import WIRE_IN, WIRE_OUT, request_key


@dataclass
class _Sequence:
    """One sequence in flight: its request's name, its tokens so far, and the number of its next step."""

    request: int
    tokens: int = 0
    steps: int = 0


class StageWitness:
    """Records nothing."""

    def begin(self, step: Step, epoch: int, inputs: Sequence[int] | Mapping[str, Tensor]) -> None:
        """Begin a step.

        Args:
            step: the head's call.
            epoch: in which it is computed.
            inputs: the token ids, or what the stage before sent.
        """

    def end(self, output: Mapping[str, Tensor] | None = None, token: int = -1) -> None:
        """End the step with what goes to the next stage, or with the token that was chosen."""

    def forget(self, sequence: int) -> None:
        """Forget a sequence."""

    def forget_all(self) -> None:
        """Forget all sequences."""


NO_WITNESS = StageWitness()


class RecordingWitness(StageWitness):
    """Records a stage in the file that its spec says, the weights as they were loaded first.

    Args:
        spec: the stage's; its witness is on.
        part: the loaded model.
    """

    def __init__(self, spec: StageSpec, part: PartialModel) -> None:
        self._layers = part.layers
        self._sequences: dict[int, _Sequence] = {}
        self._recorder = open_recorder(spec, part.model, spec.stage, f"stage-{spec.stage}", part.layers)

    def begin(self, step: Step, epoch: int, inputs: Sequence[int] | Mapping[str, Tensor]) -> None:
        """See `StageWitness`."""
        if step.sampling is not None:
            self._sequences[step.sequence] = _Sequence(request_key(step.token_ids))
        sequence = self._sequences[step.sequence]
        count = len(step.token_ids)
        self._recorder.begin(sequence.request, sequence.steps, sequence.tokens, count, epoch)
        sequence.steps += 1
        sequence.tokens += count
        if isinstance(inputs, Mapping):
            self._take_rows(self._layers.start - 1, WIRE_IN, inputs[HIDDEN_STATES])

    def end(self, output: Mapping[str, Tensor] | None = None, token: int = -1) -> None:
        """See `StageWitness`."""
        if output is not None:
            self._take_rows(self._layers.end - 1, WIRE_OUT, output[HIDDEN_STATES])
        self._recorder.end(token)

    def forget(self, sequence: int) -> None:
        """See `StageWitness`."""
        self._sequences.pop(sequence, None)

    def forget_all(self) -> None:
        """See `StageWitness`."""
        self._sequences.clear()

    def _take_rows(self, layer: int, name: str, states: Tensor) -> None:
        rows = token_rows(states, self._recorder.tokens)
        self._recorder.take(layer, name, states if rows is None else rows, by_row=rows is not None)


def open_recorder(
    spec: StageSpec, model: PreTrainedModel, stage: int, process: str, layers: LayerRange
) -> StepRecorder:
    """The recorder of a process, with its hooks installed and the header and the weights in its file.

    Args:
        spec: the process's; its witness is on.
        model: as it was loaded.
        stage: the stage's number, or `zpptool.witness.record.REFERENCE`.
        process: the name of the file.
        layers: what the model computes.
    """
    options = spec.witness
    level = max(options.level, Level.LAYERS, key=list(Level).index) if stage == REFERENCE else options.level
    engine = f"transformers {transformers.__version__}"
    fingerprint = fingerprint_here(engine, dtype_of(model), model.device)
    header = Header(model_digest(spec.directory), stage, (layers.start, layers.end), level, fingerprint)
    writer = RecordWriter(options.record_file(process), header)
    for weight in weights_in_memory(model):
        writer.write(weight)
    recorder = StepRecorder(writer, options.capture, options.capture_file(process))
    watch_model(model, layers, recorder, level)
    return recorder
