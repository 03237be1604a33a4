# SPDX-License-Identifier: Apache-2.0
"""A vLLM model loader that reads a stage's own tensors and nothing else.

vLLM's default loader opens every shard and skips a missing layer's tensors only after it has read them. This one asks
the checkpoint's headers which tensors the stage owns; the model's own `load_weights` does the rest, as ever.

Some of vLLM's classes make the last norm (Cohere, OPT) on every stage and use it on the last one only. Such a parameter
stays without a tensor, and is filled with NaN: if it were used after all, nobody could take the answers for right.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn
from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

from zpptool.checkpoint.roles import Side, outside_role, words_of
from zpptool.checkpoint.stage_tensors import load_plan
from zpptool.config.stage_spec import StageSpec
from zpptool.engines.vllm.compat.transformers_backend import changes_what_arrives
from zpptool.engines.weights import read_tensors
from zpptool.errors import ZppError, invalid_error
from zpptool.process.progress import loading_teller

LOAD_FORMAT = "zpptool"
_REPLACED_FORMATS = ("auto", "hf", "safetensors")
"""The ways of loading that this one stands in for; any other was asked for by the user and stays."""
NO_CLASS_OF_ITS_OWN = "vLLM has no class of its own for this model"
"""How a stage begins when it refuses a model whose answers would be wrong."""
_LANGUAGE_WORDS = frozenset({"language", "text", "llm", "thinker"})
"""What a model that takes more than text calls the part of it that has the decoder."""


class OwnTensorsLoader(DefaultModelLoader):
    """Loads the tensors of one stage, from its own directory or from the full checkpoint."""

    spec: StageSpec

    def get_all_weights(self, model_config: ModelConfig, model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """The stage's tensors by their names in the checkpoint."""
        self.counter_before_loading_weights = time.perf_counter()
        tensors = load_plan(self.spec.directory, self.spec.stage, self.spec.ranges)
        have_read = loading_teller(sum(tensor.nbytes for tensor in tensors))
        for name, tensor in read_tensors(tensors):
            yield name, tensor
            have_read(tensor.nbytes)

    def track_weights_loading(
        self, model: nn.Module, loaded_weights: set[str] | None, *args: Any, **kwargs: Any
    ) -> None:
        """Refuse a parameter that got no tensor, unless it has its use at the pipeline's other end.

        Raises:
            ValueError: vLLM's own; it names the parameters.
            ZppError: (INVALID) the model would be used with it all the same.
        """
        if loaded_weights is not None:
            parts = {name.partition(".")[0] for name, _ in model.named_parameters()}
            spared = {
                name: parameter
                for name, parameter in model.named_parameters()
                if name not in loaded_weights and used_elsewhere(name, parameter.nbytes, self.spec, parts)
            }
            if spared and self.spec.is_last and runs_transformers_code(model):
                raise self._done_again(f"use {', '.join(spared)}")
            for parameter in spared.values():
                if parameter.is_floating_point():
                    parameter.data.fill_(float("nan"))
            loaded_weights |= spared.keys()
        super().track_weights_loading(model, loaded_weights, *args, **kwargs)
        if not self.spec.is_first and runs_transformers_code(model) and changes_what_arrives(model):
            raise self._done_again("do what comes before the layers")

    def _done_again(self, what: str) -> ZppError:
        return invalid_error(
            f"{NO_CLASS_OF_ITS_OWN}, and what it has would {what} on stage {self.spec.stage} too, as in its own"
            " pipelines: the answers would be wrong",
            "Use --engine transformers.",
        )


def runs_transformers_code(model: nn.Module) -> bool:
    """Whether vLLM runs the model by transformers' code. On the last stage of a tied model that does all that comes
    before the layers once more, but for the embedding of tokens."""
    return type(model).__module__.startswith("vllm.model_executor.models.transformers")


def used_elsewhere(name: str, nbytes: int, spec: StageSpec, parts: Collection[str]) -> bool:
    """Whether a parameter lies outside the layers, at the end of the pipeline at which this stage does not stand.

    Args:
        name: the parameter's.
        nbytes: its bytes.
        spec: the stage.
        parts: what the model consists of at its top; beside a language model the rest feeds it.
    """
    if any(part.isdigit() for part in name.split(".")):
        return False
    texts = {part for part in parts if words_of(part) & _LANGUAGE_WORDS}
    role = outside_role(name, nbytes, beside_decoder=bool(texts) and name.partition(".")[0] not in texts)
    if role is None:
        return False
    return (role.side is Side.OUTPUT and not spec.is_last) or (role.side is Side.INPUT and not spec.is_first)


def use_own_tensors(config: VllmConfig, stage_spec: StageSpec) -> None:
    """Have the worker of `config` load with `OwnTensorsLoader`, unless the user asked for another way of loading."""
    if config.load_config.load_format not in _REPLACED_FORMATS:
        return

    @register_model_loader(LOAD_FORMAT)
    class StageLoader(OwnTensorsLoader):
        """The loader of this process's one stage: vLLM makes loaders itself and tells them only their format."""

        spec = stage_spec

    config.load_config.load_format = LOAD_FORMAT
