# SPDX-License-Identifier: Apache-2.0
"""From the fields of a request to the rules by which tokens are excluded or preferred."""

from __future__ import annotations

from collections.abc import Iterable

from zpptool.engines.transformers.api.bad_request import BadRequest
from zpptool.engines.transformers.api.prompt_encoder import PromptEncoder
from zpptool.engines.transformers.api.requests import MAX_BIAS, GenerationRequest
from zpptool.engines.transformers.api.served import ServedModel
from zpptool.engines.transformers.token_rules import TokenRules

_LONGEST_ID = 20
"""Digits; no vocabulary is as large."""


async def token_rules(body: GenerationRequest, served: ServedModel, encoder: PromptEncoder) -> TokenRules | None:
    """The rules of a request; None if it sets none.

    Raises:
        BadRequest: a token id is not in the model's vocabulary, or a word has no tokens.
    """
    if wrong := [name for name in body.logit_bias if not (name.isdecimal() and len(name) < _LONGEST_ID)]:
        raise BadRequest(f"logit_bias: no token ids: {', '.join(wrong)}", "logit_bias")
    bias = {int(token): max(-MAX_BIAS, min(MAX_BIAS, value)) for token, value in body.logit_bias.items()}
    _check("logit_bias", bias, served.vocab_size)
    _check("allowed_token_ids", body.allowed_token_ids or (), served.vocab_size)
    banned = await encoder.banned_sequences(body.bad_words) if body.bad_words else []
    if body.bad_words and not banned:
        raise BadRequest("bad_words: a word has no tokens", "bad_words")
    rules = TokenRules(
        bias=bias,
        allowed=tuple(body.allowed_token_ids or ()),
        banned=tuple(map(tuple, banned)),
        min_tokens=body.min_tokens,
        end_ids=tuple(sorted(served.eos_ids.union(body.stop_token_ids))) if body.min_tokens else (),
    )
    return rules or None


def _check(field: str, tokens: Iterable[int], vocab_size: int) -> None:
    for token in tokens:
        if token >= vocab_size:
            raise BadRequest(f"{field}: {token} is not a token of this model, which has {vocab_size}", field)
