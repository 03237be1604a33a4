# SPDX-License-Identifier: Apache-2.0
"""Every field of a request of vLLM's: what asks for it in the tests of recovery, or why nothing has to.

A field of a later vLLM is in neither table, and `tests/unit/test_vllm_fields.py` fails until it is known to survive the
loss of a stage. Nothing here imports vLLM.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

PROMPT = "The capital of France is Paris. The capital of Spain is"
SEEDED = {"temperature": 1.0, "seed": 5}
EOS = 2
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 60}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
}
TAG = {
    "type": "structural_tag",
    "format": {"type": "tag", "begin": "<a>", "content": {"type": "json_schema", "json_schema": SCHEMA}, "end": "</a>"},
}


@dataclass(frozen=True)
class Wish:
    """A completion that a field has a part in.

    Attributes:
        asks: the field, as a client asks for it.
        beside: what else the client asks. Without `asks` the answer is another one, or the field would show nothing.
    """

    asks: dict[str, Any]
    beside: dict[str, Any] = field(default_factory=dict)


WISHES: dict[str, Wish] = {
    "n": Wish({"n": 3}, SEEDED),
    "presence": Wish({"presence_penalty": 2.0}, {**SEEDED, "allowed_token_ids": list(range(900, 940))}),
    "frequency": Wish({"frequency_penalty": 1.5}, {"logit_bias": {"900": 30.0, "901": 28.0, "902": 26.0}}),
    "repetition": Wish({"repetition_penalty": 1.3}, {"logit_bias": {"900": 30.0, "901": 25.0, "902": 22.0}}),
    "temperature": Wish({"temperature": 0.8}, {"seed": 6}),
    "seed": Wish({"seed": 7}, SEEDED),
    "top p": Wish({"top_p": 0.5}, SEEDED),
    "top k": Wish({"top_k": 3}, SEEDED),
    "min p": Wish({"min_p": 0.3}, SEEDED),
    "end": Wish(
        {"ignore_eos": False},
        {"temperature": 2.0, "seed": 12, "allowed_token_ids": [EOS, *range(300, 420)], "logit_bias": {str(EOS): 5.0}},
    ),
    "length": Wish({"max_tokens": 72}),
    "logprobs": Wish({"logprobs": 3}),
    "logprob tokens": Wish({"logprob_token_ids": [5, 6, 7]}, {"logprobs": 1}),
    "prompt logprobs": Wish({"echo": True}, {"logprobs": 2, "prompt": PROMPT * 12}),
    "bias": Wish({"logit_bias": {"100": 12.0}}, SEEDED),
    "allowed": Wish({"allowed_token_ids": list(range(300, 400))}, SEEDED),
    "json": Wish({"structured_outputs": {"json": SCHEMA}}, SEEDED),
    "regex": Wish({"structured_outputs": {"regex": "[a-z ]{70,80}-[0-9]{9}"}}, SEEDED),
    "choice": Wish({"structured_outputs": {"choice": ["red " * 40, "green " * 40]}}, SEEDED),
    "grammar": Wish({"structured_outputs": {"grammar": 'root ::= "a" root | "b" root'}}, SEEDED),
    "any json": Wish({"structured_outputs": {"json_object": True}}, SEEDED),
    "tag": Wish({"structured_outputs": {"structural_tag": json.dumps(TAG)}}, SEEDED),
    "thinking": Wish({"thinking_token_budget": 60}, {"prompt": f"{PROMPT}<|im_start|>"}),
    "loop": Wish(
        {"repetition_detection": {"max_pattern_size": 1, "min_pattern_size": 1, "min_count": 64}},
        {"allowed_token_ids": [400]},
    ),
    "processor": Wish({"vllm_xargs": {"every": 7}}, SEEDED),
    "adapter": Wish({"model": "tuned"}, SEEDED),
}
"""By name. The base is greedy, of a fixed length, and goes on after an end of sequence."""

LATE_WISHES = ("stop", "kept stop", "stop token", "least", "bad words")
"""Wishes about what the model says by itself, late in its answer: see `late_wishes`."""
EMBEDS = "embeds"
"""A prompt of embeddings, which a client makes of a tensor."""
POOLED: dict[str, dict[str, Any]] = {
    "vector": {"task": "embed"},
    "vectors": {"task": "token_embed"},
    "not normalised": {"task": "embed", "use_activation": False},
    "shorter": {"task": "embed", "dimensions": 16},
}
"""What a server of vectors is asked, by name."""


def late_wishes(said: dict[str, Any], words: dict[int, str]) -> dict[str, Wish]:
    """Wishes about an answer to `SEEDED`, so that they take effect late in it.

    Args:
        said: the answer: its tokens and its text.
        words: tokens of the answer that the tokenizer writes as one word.
    """
    tokens, text = said["tokens"], said["text"]
    late = next(
        token for place, token in enumerate(tokens) if place > len(tokens) * 0.6 and tokens.index(token) == place
    )
    early = next(token for place, token in enumerate(tokens) if place > 4)
    starts = range(int(len(text) * 0.6), len(text) - 4)
    piece = next(text[at : at + 4] for at in starts if text.isascii() or text.find(text[at : at + 4]) == at)
    return {
        "stop": Wish({"stop": [piece]}, SEEDED),
        "kept stop": Wish({"include_stop_str_in_output": True}, {"stop": [piece], **SEEDED}),
        "stop token": Wish({"stop_token_ids": [late]}, SEEDED),
        "least": Wish({"min_tokens": len(tokens) * 2 // 3}, {"stop_token_ids": [early], **SEEDED}),
        "bad words": Wish({"bad_words": list(words.values())}, SEEDED),
    }


EXERCISED: dict[str, dict[str, tuple[str, ...]]] = {
    "SamplingParams": {
        "n": ("n",),
        "presence_penalty": ("presence",),
        "frequency_penalty": ("frequency",),
        "repetition_penalty": ("repetition",),
        "temperature": ("temperature",),
        "top_p": ("top p",),
        "top_k": ("top k",),
        "min_p": ("min p",),
        "seed": ("seed",),
        "stop": ("stop",),
        "stop_token_ids": ("stop token",),
        "ignore_eos": ("end",),
        "max_tokens": ("length",),
        "min_tokens": ("least",),
        "logprobs": ("logprobs",),
        "prompt_logprobs": ("prompt logprobs",),
        "logprob_token_ids": ("logprob tokens",),
        "include_stop_str_in_output": ("kept stop",),
        "_eos_token_id": ("end",),
        "_all_stop_token_ids": ("stop token", "least"),
        "structured_outputs": ("json", "regex", "choice", "grammar", "any json", "tag"),
        "logit_bias": ("bias",),
        "allowed_token_ids": ("allowed",),
        "extra_args": ("processor",),
        "bad_words": ("bad words",),
        "_bad_words_token_ids": ("bad words",),
        "skip_reading_prefix_cache": ("prompt logprobs",),
        "thinking_token_budget": ("thinking",),
        "repetition_detection": ("loop",),
    },
    "StructuredOutputsParams": {
        "json": ("json",),
        "regex": ("regex",),
        "choice": ("choice",),
        "grammar": ("grammar",),
        "json_object": ("any json",),
        "structural_tag": ("tag",),
    },
    "PoolingParams": {
        "task": ("vector", "vectors"),
        "use_activation": ("not normalised",),
        "dimensions": ("shorter",),
    },
    "EngineCoreRequest": {
        "request_id": ("n",),
        "prompt_token_ids": ("length",),
        "sampling_params": ("seed",),
        "pooling_params": ("vector",),
        "lora_request": ("adapter",),
        "prompt_embeds": (EMBEDS,),
    },
    "NewRequestData": {
        "req_id": ("n",),
        "prompt_token_ids": ("length",),
        "sampling_params": ("seed",),
        "pooling_params": ("vector",),
        "lora_request": ("adapter",),
        "prompt_embeds": (EMBEDS,),
    },
    "CachedRequestState": {
        "req_id": ("n",),
        "prompt_token_ids": ("length",),
        "sampling_params": ("seed",),
        "generator": ("seed", "n"),
        "output_token_ids": ("presence", "processor", "bad words"),
        "lora_request": ("adapter",),
        "prompt_embeds": (EMBEDS,),
        "in_progress_prompt_logprobs_cpu": ("prompt logprobs",),
        "pooling_params": ("vector",),
        "pooling_states": ("vectors",),
    },
}
"""By class and field: the names of the wishes."""

_API = "used only by the API process, which a stage that is lost does not affect"
_V2 = "only vLLM's second model runner takes it, and that is sent a resumed request with all its fields"
_FEATURES = "images and audio are not carried between stages: the codec refuses their class by name"
_MIXED = "a list that is sent beside prompt_embeds and registered as it is"
_ANEW = "computed again by vLLM when the request is registered on a stage"
_SCHEDULER = "used only by the scheduler in the head, which outlives its stages"
_NO_BLOCKS = "a request that is registered again has no blocks and nothing computed"
_DRAFTS = "of speculative decoding, which is refused across stages"
_STATELESS = "sent with the request each time it is registered; nothing derived from it outlives a step"
_REFUSED_SCORES = "what vLLM's server asks of a model that scores on the last stage: such a model is refused by name"
_ONE_HEAD = "of several engine cores or API servers; the ring has one of each"
_GRAMMAR = "the grammar is compiled and kept in the head; a stage gets a mask for each step"

NEEDLESS: dict[str, dict[str, str]] = {
    "SamplingParams": {
        "watermarking": _V2,
        "_watermarking_skipped": _V2,
        "prompt_logprob_token_ids": _V2,
        "prompt_logprob_start": _V2,
        "trace_decode_token_ids": _V2,
        "flat_logprobs": _API,
        "detokenize": _API,
        "skip_special_tokens": _API,
        "spaces_between_special_tokens": _API,
        "output_kind": _API,
        "stream_interval": _API,
        "output_text_buffer_length": _API,
        "skip_clone": _API,
        "routed_experts_prompt_start": "vLLM refuses to return routed experts with pipeline parallelism",
    },
    "StructuredOutputsParams": {
        "disable_any_whitespace": _GRAMMAR,
        "disable_additional_properties": _GRAMMAR,
        "whitespace_pattern": _GRAMMAR,
        "_backend": _GRAMMAR,
        "_backend_was_auto": _GRAMMAR,
    },
    "PoolingParams": {
        "step_tag_id": _STATELESS,
        "returned_token_ids": _STATELESS,
        "requires_token_ids": _STATELESS,
        "skip_reading_prefix_cache": _SCHEDULER,
        "late_interaction_params": _REFUSED_SCORES,
        "extra_kwargs": _STATELESS,
        "output_kind": _API,
    },
    "EngineCoreRequest": {
        "mm_features": _FEATURES,
        "arrival_time": _SCHEDULER,
        "cache_salt": f"{_SCHEDULER}; the prefix cache is dropped at a loss",
        "data_parallel_rank": _ONE_HEAD,
        "prompt_is_token_ids": _MIXED,
        "client_index": _ONE_HEAD,
        "current_wave": _ONE_HEAD,
        "priority": _SCHEDULER,
        "trace_headers": _API,
        "resumable": f"input that comes as a stream, which vLLM's server has for audio alone: {_FEATURES}",
        "external_req_id": _API,
        "reasoning_ended": _GRAMMAR,
        "reasoning_parser_kwargs": _GRAMMAR,
        "abort_immediately": "of a KV connector, which is refused across stages",
        "session_id": _SCHEDULER,
        "kv_hints": "of a KV connector, which is refused across stages",
    },
    "NewRequestData": {
        "mm_features": _FEATURES,
        "block_ids": _NO_BLOCKS,
        "num_computed_tokens": _NO_BLOCKS,
        "prompt_is_token_ids": _MIXED,
        "prefill_token_ids": _V2,
        "replay_start": _V2,
    },
    "CachedRequestState": {
        "mm_features": _FEATURES,
        "block_ids": _NO_BLOCKS,
        "num_computed_tokens": _NO_BLOCKS,
        "mrope_positions": _ANEW,
        "mrope_position_delta": _ANEW,
        "prompt_is_token_ids": _MIXED,
        "prev_num_draft_len": _DRAFTS,
    },
}
"""By class and field: why no wish asks for it."""
