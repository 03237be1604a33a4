# SPDX-License-Identifier: Apache-2.0
"""A small checkpoint of random weights that every attention kernel takes, made on the spot.

Weights this large make a model that does not repeat itself, so that a wrong bit shows in its tokens.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast


def make_tiny_model(directory: Path, layers: int = 6, width: int = 256) -> Path:
    """Write the checkpoint into `directory` and return that. Heads have 64 values; the dtype is bfloat16."""
    config = AutoConfig.for_model(
        "llama", num_hidden_layers=layers, hidden_size=width, intermediate_size=2 * width, vocab_size=512,
        num_attention_heads=width // 64, num_key_value_heads=max(1, width // 128), max_position_embeddings=2048,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=1, pad_token_id=1, initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval().save_pretrained(directory)
    _byte_tokenizer().save_pretrained(directory)
    return directory


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, **{letter: place for place, letter in enumerate(letters, start=2)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
