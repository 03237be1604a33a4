# SPDX-License-Identifier: Apache-2.0
"""What a composite model passes to its language model beside the hidden states, carried from stage 0 to the others.

A model that takes images computes positions, masks and features of the tower from the prompt and its images, which
stage 0 alone has, and calls its language model with them. So stage 0 records the tensors in that call, every message
to a later stage has them, and there they take the place of those that the model computes without the images.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from zpptool.engines.transformers.tensor_tree import holds_tensors

DECODER_CALL = "decoder"
"""The name in a message of what is passed to the language model."""
_NOT_PASSED = frozenset({"input_ids", "inputs_embeds"})
"""The stage's own input, which later stages replace by the received hidden states."""


class DecoderCall:
    """Follows the calls of one part's language model.

    Attributes:
        given: what the language model is to be called with, as `recorded` has it on stage 0; None to leave the call as
            it is.
        recorded: the tensors of the last call, by parameter; None entries are kept.
        withheld: the names of what is not recorded: the pixels of a request, which stage 0 alone uses.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        decoder = model.get_decoder()
        self._names = tuple(inspect.signature(decoder.forward).parameters)
        self.given: Mapping[str, Any] | None = None
        self.recorded: dict[str, Any] = {}
        self.withheld: Collection[str] = ()
        self._hook = decoder.register_forward_pre_hook(self._before_call, with_kwargs=True)

    def remove(self) -> None:
        """Follow no further calls."""
        self._hook.remove()

    def _before_call(self, _decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        named = {**dict(zip(self._names, args, strict=False)), **kwargs}
        passed = {name: value for name, value in named.items() if name not in _NOT_PASSED and holds_tensors(value)}
        if self.given is None:
            self.recorded = {name: value for name, value in passed.items() if name not in self.withheld}
            return None
        self.recorded = dict(self.given)
        return (), {**named, **dict.fromkeys(passed), **self.given}
