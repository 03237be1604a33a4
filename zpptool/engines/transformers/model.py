# SPDX-License-Identifier: Apache-2.0
"""Part of a transformers model: the layers of one stage, and their state for the sequences in flight.

Chained, the parts compute bit for bit what the unsplit model computes for the same sequence (same dtype, same number of
threads): each runs the model's own forward pass over the same shapes. A model that cannot be run in parts is refused
when it is loaded (`zpptool.engines.transformers.probe`, `zpptool.engines.transformers.proof`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedConfig, PreTrainedModel

from zpptool.checkpoint.index import TensorInfo
from zpptool.checkpoint.stage_tensors import load_plan
from zpptool.engines.transformers.cut import HIDDEN_STATES, CachedSequence, CutModel
from zpptool.engines.transformers.loading import load_config, load_cut_model
from zpptool.engines.transformers.media import Media
from zpptool.engines.transformers.probe import UNCUT_HINT, observe_layer_output, probe
from zpptool.engines.transformers.proof.proof import prove_part
from zpptool.engines.transformers.surgery import Passage, decoder_layers
from zpptool.errors import ZppError, invalid_error
from zpptool.partition import LayerRange, Partition


class PartialModel:
    """The layers of one stage, with the embedding on the first and the head on the last, and the sequences in flight.

    It runs one step at a time and must not be shared between threads.
    """

    def __init__(self, cut: CutModel) -> None:
        self._cut = cut
        self._sequences: dict[Hashable, CachedSequence] = {}

    @property
    def layers(self) -> LayerRange:
        """The decoder layers that it owns."""
        return self._cut.layers

    @property
    def is_first(self) -> bool:
        """Whether it takes token ids; otherwise it takes what the stage before returned."""
        return self._cut.is_first

    @property
    def is_last(self) -> bool:
        """Whether it returns logits; otherwise it returns what the stage after takes."""
        return self._cut.is_last

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model, cut to what this stage computes."""
        return self._cut.model

    def step(
        self,
        sequence_id: Hashable,
        inputs: Sequence[int] | Tensor | Mapping[str, Any],
        media: Media | None = None,
    ) -> Tensor | dict[str, Any]:
        """Run the next tokens of one sequence: the whole prompt first, then one token in each step. A new id begins a
        new sequence.

        Args:
            sequence_id: identifies the sequence and its cache.
            inputs: on the first stage the token ids, [tokens]; on a later one what the stage before returned.
            media: on the first stage, with a prompt that has images: what the processor made of them.

        Returns:
            on the last stage the logits after the last token, [vocabulary]; on any other what the next stage takes,
            `{"hidden_states": [1, tokens, ...]}`, and for a model that takes images the other arguments of its
            language model.

        Raises:
            ZppError: (INVALID) `inputs` are not what this stage takes.
        """
        received = inputs if isinstance(inputs, Mapping) else None
        if self.is_first != (received is None) or (received is not None and HIDDEN_STATES not in received):
            raise invalid_error(f"layers {self.layers} take {'token ids' if self.is_first else HIDDEN_STATES}")
        sequence = self._sequences.get(sequence_id)
        if sequence is None:
            sequence = self._sequences[sequence_id] = self._cut.new_sequence()
        if received is None:
            output = self._cut.run_tokens(sequence, torch.as_tensor(inputs, dtype=torch.long), media)
        else:
            output = self._cut.run_message(sequence, received)
        return output if self.is_last else self._cut.message(sequence, output)

    def on_layer(self, callback: Callable[[], None]) -> None:
        """Have `callback` called before each decoder layer that is computed."""
        for layer in decoder_layers(self._cut.model)[1][self.layers.start : self.layers.end]:
            layer.register_forward_pre_hook(lambda _layer, _inputs: callback())

    def random_input(self, num_tokens: int) -> Tensor | dict[str, Tensor]:
        """An input of `step` for so many tokens: token ids on the first stage, hidden states on a later one."""
        if self.is_first:
            vocabulary = self._cut.model.get_input_embeddings().weight.shape[0]
            return torch.randint(vocabulary, (num_tokens,))
        self._cut.passage.hidden_states = None  # those of the last step
        with torch.inference_mode():
            received = observe_layer_output(self._cut)
            shape = (1, num_tokens, *received.shape[2:])
            return {HIDDEN_STATES: torch.randn(shape, dtype=torch.float32).to(received)}

    def cache_of(self, sequence_id: Hashable) -> Cache:
        """The cache of a sequence in flight.

        Raises:
            KeyError: there is none of that id.
        """
        return self._sequences[sequence_id].cache

    def copy_sequence(self, sequence_id: Hashable, new_id: Hashable) -> None:
        """Begin a sequence with the state of another one.

        Raises:
            KeyError: there is none of that id.
        """
        self._sequences[new_id] = copy.deepcopy(self._sequences[sequence_id])

    def free(self, sequence_id: Hashable) -> None:
        """Forget a sequence. An unknown one is ignored."""
        self._sequences.pop(sequence_id, None)

    def free_all(self) -> None:
        """Forget every sequence."""
        self._sequences.clear()


def load_part(
    directory: Path,
    stage: int,
    partition: Partition,
    *,
    dtype: str | torch.dtype = "auto",
    device: str = "cpu",
) -> PartialModel:
    """Load the decoder layers of `stage`, with the embedding on the first stage and the head on the last.

    Before that it is proven that this engine runs these layers of this kind of model correctly
    (`zpptool.engines.transformers.proof`).

    Args:
        directory: the stage's directory of `zpptool split`, or a whole checkpoint, of which only the bytes of the
            stage's own tensors are read.
        stage: its index, from 0.
        partition: the layer ranges of all stages.
        dtype: the dtype to compute in; "auto" for the one in the checkpoint's config.
        device: torch's name of the device to compute on.

    Raises:
        ZppError: (INVALID) the checkpoint cannot be read, lacks a tensor that the stage needs, or its model cannot be
            run in parts.
    """
    tensors = load_plan(directory, stage, partition)
    config = load_config(directory)
    owned = partition[stage]
    try:
        prove_part(config, owned, load_unproven)
        return load_unproven(config, tensors, owned, dtype, device)
    except ZppError:
        raise
    except Exception as cause:  # any error of the model's own code, which lacks something
        raise invalid_error(
            f"{config.model_type} cannot be run in parts: layers {owned} fail with {type(cause).__name__}: {cause}",
            UNCUT_HINT,
        ) from cause


def load_unproven(
    config: PreTrainedConfig, tensors: Iterable[TensorInfo], owned: LayerRange, dtype: str | torch.dtype, device: str
) -> PartialModel:
    """Load the decoder layers `owned` from `tensors`, with no other proof than that nothing is missing.

    Raises:
        ZppError: (INVALID) a tensor is missing, or the model cannot be run in parts.
        Exception: any error of the model's own code, which lacks something.
    """
    passage = Passage()
    cut = CutModel(load_cut_model(config, tensors, owned, passage, dtype, device), owned, passage)
    probe(cut)
    return PartialModel(cut)
