# SPDX-License-Identifier: Apache-2.0
"""Which steps are measured: prompts and single tokens, over a grid of tokens, sequences and context (pure)."""

from __future__ import annotations

from zpptool.config.engine_kind import Engine
from zpptool.process.measuring import Limits, Phase, Point

PROMPT_TOKENS = (16, 128, 512, 2048)
"""Lengths of prompts, and of the chunks of longer ones."""
CHUNK_CONTEXTS = (1024, 8192)
"""What a chunk of a prompt may follow. The embedded engine does not divide prompts."""
SEQUENCES = (1, 8, 64)
DECODE_CONTEXTS = (128, 1024, 8192)
WORKSPACE_TOKENS = (64, 256, 512, 1024, 2048, 4096, 8192)


def grid(limits: Limits, engine: Engine) -> tuple[Point, ...]:
    """The steps to measure within an engine's limits, the cheap ones first."""
    longest = limits.max_model_len
    prompts = sorted({min(tokens, limits.max_num_batched_tokens, longest // 2) for tokens in PROMPT_TOKENS} - {0})
    points = [Point(Phase.PREFILL, tokens, 1, 0) for tokens in prompts]
    if engine is Engine.VLLM:
        chunk = prompts[min(2, len(prompts) - 1)]
        points += [Point(Phase.PREFILL, chunk, 1, context) for context in CHUNK_CONTEXTS if context + chunk < longest]
    numbers = sorted({min(count, limits.max_num_seqs, limits.max_num_batched_tokens) for count in SEQUENCES})
    contexts = sorted({min(context, longest // 2) for context in DECODE_CONTEXTS} - {0})
    points += [
        Point(Phase.DECODE, count, count, context)
        for context in contexts
        for count in numbers
        if count * context <= numbers[-1] * contexts[0] or count == 1 or context <= 1024
    ]
    return tuple(points)


def workspace_tokens(limits: Limits) -> tuple[int, ...]:
    """The numbers of tokens of a step whose workspace is measured, in ascending order."""
    most = limits.max_num_batched_tokens
    return tuple(sorted({*(tokens for tokens in WORKSPACE_TOKENS if tokens < most), most}))
