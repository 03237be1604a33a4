# SPDX-License-Identifier: Apache-2.0
"""A model that was cut to the layers of one stage, and its forward pass over the next tokens of one sequence.

The forward pass is the model's own, called as `generate` calls that of the whole model for one sequence without
padding.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationConfig, PreTrainedModel

from zpptool.engines.transformers.cache import new_cache, pass_layer
from zpptool.engines.transformers.decoder_call import DECODER_CALL, DecoderCall
from zpptool.engines.transformers.media import Media, on_device
from zpptool.engines.transformers.model_class import is_composite
from zpptool.engines.transformers.surgery import LeftStage, Passage, decoder_layers
from zpptool.engines.transformers.tensor_tree import from_entries, to_entries
from zpptool.errors import invalid_error
from zpptool.partition import LayerRange

HIDDEN_STATES = "hidden_states"
"""The name of a stage's output in the message to the next stage."""
_ONE_TOKEN = GenerationConfig(
    do_sample=False, max_new_tokens=1, pad_token_id=0, return_dict_in_generate=True, output_logits=True
)
_CACHE_PARAMETERS = ("cache", "past_key_values", "cache_params")
"""The names of the parameter that takes the cache: of every model in transformers 5.24, of most models in 5.19, and of
Mamba there."""


@dataclass
class CachedSequence:
    """One sequence in flight.

    Attributes:
        cache: the stage's cache of it.
        num_tokens: the number of tokens in that cache.
        positions: of the last token, where the model numbers tokens otherwise than in a row, as `generate` has them.
        passes_call: whether later stages repeat stage 0's call of the language model: in a sequence with images. They
            compute the arguments of text themselves, whose masks may be large.
    """

    cache: Cache
    num_tokens: int = 0
    positions: Tensor | None = None
    passes_call: bool = False


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
        self._decoder_call = DecoderCall(model) if is_composite(model) else None
        model.generation_config = GenerationConfig()

    def new_sequence(self) -> CachedSequence:
        """A sequence without tokens.

        Raises:
            ZppError: (INVALID) the model's cache cannot be divided among stages.
        """
        return CachedSequence(new_cache(self.model.config))

    def message(self, sequence: CachedSequence, hidden_states: Tensor) -> dict[str, Any]:
        """What the next stage takes, after a run of a sequence that returned these hidden states."""
        if self._decoder_call is None or not sequence.passes_call:
            return {HIDDEN_STATES: hidden_states}
        return {HIDDEN_STATES: hidden_states, **to_entries(DECODER_CALL, self._decoder_call.recorded)}

    def run_message(self, sequence: CachedSequence, message: Mapping[str, Any]) -> Tensor:
        """Run a later stage over the next tokens, with what the stage before has sent; the result is as of
        `run_hidden_states`."""
        if self._decoder_call is None:
            return self.run_hidden_states(sequence, message[HIDDEN_STATES])
        self._decoder_call.given = from_entries(DECODER_CALL, message)
        sequence.passes_call = self._decoder_call.given is not None
        try:
            return self.run_hidden_states(sequence, message[HIDDEN_STATES])
        finally:
            self._decoder_call.given = None

    def run_tokens(self, sequence: CachedSequence, token_ids: Tensor, media: Media | None = None) -> Tensor:
        """Run the first stage over the next tokens; the result is as of `run_hidden_states`.

        Args:
            token_ids: [tokens]; the whole prompt first.
            media: what the model's processor made of the prompt's images, by parameter of the model; None for text.
        """
        token_ids = token_ids.to(self.model.device)[None]
        if self._decoder_call is None or sequence.num_tokens:
            return self._run(sequence, token_ids.shape[1], input_ids=token_ids)
        sequence.passes_call = media is not None
        return self._run_prompt(sequence, token_ids, on_device(media or {}, self.model.device, self.model.dtype))

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
            known = sequence.positions
            inputs["position_ids"] = torch.arange(start, end, device=self.model.device)[None]
            if known is not None:
                inputs["position_ids"] = sequence.positions = known + 1
        keep = {"logits_to_keep": 1} if "logits_to_keep" in self._accepted else {}
        with self._step(sequence, num_tokens) as left:
            output = self.model(**inputs, **{self._cache_name: sequence.cache}, use_cache=True, **keep)
        return output.logits[0, -1] if left.hidden_states is None else left.hidden_states

    @torch.inference_mode()
    def _run_prompt(self, sequence: CachedSequence, token_ids: Tensor, media: Media) -> Tensor:
        """Run a prompt of a composite model as `generate` does, which prepares positions and masks by the model's own
        rules. The positions that it has chosen are continued in later steps as `generate` continues them."""
        assert self._decoder_call is not None
        self._decoder_call.withheld = [
            name for name, value in media.items() if isinstance(value, Tensor) and value.is_floating_point()
        ]

        def keep_positions(_model: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
            positions = kwargs.get("position_ids")
            sequence.positions = positions[..., -1:] if isinstance(positions, Tensor) else None

        hook = self.model.register_forward_pre_hook(keep_positions, with_kwargs=True)
        output: Any = None
        try:
            with self._step(sequence, token_ids.shape[1]) as left:
                output = self.model.generate(
                    token_ids,
                    attention_mask=torch.ones_like(token_ids),
                    generation_config=_ONE_TOKEN,
                    **{self._cache_name: sequence.cache},
                    **media,
                )
        finally:
            hook.remove()
        return output.logits[0][0] if left.hidden_states is None else left.hidden_states

    @contextmanager
    def _step(self, sequence: CachedSequence, num_tokens: int) -> Iterator[_Left]:
        """Count a step of `num_tokens` tokens, during which the forward pass may leave the stage after its last
        layer."""
        left = _Left()
        self.passage.begin_step(sequence.cache, num_tokens)
        sequence.num_tokens += num_tokens
        try:
            yield left
        except LeftStage as leaving:
            for index in range(self.layers.end, self.num_layers):
                pass_layer(sequence.cache, index, num_tokens)
            left.hidden_states = leaving.hidden_states


@dataclass
class _Left:
    """The hidden states with which a forward pass left the stage; None where it went to the model's end."""

    hidden_states: Tensor | None = None


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
