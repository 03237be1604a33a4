# SPDX-License-Identifier: Apache-2.0
"""A vLLM model loader that reads a stage's own tensors and nothing else.

vLLM's default loader opens every shard and skips a missing layer's tensors only after it has read them. This one reads
from the checkpoint's headers which tensors the stage owns; the model's own `load_weights` does the rest.

Some of vLLM's classes make the last norm (Cohere, OPT) on every stage and use it on the last one only. Such a parameter
gets no tensor and is filled with NaN: if it were used after all, the answers would be visibly wrong.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn

from zpptool.checkpoint.roles import Side, outside_role, words_of
from zpptool.checkpoint.stage_tensors import load_plan
from zpptool.config.stage_spec import StageSpec
from zpptool.engines.vllm.compat.engine_config import ModelConfig, VllmConfig
from zpptool.engines.vllm.compat.model_loader import DefaultModelLoader, register_model_loader
from zpptool.engines.vllm.compat.transformers_backend import changes_hidden_states
from zpptool.engines.weights import read_tensors
from zpptool.errors import ZppError, invalid_error
from zpptool.process.progress import loading_progress

LOAD_FORMAT = "zpptool"
_REPLACED_FORMATS = ("auto", "hf", "safetensors")
"""The load formats that this one replaces. Any other was chosen by the user and is kept."""
NO_CLASS_OF_ITS_OWN = "vLLM has no class of its own for this model"
"""The beginning of the error with which a stage refuses a model whose answers would be wrong."""
_LANGUAGE_WORDS = frozenset({"language", "text", "llm", "thinker"})
"""The words in the name of a multimodal model's part that holds the decoder."""


class OwnTensorsLoader(DefaultModelLoader):
    """Loads the tensors of one stage, from its own directory or from the full checkpoint."""

    spec: StageSpec

    def get_all_weights(self, model_config: ModelConfig, model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """The stage's tensors by their names in the checkpoint."""
        self.counter_before_loading_weights = time.perf_counter()
        tensors = load_plan(self.spec.directory, self.spec.stage, self.spec.ranges)
        report_read = loading_progress(sum(tensor.nbytes for tensor in tensors))
        for name, tensor in read_tensors(tensors):
            yield name, tensor
            report_read(tensor.nbytes)

    def track_weights_loading(
        self, model: nn.Module, loaded_weights: set[str] | None, *args: Any, **kwargs: Any
    ) -> None:
        """Refuse a parameter that got no tensor, unless it is used at the pipeline's other end only.

        Raises:
            ValueError: vLLM's own; it names the parameters.
            ZppError: (INVALID) this stage would use such a parameter all the same.
        """
        if loaded_weights is not None:
            parts = {name.partition(".")[0] for name, _ in model.named_parameters()}
            unused = {
                name: parameter
                for name, parameter in model.named_parameters()
                if name not in loaded_weights and used_elsewhere(name, parameter.nbytes, self.spec, parts)
            }
            if unused and self.spec.is_last and runs_transformers_code(model):
                raise self._used_twice(f"use {', '.join(unused)}")
            for parameter in unused.values():
                if parameter.is_floating_point():
                    parameter.data.fill_(float("nan"))
            loaded_weights |= unused.keys()
        super().track_weights_loading(model, loaded_weights, *args, **kwargs)
        if not self.spec.is_first and runs_transformers_code(model) and changes_hidden_states(model):
            raise self._used_twice("do what comes before the layers")

    def _used_twice(self, what: str) -> ZppError:
        return invalid_error(
            f"{NO_CLASS_OF_ITS_OWN}, and what it has would {what} on stage {self.spec.stage} too, as in its own"
            " pipelines: the answers would be wrong",
            "Use --engine transformers.",
        )


def runs_transformers_code(model: nn.Module) -> bool:
    """Whether vLLM runs the model with transformers' code. On the last stage of a tied model that code repeats
    everything that comes before the layers, except the embedding of tokens."""
    return type(model).__module__.startswith("vllm.model_executor.models.transformers")


def used_elsewhere(name: str, nbytes: int, spec: StageSpec, parts: Collection[str]) -> bool:
    """Whether a parameter is outside the layers, and belongs to the first or the last stage and not to this one.

    Args:
        name: the parameter's.
        nbytes: its size.
        spec: the stage.
        parts: the names of the model's top-level modules. Beside a language model, all others belong to the input.
    """
    if any(part.isdigit() for part in name.split(".")):
        return False
    texts = {part for part in parts if words_of(part) & _LANGUAGE_WORDS}
    role = outside_role(name, nbytes, beside_decoder=bool(texts) and name.partition(".")[0] not in texts)
    if role is None:
        return False
    return (role.side is Side.OUTPUT and not spec.is_last) or (role.side is Side.INPUT and not spec.is_first)


def use_own_tensors(config: VllmConfig, stage_spec: StageSpec) -> None:
    """Have the worker of `config` load with `OwnTensorsLoader`, unless the user has chosen another load format."""
    if config.load_config.load_format not in _REPLACED_FORMATS:
        return

    @register_model_loader(LOAD_FORMAT)
    class StageLoader(OwnTensorsLoader):
        """The loader of this process's stage. vLLM makes loaders itself and gives them no argument but the load
        configuration, so the stage is an attribute of the class."""

        spec = stage_spec

    config.load_config.load_format = LOAD_FORMAT
