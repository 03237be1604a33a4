# SPDX-License-Identifier: Apache-2.0
"""Decide whether the LM head is tied to the input embedding, from the checkpoint and its config together.

A checkpoint without a head is tied, whatever its config states: the last stage has nothing else to use. One with a head
is tied only if the config says so: engines then use the embedding and ignore the head, so that the last stage needs
both. A tied embedding goes to both ends of the pipeline with all tensors of its module, including those below the name
of a quantised weight. If only the head is stored, it is the embedding, provided that the config does not deny it; no
first stage is without an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zpptool.checkpoint.header import TensorInfo
from zpptool.checkpoint.model_config import text_config
from zpptool.checkpoint.roles import BEFORE, BOTH, TOWER, TOWER_WORDS, Role, Side, module_of, words_of
from zpptool.errors import invalid_error

_HEAD_WORDS = frozenset({"score", "classifier"})
_PLACE_WORDS = frozenset({"position", "positions", "positional", "pos", "wpe", "type", "types", "segment"})


def tie_ends(
    roles: Mapping[str, Role], tensors: Mapping[str, TensorInfo], config: dict[str, Any]
) -> tuple[dict[str, Role], tuple[str, ...]]:
    """Return the roles with a tied embedding moved to both ends, and notes for the user.

    Args:
        roles: the roles by tensor name.
        tensors: the tensors by name.
        config: the parsed config.json.

    Raises:
        ZppError: (INVALID) the embedding is tied, and it is not clear which tensor it is; or there is no embedding.
    """
    stated = _stated_tying(config)
    head = _head(roles, tensors, _vocab_size(config))
    if head is not None and not _has_embedding(roles, tensors, _vocab_size(config)):
        return _embed_with_head(roles, head, stated)
    if head is not None and not stated:
        return dict(roles), ()
    module = _embedding(roles, tensors, config)
    if module is None:
        if head is not None or any(role.side is Side.PLACED for role in roles.values()):
            return dict(roles), ()
        raise invalid_error(
            "the checkpoint holds neither an LM head nor an embedding that could be tied to it",
            "download the checkpoint again; some of its tensors are missing",
        )
    notes: tuple[str, ...] = ()
    reason = "tied: the LM head is the input embedding"
    if head is None and stated is False:
        notes = (
            f"there is no LM head, though config.json has tie_word_embeddings: false; {module} is used as the head",
        )
    if head is not None:
        reason = f"tied by config.json, though the checkpoint holds {head} too"
    ends = Role(Side.ENDS, reason)
    return _with_module(roles, module, ends), notes


def _embed_with_head(
    roles: Mapping[str, Role], head: str, stated: bool | None
) -> tuple[dict[str, Role], tuple[str, ...]]:
    """Return the roles with the head at both ends, as the embedding that is not stored under a name of its own.

    Raises:
        ZppError: (INVALID) the config says that the embedding is another tensor: it was lost.
    """
    if stated is False:
        raise invalid_error(
            f"the checkpoint holds {head} but no input embedding, and config.json has tie_word_embeddings: false",
            "Download or convert the checkpoint again; its embedding is missing.",
        )
    why = "by config.json" if stated else "as no other embedding is stored"
    role = Role(Side.ENDS, f"tied: the input embedding is the LM head, {why}")
    return _with_module(roles, head, role), (f"there is no input embedding; {head} is used as the embedding, {why}",)


def _with_module(roles: Mapping[str, Role], module: str, role: Role) -> dict[str, Role]:
    """Return the roles with `role` for all tensors of a module."""
    return {name: role if f"{name}.".startswith(f"{module}.") else own for name, own in roles.items()}


def _has_embedding(roles: Mapping[str, Role], tensors: Mapping[str, TensorInfo], vocab_size: int | None) -> bool:
    """Return whether a tensor that the first stage gets embeds tokens, by its name or by a row for each of them."""
    return any(
        role.side in (Side.INPUT, Side.ENDS, Side.EVERY, Side.PLACED)
        and role != TOWER
        and not words_of(name) & _PLACE_WORDS
        and (_embeds(name) or (len(tensors[name].shape) == 2 and tensors[name].shape[0] == vocab_size))
        for name, role in roles.items()
    )


def _stated_tying(config: dict[str, Any]) -> bool | None:
    """Return `tie_word_embeddings`, or None; a composite model can set it in its outer or its text config."""
    stated = [part.get("tie_word_embeddings") for part in (config, text_config(config))]
    return True if True in stated else False if False in stated else None


def _vocab_size(config: dict[str, Any]) -> int | None:
    value = text_config(config).get("vocab_size", config.get("vocab_size"))
    return value if isinstance(value, int) else None


def _head(roles: Mapping[str, Role], tensors: Mapping[str, TensorInfo], vocab_size: int | None) -> str | None:
    """Return the module that maps hidden states to logits, recognised by its name or its shape, or None.

    A head has the vocabulary size as a dimension or, if the config does not state it under its usual key, the shape of
    an embedding.
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
        named = ({"lm", "head"} <= words or words & _HEAD_WORDS) and not words & TOWER_WORDS
        is_head = named or {"text", "lm", "head"} <= words or vocab_size in shape or shape in embeddings
        if is_head and len(shape) > 1:
            return module_of(name)
    return None


def _embedding(roles: Mapping[str, Role], tensors: Mapping[str, TensorInfo], config: dict[str, Any]) -> str | None:
    """Return the module of the token embedding, or None: the input embedding with one row per vocabulary entry.

    If several fit, the one with the hidden size is taken; if the vocabulary is padded in the weights, the names decide.

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
    modules = sorted(module for module in found if not any(module.startswith(f"{other}.") for other in found))
    if len(modules) > 1:
        raise invalid_error(f"the LM head is tied, and it is not clear to which of {' or '.join(modules)}")
    return modules[0] if modules else None


def _embeds(name: str) -> bool:
    return any(word.startswith("emb") or word in ("wte", "tok") for word in words_of(name))
