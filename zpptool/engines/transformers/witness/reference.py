# SPDX-License-Identifier: Apache-2.0
"""What is recorded of the unsplit model while transformers' own `generate` runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from zpptool.config.stage_spec import StageSpec
from zpptool.engines.transformers.sampling import Choice
from zpptool.engines.transformers.surgery import decoder_layers
from zpptool.engines.transformers.witness.stage import open_recorder
from zpptool.partition import LayerRange
from zpptool.witness.record import REFERENCE
from zpptool.witness.taps import request_key


class ReferenceWitness:
    """Records the whole model, one request at a time: the output of every layer at least, because it does not know
    where the pipeline is cut.

    Args:
        spec: of the process; its witness is on.
        model: as transformers loaded it.

    Attributes:
        recorder: of the process.
    """

    def __init__(self, spec: StageSpec, model: PreTrainedModel) -> None:
        layers = LayerRange(0, len(decoder_layers(model)[1]))
        self.recorder = open_recorder(spec, model, REFERENCE, "reference", layers)
        self._request: int | None = None
        self._tokens = 0
        self._steps = 0
        model.register_forward_pre_hook(self._begin_step, with_kwargs=True)

    def watch(self, compute: Callable[[], list[Choice]], prompt: Sequence[int]) -> list[Choice]:
        """Run `compute`, which generates the tokens of one prompt, and record its steps."""
        self._request, self._tokens, self._steps = request_key(prompt), 0, 0
        try:
            choices = compute()
            self.recorder.end(choices[-1].token if choices else -1)
        finally:
            self._request = None
        return choices

    def _begin_step(self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The tokens of a step are those that were chosen after the step before."""
        if self._request is None:
            return
        token_ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if self._steps:
            self.recorder.end(int(token_ids[0, 0]))
        count = token_ids.shape[1]
        self.recorder.begin(self._request, self._steps, self._tokens, count)
        self._steps += 1
        self._tokens += count
