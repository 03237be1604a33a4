# SPDX-License-Identifier: Apache-2.0
"""Classify a tensor outside the decoder layers by the words in its name: needed before the layers, after them, or both.

There is no table of model types: the words are those that model code uses for its parts (embedding, norm, head, tower).
They are taken from the module name below the decoder's own path, never from the parameter name (`weight`,
`output_scale`), so that the scales of a quantised tensor are placed with it. For a stack beside the decoder
(`vpm.encoder.layers.3.attention.output`) only the words before its number count, and for a part beside a text model
only those of its first name component, so that all of it is placed together. A projection into or out of the hidden
state is placed by its shape and the config (see `projections`), because its name alone fits both. If the evidence is
inconclusive, a small tensor goes to every stage, which is harmless, and a large one gets no role: the caller refuses
it.
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

SMALL_BYTES = 1024 * 1024

TOWER_WORDS = frozenset({
    "vision", "visual", "vit", "sam", "clip", "siglip", "vpm", "image", "images", "img", "pixel", "vq", "vqmodel",
    "vqgan", "audio", "apm", "speech", "sound", "video", "protein", "tower", "projector", "connector", "multimodal",
    "modal", "mm", "perceiver", "resampler", "aligner", "qformer", "acoustic"
})  # fmt: skip
BRIDGE_WORDS = frozenset({"projector", "connector", "aligner"})
"""A module between two models; in a model that takes text alone it follows the last layer instead."""
TEXT_WORDS = frozenset({"language", "text", "llm", "lm", "decoder", "thinker"})
PREDICTION_WORDS = frozenset({"mtp", "nextn", "eagle", "medusa", "draft"})
SPEAKER_WORDS = frozenset({"talker", "tts", "vocoder", "wav", "depformer"})
_PRODUCER_WORDS = frozenset({"head", "heads", "decoder", "generator", "synthesizer", "detokenizer"})
"""With a word of another modality in the first name component: a module that produces sound or images."""
_PROJECTION_WORDS = frozenset({"proj", "projection", "project", "projector", "linear", "dense", "mapping", "fc"})
_ROTARY_WORDS = frozenset({"rotary", "rope", "freq", "freqs"})
_OUTPUT_WORDS = frozenset({
    "head", "heads", "output", "out", "unembed", "logit", "logits", "final", "score", "classifier", "predictions",
    "loss", "pooler", "hyper", "rank", "ranker", "rerank", "reranker", "reward", "retrieval", "colbert", "scorer",
})  # fmt: skip
_INPUT_WORDS = frozenset({"wte", "wpe", "vte", "tok", "input", "in", "altup"})
_LEARNED_WORDS = frozenset({"query", "queries", "token", "tokens", "prompt", "prompts", "latents", "newline"})
"""Vectors that are learned and fed to the model: they have the shape of a projection out of it."""
_VAGUE_WORDS = frozenset({"input", "in", "output", "out"})
"""These words place a module only if they occur in its outer name, not in the name of a part deep inside it."""
_ENTWINED_WORDS = frozenset({"expert", "action"})
"""A second stack of layers that uses the decoder's own caches, layer by layer: it is neither before nor after it."""
_EARLY_WORDS = frozenset({"input", "in", "pre", "first"})


class Side(StrEnum):
    """Where a tensor is needed."""

    INPUT = "input"
    """Before the first layer: the first stage."""
    LAYER = "layer"
    """In one decoder layer: the stage that owns it."""
    SHARED = "shared"
    """In several decoder layers: each stage that owns one of them."""
    OUTPUT = "output"
    """After the last layer: the last stage."""
    EXTRA = "extra"
    """Uses the last layer's output, beside the head: the last stage."""
    ENDS = "ends"
    """Before the first layer and after the last one: a tied embedding."""
    PLACED = "placed"
    """Where the user placed it."""
    EVERY = "every"
    """Read by all layers, or so small that a copy in every stage is harmless."""


class Role(NamedTuple):
    """The side of a tensor, and the reason, as shown to the user."""

    side: Side
    reason: str


LAYER = Role(Side.LAYER, "in a decoder layer")
PREDICTION = Role(Side.EXTRA, "predicts tokens past the next one: kept with the last stage")
SPEAKER = Role(Side.EXTRA, "turns the text model's output into speech: kept with the last stage")
TOWER = Role(Side.INPUT, "turns images, sound or video into embeddings")
FEEDS = Role(Side.INPUT, "outside the text model: feeds it")
PRODUCER = Role(Side.EXTRA, "turns the last hidden state into sound or images: kept with the last stage")
PROJECTS_IN = Role(Side.INPUT, "projects into the hidden state, before the first layer")
PROJECTS_OUT = Role(Side.OUTPUT, "projects the last hidden state")
PER_LAYER = Role(Side.INPUT, "computes per-layer inputs, before the first layer")
BEFORE = Role(Side.INPUT, "comes before the first layer")
AFTER = Role(Side.OUTPUT, "comes after the last layer")
LAST_NORM = Role(Side.OUTPUT, "the norm after the last layer")
BOTH = Role(Side.ENDS, "named after both ends: read before the first layer and after the last one")
POSITIONS = Role(Side.EVERY, "positions that every layer reads")
SMALL = Role(Side.EVERY, "small, and its name does not show where it is read")


@lru_cache(maxsize=65536)
def words_of(name: str) -> frozenset[str]:
    """Return the lower-case words of a dotted name: `model`, `lm` and `head` for `model.lm_head`."""
    return frozenset(word for word in re.split(r"[._\d]+", name.lower()) if word)


def module_of(name: str) -> str:
    """Return the module name of a parameter: `lm_head` for `lm_head.weight`; a name without a dot is returned as is."""
    return name.rpartition(".")[0] or name


def outside_role(
    relative_name: str,
    nbytes: int,
    *,
    beside_decoder: bool,
    takes_more_than_text: bool = True,
    by_shape: Role | None = None,
    by_config: Role | None = None,
) -> Role | None:
    """Return the role of a tensor outside the decoder layers, or None if it is large and its name is inconclusive.

    Args:
        relative_name: the tensor's name without the prefix it shares with the path of the layers.
        nbytes: size of the tensor in bytes.
        beside_decoder: whether it is outside the text model of a model with other modalities, such as images.
        takes_more_than_text: whether the model has a part for another modality at all.
        by_shape: the side that its shapes show, if it is a projection (see `projections`).
        by_config: the side that the config shows.
    """
    module = module_of(relative_name)
    words, first = words_of(module), words_of(module.partition(".")[0])
    if words & PREDICTION_WORDS:
        return PREDICTION
    if words & SPEAKER_WORDS or {"depth", "decoder"} <= first:
        return SPEAKER
    if any({"lm", "head"} <= words_of(part) or {"lm", "heads"} <= words_of(part) for part in module.split(".")):
        return AFTER
    produces = first & _PRODUCER_WORDS or module.split(".")[1:2] == ["decoder"]
    if first & TOWER_WORDS and produces and "encoder" not in first:
        return PRODUCER
    if is_unclear_projection(first, takes_more_than_text=takes_more_than_text):
        return by_shape or by_config or (SMALL if nbytes < SMALL_BYTES else None)
    feeds = (beside_decoder or first & BRIDGE_WORDS) and not first & TOWER_WORDS - BRIDGE_WORDS
    if feeds and by_shape is PROJECTS_OUT and not (first & (_INPUT_WORDS | _LEARNED_WORDS) or _embeds(first)):
        return PROJECTS_OUT
    if beside_decoder:
        if first & _ENTWINED_WORDS:
            return None
        return AFTER if first & _OUTPUT_WORDS and not first & TOWER_WORDS else TOWER if words & TOWER_WORDS else FEEDS
    if words & TOWER_WORDS:
        return TOWER
    stack_words, outer = words_of(_before_number(module)), words_of(".".join(module.split(".")[:2]))
    role = _role_by_words(stack_words - (_VAGUE_WORDS - outer))
    return SMALL if role is None and nbytes < SMALL_BYTES else role


def is_unclear_projection(first: frozenset[str], *, takes_more_than_text: bool) -> bool:
    """Return whether a module with these words in its first name component could follow the last layer or feed it.

    Such modules are the projections of retrieval models (`embedding_proj_layer`, `custom_text_proj`, `linear`), and a
    projector where no other modality is there that it could project.
    """
    if not first & _PROJECTION_WORDS or first & (_OUTPUT_WORDS | _INPUT_WORDS | _EARLY_WORDS) or "per" in first:
        return False
    if first & TOWER_WORDS:
        bridge = not first & TOWER_WORDS - BRIDGE_WORDS
        return bridge and (not takes_more_than_text or bool(first & {"vector", "vectors"}))
    return _embeds(first) or "text" in first or first <= _PROJECTION_WORDS | {"layer"}


def _embeds(words: frozenset[str]) -> bool:
    return any(word.startswith("emb") for word in words)


def _role_by_words(words: frozenset[str]) -> Role | None:
    """Return the role that the words of a module name in the text model imply, or None."""
    if words & _ROTARY_WORDS or {"position", "bias"} <= words:
        return POSITIONS
    if {"per", "layer"} <= words:
        return PER_LAYER
    embeds = _embeds(words)
    if words & _OUTPUT_WORDS:
        return BOTH if embeds and "in" in words else AFTER
    if any("norm" in word or word in ("ln", "lnf") for word in words):
        return None if embeds or words & _EARLY_WORDS else LAST_NORM
    return BEFORE if embeds or words & _INPUT_WORDS else None


def _before_number(module: str) -> str:
    """Return the name up to its first number: `vpm.encoder.layers` for `vpm.encoder.layers.3.attention.output`."""
    parts = module.split(".")
    place = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[:place])
