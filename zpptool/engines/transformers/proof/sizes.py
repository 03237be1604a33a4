# SPDX-License-Identifier: Apache-2.0
"""The sizes in a model's config, made small in proportion. Everything that depends on the number of a layer is kept.

A width is a number of heads times the size of a head. So all numbers of heads are divided by one factor, all sizes
within a head by another, and all widths by both: what fitted together still does. What is no product (vocabulary,
experts, windows) gets a small size of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, TypeGuard

Values = Mapping[str, Any]
_VOCABULARY = 320
_FIRST_SPECIAL_TOKEN = 300
_SMALL_HEADS, _MANY_HEADS, _SMALL_HEAD, _SMALLEST_PART = 4, 12, 16, 2
"""The wanted number of heads, from which number on they are too many, the wanted size of a head, and the smallest size
of a part of a head."""
_CAPS: tuple[tuple[str, int], ...] = (
    (r"^(pronunciation|shape)_vocab_size$", 64),  # not the tokens' vocabulary, by whose size their embedding is known
    (r"vocab_size|^ctx_len$|vocab_size_per_layer_input$", _VOCABULARY),
    (r"(sliding_window|attention_window_size|window_size|attention_chunk_size|chunk_size)$", 8),
    (r"^(num_experts|n_experts)$|routed_experts|num_local_experts|moe_num_experts?", 4),
    (r"(experts_per_tok(en)?|moe_topk|moe_top_k|^top_k|experts_top_k|moe_k|activated_experts|selected_experts)$", 2),
    (r"(n_group|topk_group|num_expert_group)$", 1),
    (r"(lora_rank|dt_rank|time_step_rank|hidden_size_per_layer_input)$", 16),
    (r"(state_size|d_state)$", 8),
)
"""Patterns of the names of sizes that stand alone, and their largest small value; the first pattern that matches
counts, before all others."""
_SHARED_HEADS = re.compile(
    r"(num_key_value_heads|num_kv_heads|n_kv_heads|kv_n_heads|num_query_groups|multi_query_group_num|n_groups)$"
)
_HEADS = re.compile(r"(num_\w*heads|n_heads?|attention_heads|n_mamba_heads|mamba_n_heads|num_\w*heads_per_layer)$")
_WITHIN = re.compile(
    r"(head_dim|attention_head_size|d_head|head_size|d_kv|kv_channels|rotary_dim|headdim|head_width|qk_head_dim)$"
)
_WIDTH = re.compile(
    r"intermediate_size|ffn_dim|n_inner|ffn_hidden_size|mlp_hidden|d_ff|inner_size|dim_ff|dff|ffn_size|hidden_size"
    r"|d_model|n_embd|emb_dim|embed_dim|^dim$|hidden_dim|embedding_size|d_embed|width|projection_dim|proj_dim"
    r"|embedding_dim|lru_width|d_inner|d_ssm|out_channels$|hidden_channels|model_dim|block_dim|conv_dim"
)
_MAIN_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "attention_heads")
_MAIN_WIDTH = ("hidden_size", "d_model", "n_embd", "emb_dim", "model_dim", "dim")
_SPECIAL_TOKEN = re.compile(r"(pad|bos|eos|sep|cls|unk|mask|decoder_start|forced_\w+)_token_id$")


@dataclass(frozen=True)
class Scale:
    """What numbers of heads and sizes within a head are divided by, and the number of heads before that."""

    heads: Fraction = Fraction(1)
    within: int = 1
    num_heads: int = 1

    @property
    def width(self) -> Fraction:
        """What a width is divided by."""
        return self.heads * self.within

    def shared(self, value: int) -> int:
        """A number of heads that several of the `num_heads` share; it divides their small number."""
        small = int(self.num_heads / self.heads)
        if value == self.num_heads:
            return small
        return value if value < 2 else math.gcd(small, 2)


def small_values(values: Values, scale: Scale | None = None) -> dict[str, Any]:
    """The values of a config, or of a part of one, with small sizes.

    Args:
        values: as `PreTrainedConfig.to_dict` returns them.
        scale: that of the config around them, which counts where they state no heads of their own.
    """
    own = _scale_of(values) or _for_heads_of(values, scale or Scale())
    return {key: _small(key, value, own) for key, value in values.items()}


def _scale_of(values: Values) -> Scale | None:
    """The largest factors that divide what they have to divide; None where `values` state no width."""
    num_heads, width = _first_size(values, _MAIN_HEADS), _first_size(values, _MAIN_WIDTH)
    if width is None:
        return None
    if num_heads is None:
        return Scale(within=_largest_divisor({width}, lambda size: size >= _SMALL_HEADS * _SMALL_HEAD))
    counts = {num_heads, *_sizes(values, lambda key: bool(_HEADS.search(key)) and not _SHARED_HEADS.search(key))}
    within = set(_sizes(values, lambda key: bool(_WITHIN.search(key))))
    if not isinstance(values.get("head_dim"), int) and width % num_heads == 0:
        within.add(width // num_heads)
    heads = Fraction(_largest_divisor(counts, bool, most=max(num_heads // _SMALL_HEADS, 1)))
    if num_heads / heads > _MANY_HEADS:
        heads = Fraction(num_heads, _SMALL_HEADS)
    part = _largest_divisor(within, lambda size: size >= _SMALLEST_PART and size % 2 == 0)
    while part > 1 and max(within) // part < _SMALL_HEAD:
        part = max(n for n in range(1, part) if part % n == 0)
    return Scale(heads, part, num_heads)


def _for_heads_of(values: Values, scale: Scale) -> Scale:
    """The scale of the config around `values`, for the number of heads that they state."""
    return replace(scale, num_heads=_first_size(values, _MAIN_HEADS) or scale.num_heads)


def _first_size(values: Values, names: Sequence[str]) -> int | None:
    """The size with the first of these names that is stated."""
    found: list[int] = [value for value in map(values.get, names) if _is_size(value)]
    return found[0] if found else None


def _sizes(values: Values, wanted: Callable[[str], bool]) -> Iterator[int]:
    """The sizes in `values`, and in parts that are no configs of their own, whose names are wanted."""
    for key, value in values.items():
        if isinstance(value, Mapping) and "model_type" not in value:
            yield from _sizes(value, wanted)
        elif wanted(key):
            yield from (n for n in (value if isinstance(value, list | tuple) else (value,)) if _is_size(n))


def _largest_divisor(numbers: set[int], allowed: Callable[[int], object], most: float = math.inf) -> int:
    """The largest number up to `most` that divides all numbers and leaves only allowed ones; 1 if there is none."""
    common = math.gcd(*numbers) if numbers else 1
    divisors = (n for n in range(common, 1, -1) if common % n == 0 and n <= most)
    return next((n for n in divisors if all(allowed(number // n) for number in numbers)), 1)


def _is_size(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _small(key: str, value: Any, scale: Scale) -> Any:
    if isinstance(value, Mapping):
        return _small_rope(value, scale) if "rope" in key else small_values(value, scale)
    if isinstance(value, list | tuple):
        if _SPECIAL_TOKEN.search(key):
            return [_small(key, entry, scale) for entry in value][:1]
        return [_small(key, entry, scale) if _is_size(entry) else entry for entry in value]
    if not _is_size(value):
        return value
    if _SPECIAL_TOKEN.search(key):
        return value if value < _FIRST_SPECIAL_TOKEN else 1
    if re.search(r"(token_id|_index)$", key):
        return value if value < _FIRST_SPECIAL_TOKEN else _FIRST_SPECIAL_TOKEN + sum(map(ord, key)) % 19
    return _small_size(key, value, scale)


def _small_size(key: str, value: int, scale: Scale) -> int:
    for pattern, most in _CAPS:
        if re.search(pattern, key):
            return min(value, most)
    if _SHARED_HEADS.search(key):
        return scale.shared(value)
    if _HEADS.search(key):
        return max(int(value / scale.heads), 1)
    if _WITHIN.search(key):
        return max(value // scale.within, 1)
    return _small_width(value / scale.width) if _WIDTH.search(key) else value


def _small_width(width: Fraction) -> int:
    """The width if it is whole, else the next multiple of eight: kernels demand that rows are aligned."""
    return int(width) if width.denominator == 1 else 8 * math.ceil(width / 8)


def _small_rope(values: Values, scale: Scale) -> dict[str, Any]:
    """Rotary settings: lists with an entry for each pair of a head's numbers are shortened, and the sections of a head
    divided."""
    small = dict(values)
    for key, value in values.items():
        if isinstance(value, Mapping):
            small[key] = _small_rope(value, scale)
        elif key.endswith("_section") and isinstance(value, list | tuple):
            small[key] = _divided(value, scale.within)
        elif key.endswith("_factor") and isinstance(value, list | tuple):
            small[key] = list(value)[: len(value) // scale.within]
    return small


def _divided(sections: list[int] | tuple[int, ...], by: int) -> list[int]:
    """Sections that add up to `by` times less."""
    small = [section // by for section in sections]
    for place in range(sum(sections) // by - sum(small)):
        small[place % len(small)] += 1
    return small
