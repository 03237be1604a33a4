# SPDX-License-Identifier: Apache-2.0
"""A model that was cut to the layers of one stage, and its forward pass over the next tokens of one sequence.

The forward pass is the model's own, called as `generate` calls that of the whole model for one sequence without
padding.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from zpptool.engines.transformers.cache import new_cache, pass_layer
from zpptool.engines.transformers.surgery import LeftStage, Passage, decoder_layers
from zpptool.errors import invalid_error
from zpptool.partition import LayerRange

_CACHE_PARAMETERS = ("cache", "past_key_values", "cache_params")
"""The names of the parameter that takes the cache: of every model in transformers 5.24, of most models in 5.19, and of
Mamba there."""


@dataclass
class CachedSequence:
    """One sequence in flight: the stage's cache of it, and the number of tokens in that cache."""

    cache: Cache
    num_tokens: int = 0


class CutModel:
    """A model that has only the decoder layers `layers`, with the embedding on the first stage and the head on the
    last.

    Attributes:
        model: cut by `zpptool.engines.transformers.surgery`.
        layers: the decoder layers that it has.
        passage: what the modules that replace the others share.
        num_layers: the number of decoder layers of the whole model.
        is_first: whether it takes token ids; otherwise it takes hidden states.
        is_last: whether it returns logits; otherwise it returns hidden states.
    """

    def __init__(self, model: PreTrainedModel, layers: LayerRange, passage: Passage) -> None:
        self.model = model
        self.layers = layers
        self.passage = passage
        self.num_layers = len(decoder_layers(model)[1])
        self.is_first = layers.start == 0
        self.is_last = layers.end == self.num_layers
        self._accepted = inspect.signature(model.forward).parameters.keys()
        self._cache_name = _cache_parameter(model, self._accepted)

    def new_sequence(self) -> CachedSequence:
        """A sequence without tokens.

        Raises:
            ZppError: (INVALID) the model's cache cannot be divided among stages.
        """
        return CachedSequence(new_cache(self.model.config))

    def run_tokens(self, sequence: CachedSequence, token_ids: Tensor) -> Tensor:
        """Run the first stage over the next tokens, [tokens]; the result is as of `run_hidden_states`."""
        return self._run(sequence, len(token_ids), input_ids=token_ids.to(self.model.device)[None])

    def run_hidden_states(self, sequence: CachedSequence, hidden_states: Tensor) -> Tensor:
        """Run a later stage over the next tokens.

        Args:
            hidden_states: as the stage before returned them. They are copied: BLAS results may differ in the last bit
                with the alignment of their operands, and in a message the alignment depends on the header's length.

        Returns:
            hidden states, [1, tokens, ...]; on the last stage the logits after the last token, [vocabulary].
        """
        self.passage.hidden_states = hidden_states.to(self.model.device, copy=True)
        return self.run_without_input(sequence, hidden_states.shape[1])

    def run_without_input(self, sequence: CachedSequence, num_tokens: int) -> Tensor:
        """Run a later stage with the hidden states in `passage`, and NaN for the embeddings, which it must not use."""
        weight = self.model.get_input_embeddings().weight
        shape = (1, num_tokens, weight.shape[-1])
        embeddings = torch.full(shape, torch.nan, dtype=weight.dtype, device=self.model.device)
        return self._run(sequence, num_tokens, inputs_embeds=embeddings)

    @torch.inference_mode()
    def _run(self, sequence: CachedSequence, num_tokens: int, **inputs: Tensor) -> Tensor:
        start, end = sequence.num_tokens, sequence.num_tokens + num_tokens
        if "position_ids" in self._accepted:
            inputs["position_ids"] = torch.arange(start, end, device=self.model.device)[None]
        keep = {"logits_to_keep": 1} if "logits_to_keep" in self._accepted else {}
        self.passage.begin_step(sequence.cache, num_tokens)
        sequence.num_tokens = end
        try:
            output = self.model(**inputs, **{self._cache_name: sequence.cache}, use_cache=True, **keep)
        except LeftStage as left:
            for index in range(self.layers.end, self.num_layers):
                pass_layer(sequence.cache, index, num_tokens)
            return left.hidden_states
        return output.logits[0, -1]


def _cache_parameter(model: PreTrainedModel, accepted: Collection[str]) -> str:
    """The name of the parameter of the model's forward that takes the cache. Under any other name most models take it
    too, and ignore it.

    Raises:
        ZppError: (INVALID) there is none.
    """
    name = next((name for name in _CACHE_PARAMETERS if name in accepted), None)
    if name is None:
        raise invalid_error(
            f"the forward pass of {type(model).__name__} takes a cache under none of the names that are known"
            f" ({', '.join(_CACHE_PARAMETERS)})",
            "Use a release of transformers that docs/compatibility.md lists.",
        )
    return name
