# SPDX-License-Identifier: Apache-2.0
"""The cache of one sequence on one stage. All its layers have the sequence's length; only the stage's own are filled.

A model reads the sequence's length from its cache, possibly from a layer that is not this stage's. So a layer of
another stage counts its tokens too: it gets one NaN for each token, which would show in the output if it were used.
"""

from __future__ import annotations

import torch
from transformers import Cache, DynamicCache, PreTrainedConfig, cache_utils
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, LinearAttentionCacheLayerMixin

from zpptool.errors import invalid_error
from zpptool.partition import LayerRange

STATELESS = getattr(cache_utils, "DummyLayer", ())
"""The entry of a layer that keeps no state, such as a layer without attention: in transformers 5.24, not in 5.19."""


def new_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache of the kind that `generate` makes for this config
    (`GenerationMixin._prepare_cache_for_generation`).

    Raises:
        ZppError: (INVALID) a layer's cache is of an unknown kind.
    """
    cache = DynamicCache(config=config.get_text_config(decoder=True))
    for index, layer in enumerate(cache.layers):
        if not isinstance(layer, (DynamicLayer, LinearAttentionCacheLayerMixin, STATELESS)):
            raise invalid_error(
                f"layer {index} of {config.model_type} keeps a {type(layer).__name__}, which is not known"
            )
    return cache


def pass_layer(cache: Cache, index: int, num_tokens: int) -> None:
    """Add `num_tokens` tokens to the length of layer `index`, which another stage computes."""
    layer = cache.layers[index]
    if isinstance(layer, CacheLayerMixin):
        placeholder = torch.full((1, 1, num_tokens, 1), torch.nan, dtype=torch.bfloat16)
        cache.update(placeholder, placeholder, index)
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        layer.has_previous_state = dict.fromkeys(layer.has_previous_state, True)


def check_filled(cache: Cache, layers: LayerRange, num_tokens: int) -> None:
    """Check that the stage's own layers have cached what they computed for `num_tokens` tokens.

    Raises:
        ZppError: (INVALID) they have not: the model would need the whole sequence at every step.
    """
    for index, layer in enumerate(cache.layers[slice(*layers)], start=layers.start):
        if isinstance(layer, CacheLayerMixin) and layer.get_seq_length() != num_tokens:
            raise invalid_error(f"layer {index} does not keep its keys and values in the cache")
