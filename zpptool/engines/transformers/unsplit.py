# SPDX-License-Identifier: Apache-2.0
"""The unsplit model: stock transformers, `from_pretrained` and `generate`, one prompt at a time.

A pipeline is compared with it, so it uses none of the code that cuts models. Greedy means the likeliest token, without
the penalties that a checkpoint's generation_config.json may set.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from zpptool.engines.transformers.loading import load_config, no_progress_bars
from zpptool.engines.transformers.media import Media, on_device
from zpptool.engines.transformers.model_class import auto_class
from zpptool.engines.transformers.sampling import Choice, Sampler, SamplingParams


def load_unsplit(directory: Path, *, dtype: str | torch.dtype = "auto", device: str = "cpu") -> PreTrainedModel:
    """The whole model, as transformers loads it.

    Its weights are then copied out of the mapped files: BLAS results may differ in the last bit with the alignment of
    their operands, and in a file the alignment of a tensor depends on those before it.
    """
    auto = auto_class(load_config(directory))
    with no_progress_bars():
        model: PreTrainedModel = auto.from_pretrained(directory, dtype=dtype, local_files_only=True).to(device).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    model.generation_config = GenerationConfig()
    return model


def generate(
    model: PreTrainedModel,
    prompt: Sequence[int],
    max_new_tokens: int,
    stop_token_ids: Sequence[int] = (),
    sampling: SamplingParams | None = None,
    media: Media | None = None,
) -> list[int]:
    """The tokens that the unsplit model adds to one prompt.

    Args:
        prompt: token ids.
        max_new_tokens: the greatest number of tokens.
        stop_token_ids: end after any of these tokens; it is returned too.
        sampling: how zpptool's sampler chooses from the model's logits; None for greedy.
        media: what the processor made of the prompt's images.
    """
    choices = generate_choices(model, prompt, max_new_tokens, stop_token_ids, sampling, media)
    return [choice.token for choice in choices]


def generate_choices(
    model: PreTrainedModel,
    prompt: Sequence[int],
    max_new_tokens: int,
    stop_token_ids: Sequence[int] = (),
    sampling: SamplingParams | None = None,
    media: Media | None = None,
) -> list[Choice]:
    """As `generate`, with the log probabilities that `sampling` requests."""
    token_ids = torch.tensor([list(prompt)], device=model.device)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_token_ids) or None,
        pad_token_id=stop_token_ids[0] if stop_token_ids else 0,
    )
    draw = _Draw(Sampler(sampling, prompt)) if sampling else None
    mask = torch.ones_like(token_ids)
    processors = LogitsProcessorList([draw] if draw else [])
    output = model.generate(
        token_ids,
        attention_mask=mask,
        generation_config=config,
        logits_processor=processors,
        **on_device(media or {}, model.device, model.dtype),
    )
    return draw.choices if draw else [Choice(token) for token in output[0, len(prompt) :].tolist()]


class _Draw(LogitsProcessor):
    """Leaves one token for greedy search to choose: the one that the sampler drew.

    Attributes:
        choices: what it drew so far.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self.choices: list[Choice] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        choice = self._sampler.choose(scores[0])
        self.choices.append(choice)
        drawn = torch.full_like(scores, -torch.inf)
        drawn[0, choice.token] = 0
        return drawn
