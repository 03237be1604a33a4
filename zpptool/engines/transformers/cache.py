# SPDX-License-Identifier: Apache-2.0
"""The cache of one sequence on one stage: right about the sequence's length, filled only for the stage's own layers.

A model asks its cache how long the sequence is, and asks a layer that need not be this stage's. So a layer that is
passed counts its tokens too: it is given one NaN a token, of no use to whoever would read it.
"""

from __future__ import annotations

import torch
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, LinearAttentionCacheLayerMixin

from zpptool.errors import invalid_error
from zpptool.partition import LayerRange


def new_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache, the one that `generate` makes for this config (`GenerationMixin._prepare_cache_for_generation`).

    Raises:
        ZppError: (INVALID) a layer keeps a state of a kind that is not known.
    """
    cache = DynamicCache(config=config.get_text_config(decoder=True))
    for index, layer in enumerate(cache.layers):
        if not isinstance(layer, DynamicLayer | LinearAttentionCacheLayerMixin):
            raise invalid_error(
                f"layer {index} of {config.model_type} keeps a {type(layer).__name__}, which is not known"
            )
    return cache


def pass_layer(cache: Cache, index: int, num_tokens: int) -> None:
    """Count `num_tokens` more tokens in layer `index`, which another stage computes."""
    layer = cache.layers[index]
    if isinstance(layer, CacheLayerMixin):
        nothing = torch.full((1, 1, num_tokens, 1), torch.nan, dtype=torch.bfloat16)
        cache.update(nothing, nothing, index)
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        layer.has_previous_state = dict.fromkeys(layer.has_previous_state, True)


def check_filled(cache: Cache, layers: LayerRange, num_tokens: int) -> None:
    """See that the stage's own layers keep what they computed for `num_tokens` tokens.

    Raises:
        ZppError: (INVALID) they do not: the model would have to see the whole sequence at every step.
    """
    for index, layer in enumerate(cache.layers[slice(*layers)], start=layers.start):
        if isinstance(layer, CacheLayerMixin) and layer.get_seq_length() != num_tokens:
            raise invalid_error(f"layer {index} does not keep its keys and values in the cache")
