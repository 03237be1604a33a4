# SPDX-License-Identifier: Apache-2.0
"""The model that the HTTP API serves: its tokenizer, its limits, and a function that generates."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from zpptool.engines.transformers.api.context_length import ContextLength
from zpptool.engines.transformers.api.generation_defaults import GenerationDefaults, load_generation_defaults
from zpptool.engines.transformers.api.image_processor import ImageProcessor, load_image_processor
from zpptool.engines.transformers.api.images import ImageSource
from zpptool.engines.transformers.loading import load_config
from zpptool.engines.transformers.media import Media
from zpptool.engines.transformers.sampling import Choice, SamplingParams
from zpptool.errors import invalid_error

ASSUMED_MODEL_LEN = 8192
"""The limit of a sequence in tokens, where neither config nor tokenizer has one."""
UNLIMITED_MODEL_LEN = 10**9
"""A tokenizer's limit from here on means none: transformers uses 10**30."""


class TokenSequence(Iterator[Choice], Protocol):
    """An iterator over the tokens of one sequence; one thread at a time takes the next one.

    Taking one raises `ZppError` (STAGE) where the pipeline has failed.
    """

    def close(self) -> None:
        """End the sequence before its next step. Never waits, and any thread may call it, also during a step."""
        ...


class Generate(Protocol):
    """Begins a sequence, which has to be used up or closed."""

    def __call__(
        self,
        prompt_ids: Sequence[int],
        max_new_tokens: int,
        stop_ids: Collection[int],
        sampling: SamplingParams,
        media: Media | None = None,
    ) -> TokenSequence:
        """At most `max_new_tokens` tokens, at least 1; the last one may be of `stop_ids`, none before it is. `media` is
        what the processor made of the prompt's images."""
        ...


@dataclass(frozen=True)
class ServedModel:
    """A model with its tokenizer and limits.

    Attributes:
        name: its name in requests.
        root: the directory that it was loaded from.
        tokenizer: transformers' own; used by the thread that converts prompts, and by no other.
        detokenizer: another instance of it; used from the event loop's thread only.
        context: how long prompt and answer may be.
        vocab_size: token ids are below this.
        eos_ids: the tokens that end an answer.
        defaults: apply where a request does not set them.
        generate: begins a sequence.
        is_healthy: returns whether the model can still answer.
        processor: of images; the reason why there is none where images are not taken.
        image_source: where images come from.
    """

    name: str
    root: str
    tokenizer: PreTrainedTokenizerBase
    detokenizer: PreTrainedTokenizerBase
    context: ContextLength
    vocab_size: int
    eos_ids: frozenset[int]
    defaults: GenerationDefaults
    generate: Generate
    is_healthy: Callable[[], bool]
    processor: ImageProcessor | str = "the model takes text only"
    image_source: ImageSource = field(default_factory=ImageSource)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids, by default without special tokens."""
        text: str = self.detokenizer.decode(
            list(token_ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
        return text

    def token_text(self, token_id: int) -> str:
        """The text of one token by itself, also of a special one."""
        return self.decode([token_id], skip_special_tokens=False)


def served_model(
    directory: Path,
    generate: Generate,
    is_healthy: Callable[[], bool],
    name: str | None = None,
    media_domains: Sequence[str] = (),
) -> ServedModel:
    """The model of a checkpoint, or of a stage directory. `media_domains` are the hosts that images are fetched from.

    Raises:
        ZppError: (INVALID) transformers cannot read its config or its tokenizer, or its generation_config.json cannot
            be used.
    """
    config = load_config(directory)
    text_config = config.get_text_config(decoder=True)
    tokenizer = _load_tokenizer(directory)
    defaults = load_generation_defaults(directory)
    return ServedModel(
        name=name or str(directory),
        root=str(directory),
        tokenizer=tokenizer,
        detokenizer=copy.deepcopy(tokenizer),
        context=ContextLength(_max_model_len(text_config, tokenizer), max(map(len, tokenizer.get_vocab()), default=1)),
        vocab_size=text_config.vocab_size,
        eos_ids=_eos_ids(defaults, text_config, tokenizer),
        defaults=defaults,
        generate=generate,
        is_healthy=is_healthy,
        processor=load_image_processor(directory, config),
        image_source=ImageSource(media_domains),
    )


def _load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as cause:
        raise invalid_error(f"transformers cannot read the tokenizer of {directory}: {cause}") from cause


def _max_model_len(text_config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    length: int | None = getattr(text_config, "max_position_embeddings", None)
    if length:
        return length
    return tokenizer.model_max_length if tokenizer.model_max_length < UNLIMITED_MODEL_LEN else ASSUMED_MODEL_LEN


def _eos_ids(
    defaults: GenerationDefaults, text_config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> frozenset[int]:
    """The end-of-sequence tokens of generation_config.json, config.json or the tokenizer, the first that has any."""
    if defaults.eos_token_ids is not None:
        return defaults.eos_token_ids
    candidates = (getattr(text_config, "eos_token_id", None), tokenizer.eos_token_id)
    eos: int | list[int] = next((value for value in candidates if value is not None), [])
    return frozenset([eos] if isinstance(eos, int) else eos)
