# SPDX-License-Identifier: Apache-2.0
"""The model that the HTTP API serves: its tokenizer, its limits, and a function that generates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from zpptool.checkpoint.model_config import MAX_CONFIG_BYTES
from zpptool.document import read_json
from zpptool.engines.transformers.loading import load_config
from zpptool.engines.transformers.sampling import SamplingParams
from zpptool.errors import invalid_error

ASSUMED_MODEL_LEN = 8192
"""The limit of a sequence in tokens, where neither config nor tokenizer has one."""
UNLIMITED_MODEL_LEN = 10**9
"""A tokenizer's limit from here on means none: transformers uses 10**30."""


class Generate(Protocol):
    """Generates the tokens of one sequence, one after the other. Closing the generator cancels the sequence."""

    def __call__(
        self, prompt_ids: Sequence[int], max_new_tokens: int, stop_ids: Collection[int], sampling: SamplingParams
    ) -> Generator[int, None, None]:
        """At most `max_new_tokens` tokens; the last one may be of `stop_ids`, none before it is.

        Raises:
            ZppError: (STAGE) the pipeline has failed.
        """
        ...


@dataclass(frozen=True)
class ServedModel:
    """A model with its tokenizer and limits.

    Attributes:
        name: its name in requests.
        tokenizer: transformers' own; used from the event loop's thread only.
        max_model_len: the greatest number of tokens of prompt and answer together.
        vocab_size: token ids are below this.
        eos_ids: the tokens that end an answer.
        generate: generates the tokens of a sequence.
        is_healthy: returns whether the model can still answer.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    max_model_len: int
    vocab_size: int
    eos_ids: frozenset[int]
    generate: Generate
    is_healthy: Callable[[], bool]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a prompt."""
        token_ids: list[int] = self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return token_ids

    def decode(self, token_ids: list[int]) -> str:
        """The text of token ids, without special tokens."""
        text: str = self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def served_model(
    directory: Path, generate: Generate, is_healthy: Callable[[], bool], name: str | None = None
) -> ServedModel:
    """The model of a checkpoint, or of a stage directory.

    Raises:
        ZppError: (INVALID) transformers cannot read its config or its tokenizer.
    """
    text_config = load_config(directory).get_text_config(decoder=True)
    tokenizer = _load_tokenizer(directory)
    return ServedModel(
        name=name or str(directory),
        tokenizer=tokenizer,
        max_model_len=_max_model_len(text_config, tokenizer),
        vocab_size=text_config.vocab_size,
        eos_ids=_eos_ids(directory, text_config, tokenizer),
        generate=generate,
        is_healthy=is_healthy,
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


def _eos_ids(directory: Path, text_config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The end-of-sequence tokens of generation_config.json, config.json or the tokenizer, the first that has any."""
    path = directory / "generation_config.json"
    generation: Any = read_json(path, MAX_CONFIG_BYTES, "config") if path.exists() else {}
    if not isinstance(generation, dict):
        raise invalid_error(f"{path} is not a JSON object")
    candidates = (generation.get("eos_token_id"), getattr(text_config, "eos_token_id", None), tokenizer.eos_token_id)
    eos: int | list[int] = next((value for value in candidates if value is not None), [])
    return frozenset([eos] if isinstance(eos, int) else eos)
