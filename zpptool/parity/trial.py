# SPDX-License-Identifier: Apache-2.0
"""A trial: the unsplit model, then the pipeline, answer the same prompts on this machine.

Both run as servers in processes of their own and are asked over the same API; the unsplit model runs on the engine's
own server, without code of zpptool. No process that was started here outlives the trial, however it ends.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zpptool.config.engine_kind import ENGINES
from zpptool.config.stage_spec import StageSpec
from zpptool.errors import ZppError, stage_error
from zpptool.net.addresses import url_host
from zpptool.net.openai_client import ApiClient, Generation, ImageChat, Prompt
from zpptool.parity.compare import PromptParity
from zpptool.parity.load import IN_FLIGHT, answer_lengths, load_prompts
from zpptool.process.group import ProcessGroup
from zpptool.supervisor.stage_processes import child_environment, raise_if_ended, start_stage

READY_POLL_S = 0.2
PASSAGE = (
    "The ring carries what each stage has computed to the next one. A stage owns a range of layers, and the last one"
    " sends the token that it has chosen back to the head, which sends it round again. "
)
"""Repeated to make the long prompts."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrialLaunchPlan:
    """Everything that a trial needs.

    Attributes:
        unsplit: the spec of the unsplit model, as one stage with all layers.
        stages: every stage's spec.
        prompts: the texts of the prompts.
        long_prompts: for each of these lengths, a prompt of that many tokens is added.
        as_chat: whether each prompt is sent as a user's chat message.
        images: as `data:` URLs. Each prompt is sent as a user's chat message with all of them, except the long ones.
        batched: whether both sides may batch sequences freely. Otherwise the unsplit model gets one prompt at a time,
            and the stages compute each sequence in steps of its own.
        max_new_tokens: the most tokens of an answer.
        log_dir: the directory of the processes' logs.
        env: each stage's additions to the environment; the unsplit model gets those of stage 0.
        load: the number of further requests of mixed lengths, which arrive and leave.
        load_room: the most tokens of their prompts.
        sampling: parameters that are added to every request; empty for greedy decoding.
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
    images: tuple[str, ...] = ()
    load: int = 0
    load_room: int = 0


def run_trial(plan: TrialLaunchPlan) -> list[PromptParity]:
    """Send the prompts to the unsplit model, then to the pipeline.

    Args:
        plan: what to start and ask.

    Returns:
        both answers to each prompt, the long prompts last.

    Raises:
        ZppError: a process ended or did not become ready in time; the message names it and shows the end of its log.
    """
    unsplit = plan.unsplit
    with ProcessGroup() as group:
        _logger.info("the unsplit model, %s, on %s: starting", unsplit.model, unsplit.engine)
        _start_reference(group, unsplit, plan)
        with _ready_client(group, unsplit, "the unsplit model") as client:
            texts, prompts = _tokenized(client, plan)
            expected = _answers(group, client, plan, prompts, at_once=_at_once(plan, prompts) if plan.batched else 1)
    got = run_pipeline(plan, prompts)
    return [
        PromptParity(text, len(reference.prompt_token_ids), reference, pipeline)
        for text, reference, pipeline in zip(texts, expected, got, strict=True)
    ]


def run_pipeline(plan: TrialLaunchPlan, prompts: Sequence[Prompt]) -> list[Generation]:
    """The pipeline's answers to these prompts, all of them asked at once.

    Raises:
        ZppError: as `run_trial`.
    """
    head = plan.stages[0]
    with ProcessGroup() as group:
        _logger.info("the pipeline of %d stages on %s: starting", head.num_stages, head.engine)
        for spec, env in zip(plan.stages, plan.env, strict=True):
            start_stage(group, spec, env, plan.log_dir)
        with _ready_client(group, head, "the pipeline") as client:
            return _answers(group, client, plan, prompts, at_once=_at_once(plan, prompts))


def _at_once(plan: TrialLaunchPlan, prompts: Sequence[Prompt]) -> int:
    """How many requests are in flight at a time: all, or as many as a load has."""
    return min(len(prompts), IN_FLIGHT) if plan.load else len(prompts)


def _start_reference(group: ProcessGroup, unsplit: StageSpec, plan: TrialLaunchPlan) -> None:
    argv = [sys.executable, "-m", ENGINES[unsplit.engine].reference, unsplit.to_json()]
    group.start("the unsplit model", argv, child_environment(plan.env[0]), plan.log_dir / "reference.log")


def _ready_client(group: ProcessGroup, head: StageSpec, server: str) -> ApiClient:
    """Wait for the server of `head` to become ready, and return a client of it; `server` names it in messages."""
    client = ApiClient(f"http://{url_host(head.api_host)}:{head.api_port}", head.start_timeout_s)
    began = time.monotonic()
    while not client.is_ready():
        raise_if_ended(group)
        if time.monotonic() - began > head.start_timeout_s:
            raise stage_error(
                f"{server} has not become ready in {head.start_timeout_s:g} s",
                "\n".join(f"{child.name}, the end of {child.log}:\n{child.tail(5)}" for child in group.children),
            )
        time.sleep(READY_POLL_S)
    _logger.info("%s: ready after %.1f s", server, time.monotonic() - began)
    return client


def _tokenized(client: ApiClient, plan: TrialLaunchPlan) -> tuple[list[str], list[Prompt]]:
    """The texts of all prompts, and their token ids or, where there are images, the chats."""
    texts = list(plan.prompts)
    prompts: list[Prompt] = []
    if plan.images:
        prompts += [ImageChat(text, plan.images) for text in texts]
    else:
        prompts += [client.tokenize(text, as_chat=plan.as_chat) for text in texts]
    passage = client.tokenize(PASSAGE, as_chat=False)
    for length in plan.long_prompts:
        text = PASSAGE * (-(-length // max(len(passage), 1)) + 1)
        texts.append(f"{text[:40]}... ({length} tokens)")
        prompts.append(client.tokenize(text, as_chat=False)[:length])
    for number, prompt in enumerate(load_prompts(passage, plan.load, plan.load_room)):
        texts.append(f"load {number} ({len(prompt)} tokens)")
        prompts.append(prompt)
    return texts, prompts


def _answers(
    group: ProcessGroup, client: ApiClient, plan: TrialLaunchPlan, prompts: Sequence[Prompt], *, at_once: int
) -> list[Generation]:
    """The answers to all prompts, up to `at_once` of them at the same time. Where a process has died, its end is the
    error that is raised, and not the connection that broke because of it."""
    try:
        lengths = answer_lengths(len(prompts), plan.load, plan.max_new_tokens)
        return client.complete_all(prompts, lengths, dict(plan.sampling), at_once=at_once)
    except ZppError:
        time.sleep(READY_POLL_S)
        raise_if_ended(group)
        raise
