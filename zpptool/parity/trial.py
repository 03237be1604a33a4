# SPDX-License-Identifier: Apache-2.0
"""A trial: the unsplit model and the pipeline answer the same prompts on this machine, one after the other.

Both are real servers in processes of their own, asked over the same API; the unsplit one is the engine's own, without
any of ours in between. Whatever happens, nothing that was started here outlives the trial.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zpptool.config.engine_kind import ENGINES
from zpptool.config.stage_spec import StageSpec
from zpptool.errors import ZppError, stage_error
from zpptool.net.openai_client import ApiClient, Generation
from zpptool.parity.compare import PromptParity
from zpptool.process.group import ProcessGroup
from zpptool.supervisor.stage_processes import child_environment, raise_if_ended, start_stage

READY_POLL_S = 0.2
PASSAGE = (
    "The ring carries what each stage has computed to the next one. A stage owns a range of layers, and the last one"
    " sends the token that it has chosen back to the head, which sends it round again. "
)
"""What the long prompts are made of."""


@dataclass(frozen=True)
class TrialLaunchPlan:
    """What to try.

    Attributes:
        unsplit: the unsplit model as one stage of all layers.
        stages: every stage's spec.
        prompts: what is asked.
        long_prompts: token counts; for each, a prompt of at least that many tokens is asked too.
        as_chat: whether each prompt is the user's message of a chat.
        batched: whether both sides may batch the prompts as they like. Otherwise the unsplit model is asked one prompt
            after the other, and the stages compute every sequence in steps of its own.
        max_new_tokens: how many tokens an answer may have.
        sampling: added to every request; empty for greedy.
        log_dir: where the logs go.
        env: added to each stage's environment; the unsplit model gets stage 0's.
    """

    unsplit: StageSpec
    stages: tuple[StageSpec, ...]
    prompts: tuple[str, ...]
    long_prompts: tuple[int, ...]
    as_chat: bool
    batched: bool
    max_new_tokens: int
    log_dir: Path
    env: Sequence[Mapping[str, str]]
    sampling: Mapping[str, Any] = field(default_factory=dict)


def run_trial(order: TrialLaunchPlan, note: Callable[[str], None]) -> list[PromptParity]:
    """Ask the unsplit model, then the pipeline.

    Args:
        order: what to try.
        note: is told what goes on.

    Raises:
        ZppError: a process ended or did not become ready in time; the message names it and shows the end of its log.
    """
    unsplit, head = order.unsplit, order.stages[0]
    with ProcessGroup() as group:
        note(f"the unsplit model, {unsplit.model}, on {unsplit.engine}: starting")
        _start_reference(group, unsplit, order)
        with _ready_client(group, unsplit, note, "the unsplit model") as client:
            texts, prompts = _tokenized(client, order)
            expected = _asked(group, client, order, prompts, at_once=len(prompts) if order.batched else 1)
    with ProcessGroup() as group:
        note(f"the pipeline of {head.num_stages} stages on {head.engine}: starting")
        for spec, env in zip(order.stages, order.env, strict=True):
            start_stage(group, spec, env, order.log_dir)
        with _ready_client(group, head, note, "the pipeline") as client:
            got = _asked(group, client, order, prompts, at_once=len(prompts))
    return [
        PromptParity(text, len(prompt), reference, pipeline)
        for text, prompt, reference, pipeline in zip(texts, prompts, expected, got, strict=True)
    ]




def _start_reference(group: ProcessGroup, unsplit: StageSpec, order: TrialLaunchPlan) -> None:
    argv = [sys.executable, "-m", ENGINES[unsplit.engine].reference, unsplit.to_json()]
    group.start("the unsplit model", argv, child_environment(order.env[0]), order.log_dir / "reference.log")


def _ready_client(group: ProcessGroup, head: StageSpec, note: Callable[[str], None], who: str) -> ApiClient:
    """A client of a server that answers."""
    client = ApiClient(f"http://{head.api_host}:{head.api_port}", head.start_timeout_s)
    began = time.monotonic()
    while not client.is_ready():
        raise_if_ended(group)
        if time.monotonic() - began > head.start_timeout_s:
            raise stage_error(
                f"{who} has not become ready in {head.start_timeout_s:g} s",
                "\n".join(f"{child.name}, the end of {child.log}:\n{child.tail(5)}" for child in group.children),
            )
        time.sleep(READY_POLL_S)
    note(f"{who}: ready after {time.monotonic() - began:.1f} s")
    return client


def _tokenized(client: ApiClient, order: TrialLaunchPlan) -> tuple[list[str], list[list[int]]]:
    """The texts of all prompts, and their tokens."""
    texts = list(order.prompts)
    prompts = [client.tokenize(text, as_chat=order.as_chat) for text in texts]
    a_passage = max(len(client.tokenize(PASSAGE, as_chat=False)), 1)
    for wanted in order.long_prompts:
        text = PASSAGE * (-(-wanted // a_passage) + 1)
        texts.append(f"{text[:40]}... ({wanted} tokens)")
        prompts.append(client.tokenize(text, as_chat=False)[:wanted])
    return texts, prompts


def _asked(
    group: ProcessGroup, client: ApiClient, order: TrialLaunchPlan, prompts: Sequence[Sequence[int]], *, at_once: int
) -> list[Generation]:
    """All answers; when a process has died meanwhile, that is the error, not the connection that broke with it."""
    try:
        return client.complete_all(prompts, order.max_new_tokens, dict(order.sampling), at_once=at_once)
    except ZppError:
        time.sleep(READY_POLL_S)
        raise_if_ended(group)
        raise
