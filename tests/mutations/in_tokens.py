# SPDX-License-Identifier: Apache-2.0
"""Faults of the scheduler and of the sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from tests.mutations.mutation import LAYERS, LONGER_PROMPT, Injection, Mutation
from zpptool.places import HEAD

GROUP = "scheduler and sampler"
LAST = 2


def mutations() -> Iterator[Mutation]:
    """All of them."""
    for rank in (2, 3, 5):
        yield Mutation(GROUP, "not the likeliest token", f"number {rank}", LAST, LAYERS, ("token",), "sampler",
                       on_token=partial(_rank, rank))  # fmt: skip
    for by in (1, -1, 7):
        yield Mutation(GROUP, "logits shifted", f"by {by}", LAST, LAYERS, ("token",), "sampler",
                       on_logits=partial(_shifted, by))  # fmt: skip
    for by in (1, 2, 100):
        yield Mutation(GROUP, "penalties of another request", f"{by} tokens", LAST, LAYERS, ("token",), "sampler",
                       on_logits=partial(_penalised, by))  # fmt: skip
    for number in (1, 2, 3):
        yield Mutation(GROUP, "the token of another request", f"step {number}", HEAD, -1, ("input ids",), "tokens",
                       on_call=partial(_called, _token_of_another, number))  # fmt: skip
        yield Mutation(GROUP, "the token of the step before", f"step {number + 1}", HEAD, -1, ("input ids",), "tokens",
                       on_call=partial(_called, _token_before, number + 1))  # fmt: skip
        yield Mutation(GROUP, "a token in two", f"step {number}", HEAD, -1, ("step",), "steps",
                       on_call=partial(_called, _twice, number))  # fmt: skip


def _rank(rank: int, injection: Injection, _token: int, logits: Any) -> int:
    injection.applied = True
    return int(logits.float().topk(rank).indices[-1])


def _shifted(by: int, injection: Injection, logits: Any) -> Any:
    injection.applied = True
    return logits.roll(by, -1)


def _penalised(count: int, injection: Injection, logits: Any) -> Any:
    changed = logits.clone()
    changed[logits.float().topk(count).indices] -= 50
    injection.applied = True
    return changed


def _called(change: Callable[[Injection, Any, Any], Any], at: int, injection: Injection, step: Any) -> Any:
    """Change the call of step `at` of the sequence with the longer prompt."""
    number = injection.steps.get(step.sequence, 0)
    injection.steps[step.sequence] = number + 1
    if number == 0 and len(step.token_ids) == LONGER_PROMPT:
        injection.sequence = step.sequence
    is_due = number == at and injection.sequence == step.sequence
    changed = change(injection, step, injection.kept.get(step.sequence)) if is_due else step
    injection.kept[step.sequence] = step
    injection.applied |= changed is not step
    return changed


def _with_tokens(step: Any, token_ids: list[int]) -> Any:
    import msgspec

    return msgspec.structs.replace(step, token_ids=token_ids)


def _token_of_another(injection: Injection, step: Any, _before: Any) -> Any:
    others = [each.token_ids[-1] for sequence, each in injection.kept.items() if sequence != step.sequence]
    return _with_tokens(step, others[-1:]) if others and others[-1:] != step.token_ids else step


def _token_before(_injection: Injection, step: Any, before: Any) -> Any:
    return _with_tokens(step, before.token_ids[-1:]) if before.token_ids[-1:] != step.token_ids else step


def _twice(_injection: Injection, step: Any, _before: Any) -> Any:
    return _with_tokens(step, step.token_ids * 2)
