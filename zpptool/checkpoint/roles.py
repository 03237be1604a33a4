# SPDX-License-Identifier: Apache-2.0
"""Which side of the decoder a tensor outside its layers belongs to, told from the words in its name.

There is no table of model types here: the words are those in which model code speaks of its parts (an embedding, a
norm, a head, a tower). They are read from the module's name below the decoder's own path, never from the parameter's
(`weight`, `output_scale`), so that the companions of a quantised tensor go where it goes. Of a stack beside the decoder
(`vpm.encoder.layers.3.attention.output`) only the words before its number count, and of a part beside a text model only
those of its first name: all of it goes to one place. Where the words leave it open, a small tensor goes to every
stage, which is harmless, and a large one has no side: the caller refuses it.
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
    "modal", "mm", "perceiver", "resampler", "aligner", "qformer"
})  # fmt: skip
TEXT_WORDS = frozenset({"language", "text", "llm", "lm", "decoder", "thinker"})
PREDICTION_WORDS = frozenset({"mtp", "nextn", "eagle", "medusa", "draft"})
SPEAKER_WORDS = frozenset({"talker", "tts", "vocoder", "wav"})
_ROTARY_WORDS = frozenset({"rotary", "rope", "freq", "freqs"})
_OUTPUT_WORDS = frozenset({
    "head", "heads", "output", "out", "unembed", "logit", "logits", "final", "score", "classifier", "predictions",
    "loss", "pooler", "hyper"
})  # fmt: skip
_INPUT_WORDS = frozenset({"wte", "wpe", "tok", "input", "in", "altup"})
_VAGUE_WORDS = frozenset({"input", "in", "output", "out"})
"""Say where a module stands if it is called so itself, and nothing if a part deep within it is."""
_ENTWINED_WORDS = frozenset({"expert", "action"})
"""A second row of layers that works on the decoder's own caches, layer by layer: it lies neither before nor after."""
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
    """Goes on from what the last layer says, beside the head: the last stage."""
    ENDS = "ends"
    """Before the first layer and after the last one: a tied embedding."""
    EVERY = "every"
    """Read by all layers, or so small that a copy in every stage does no harm."""


class Role(NamedTuple):
    """A side, and why."""

    side: Side
    reason: str


LAYER = Role(Side.LAYER, "lies in a decoder layer")
PREDICTION = Role(Side.EXTRA, "predicts tokens past the next one: kept with the last stage")
SPEAKER = Role(Side.EXTRA, "speaks what the text model says: kept with the last stage")
TOWER = Role(Side.INPUT, "turns images, sound or video into embeddings")
FEEDS = Role(Side.INPUT, "lies outside the text model: feeds it")
PER_LAYER = Role(Side.INPUT, "makes the layers' own inputs, before the first layer")
BEFORE = Role(Side.INPUT, "comes before the first layer")
AFTER = Role(Side.OUTPUT, "comes after the last layer")
LAST_NORM = Role(Side.OUTPUT, "the norm after the last layer")
BOTH = Role(Side.ENDS, "is called after both ends: read before the first layer and after the last one")
POSITIONS = Role(Side.EVERY, "positions that every layer reads")
SMALL = Role(Side.EVERY, "small, and its name does not tell where it is read")


@lru_cache(maxsize=65536)
def words_of(name: str) -> frozenset[str]:
    """The lower-case words of a dotted name: `model.lm_head` has `model`, `lm` and `head`."""
    return frozenset(word for word in re.split(r"[._\d]+", name.lower()) if word)


def module_of(name: str) -> str:
    """The module that holds a parameter: `lm_head` of `lm_head.weight`; a bare parameter is its own."""
    return name.rpartition(".")[0] or name


def outside_role(relative_name: str, nbytes: int, *, beside_decoder: bool) -> Role | None:
    """The role of a tensor that lies in no decoder layer, or None where it is large and its words say nothing.

    Args:
        relative_name: the tensor's name without what it has in common with the path of the layers.
        nbytes: its bytes.
        beside_decoder: it lies outside the text model of a model that also has other inputs, say images.
    """
    module = module_of(relative_name)
    words = words_of(module)
    if words & PREDICTION_WORDS:
        return PREDICTION
    if words & SPEAKER_WORDS:
        return SPEAKER
    if beside_decoder:
        first = words_of(module.partition(".")[0])
        if first & _ENTWINED_WORDS:
            return None
        return AFTER if first & _OUTPUT_WORDS and not first & TOWER_WORDS else TOWER if words & TOWER_WORDS else FEEDS
    if words & TOWER_WORDS:
        return TOWER
    told, outer = words_of(_before_number(module)), words_of(".".join(module.split(".")[:2]))
    role = _told_role(told - (_VAGUE_WORDS - outer))
    return SMALL if role is None and nbytes < SMALL_BYTES else role


def _told_role(words: frozenset[str]) -> Role | None:
    """What the words of a module in the text model say of it."""
    if words & _ROTARY_WORDS or {"position", "bias"} <= words:
        return POSITIONS
    if {"per", "layer"} <= words:
        return PER_LAYER
    embeds = any(word.startswith("emb") for word in words)
    if words & _OUTPUT_WORDS:
        return BOTH if embeds and "in" in words else AFTER
    if any("norm" in word or word in ("ln", "lnf") for word in words):
        return None if embeds or words & _EARLY_WORDS else LAST_NORM
    return BEFORE if embeds or words & _INPUT_WORDS else None


def _before_number(module: str) -> str:
    """`vpm.encoder.layers` of `vpm.encoder.layers.3.attention.output`: what a stack of modules is called."""
    parts = module.split(".")
    place = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts))
    return ".".join(parts[:place])
