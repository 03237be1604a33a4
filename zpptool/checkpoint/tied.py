# SPDX-License-Identifier: Apache-2.0
"""Whether the LM head is the input embedding, decided from the checkpoint and its config together.

A checkpoint without a head is tied, whatever its config says: there is nothing else that the last stage could use. One
with a head is tied only where the config says so: engines then take the embedding and leave the head alone, so that
the last stage needs both. A tied embedding goes to both ends of the pipeline with all tensors of its module, those
that a quantised weight has below its own name too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zpptool.checkpoint.config import text_config
from zpptool.checkpoint.header import TensorInfo
from zpptool.checkpoint.roles import BEFORE, BOTH, Role, Side, module_of, words_of
from zpptool.errors import invalid_error

_HEAD_WORDS = frozenset({"score", "classifier"})
_PLACE_WORDS = frozenset({"position", "positions", "positional", "pos", "wpe", "type", "types", "segment"})


def tie_ends(
    roles: Mapping[str, Role], tensors: Mapping[str, TensorInfo], config: dict[str, Any]
) -> tuple[dict[str, Role], tuple[str, ...]]:
    """The roles, with a tied embedding moved to both ends, and notes for the user.

    Raises:
        ZppError: (INVALID) the embedding is tied, and it is not clear which tensor it is.
    """
    said = _said_tied(config)
    head = _head(roles, tensors, _vocab_size(config))
    if head is not None and not said:
        return dict(roles), ()
    module = _embedding(roles, tensors, config)
    if module is None:
        if head is not None:
            return dict(roles), ()
        raise invalid_error(
            "the checkpoint holds neither an LM head nor an embedding that could stand for it",
            "download the checkpoint again; some of its tensors are not there",
        )
    notes: tuple[str, ...] = ()
    reason = "tied: the LM head is the input embedding"
    if head is None and said is False:
        notes = (f"there is no LM head, though config.json says tie_word_embeddings: false; {module} stands for it",)
    if head is not None:
        reason = f"tied by config.json, though the checkpoint holds {head} too"
    ends = Role(Side.ENDS, reason)
    tied = {name: ends if f"{name}.".startswith(f"{module}.") else role for name, role in roles.items()}
    return tied, notes


def _said_tied(config: dict[str, Any]) -> bool | None:
    """What config.json says of `tie_word_embeddings`; a composite model's outer and text config can each tie it."""
    said = [part.get("tie_word_embeddings") for part in (config, text_config(config))]
    return True if True in said else False if False in said else None


def _vocab_size(config: dict[str, Any]) -> int | None:
    value = text_config(config).get("vocab_size", config.get("vocab_size"))
    return value if isinstance(value, int) else None


def _head(roles: Mapping[str, Role], tensors: Mapping[str, TensorInfo], vocab_size: int | None) -> str | None:
    """The module that turns hidden states into scores: told by its words, or by its shape.

    A head is as wide as the vocabulary, or, where the config does not call that by its usual name, of the shape of an
    embedding.
    """
    embeddings = {
        tensors[name].shape
        for name, role in roles.items()
        if role == BEFORE and _embeds(name) and not words_of(name) & _PLACE_WORDS
    }
    for name, role in roles.items():
        if role.side is not Side.OUTPUT:
            continue
        words, shape = words_of(module_of(name)), tensors[name].shape
        told = {"lm", "head"} <= words or words & _HEAD_WORDS or vocab_size in shape or shape in embeddings
        if told and len(shape) > 1:
            return module_of(name)
    return None


def _embedding(roles: Mapping[str, Role], tensors: Mapping[str, TensorInfo], config: dict[str, Any]) -> str | None:
    """The module of the token embedding: of the inputs that embed, the one as long as the vocabulary.

    Where several fit, the one as wide as the hidden state; a vocabulary padded in the weights leaves only the words.

    Raises:
        ZppError: (INVALID) several tensors fit equally well.
    """
    candidates = [
        tensors[name]
        for name, role in roles.items()
        if role in (BEFORE, BOTH) and len(tensors[name].shape) == 2 and not words_of(name) & _PLACE_WORDS
    ]
    vocab_size, hidden_size = _vocab_size(config), text_config(config).get("hidden_size")
    for fits in (
        lambda tensor: tensor.shape[0] == vocab_size,
        lambda tensor: _embeds(tensor.name),
        lambda tensor: tensor.shape[1] == hidden_size,
    ):
        candidates = [tensor for tensor in candidates if fits(tensor)] or candidates
    found = {module_of(tensor.name) for tensor in candidates}
    modules = sorted(own for own in found if not any(own.startswith(f"{other}.") for other in found))
    if len(modules) > 1:
        raise invalid_error(f"the LM head is tied, and it is not clear to which of {' or '.join(modules)}")
    return modules[0] if modules else None


def _embeds(name: str) -> bool:
    return any(word.startswith("emb") or word in ("wte", "tok") for word in words_of(name))
