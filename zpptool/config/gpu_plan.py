# SPDX-License-Identifier: Apache-2.0
"""The stages of one machine on its GPUs: which GPUs each of them sees, and how much memory it may take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import msgspec

from zpptool.config.engine_arguments import expanded_arguments
from zpptool.config.engine_kind import Engine
from zpptool.config.gpu_discovery import Card, cards, find_card, names, refuse_missing
from zpptool.config.gpu_pool import CUDA, GpuPool, Group, hand_out, visible_gpus
from zpptool.config.gpu_sharing import share_words, stages_on
from zpptool.config.memory_budget import stage_bytes
from zpptool.config.stage_spec import StageSpec


@dataclass(frozen=True)
class Placement:
    """Stages with their GPUs.

    Attributes:
        specs: the stages; those of vLLM that share a GPU have its memory shared out in their engine arguments.
        groups: the GPUs of each; empty groups where none were handed out.
        env: what shows each its GPUs.
        found: this machine's GPUs, as nvidia-smi tells them.
        named: whether the user's variable names the GPUs that may be used.
    """

    specs: tuple[StageSpec, ...]
    groups: tuple[Group, ...]
    env: tuple[dict[str, str], ...]
    found: tuple[Card, ...]
    named: bool


def computes_on_cpu(device: str) -> bool:
    """Whether stages compute on the CPU whatever GPUs there are: `device` says so, or torch is built for it."""
    try:
        return device == "cpu" or version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False


def place_on_gpus(specs: Sequence[StageSpec], chosen: Sequence[Group]) -> Placement:
    """Hand this machine's GPUs out to its stages. On a CPU nothing is, unless it was chosen. Of stages with different
    devices only those that do not compute on the CPU get GPUs.

    Args:
        specs: every stage of this machine, of all its pipelines.
        chosen: as `hand_out` has it.

    Raises:
        ZppError: as `hand_out`, `refuse_missing` and `share_words`.
    """
    on_cpu = all(computes_on_cpu(spec.device) for spec in specs)
    pool, found = _pool(looks=bool(chosen) or not on_cpu)
    groups = _handed_out(pool, found, specs, chosen)
    if specs[0].engine is Engine.VLLM and not on_cpu:
        specs = with_shares(specs, groups, found)
    env = tuple(pool.environment(group) for group in groups)
    return Placement(tuple(specs), groups, env, found, pool.named)


def with_shares(specs: Sequence[StageSpec], groups: Sequence[Group], found: Sequence[Card]) -> tuple[StageSpec, ...]:
    """The stages, with engine arguments that limit what each takes of a GPU that it shares.

    Raises:
        ZppError: as `share_words`.
    """
    cards_of = [tuple(_number(found, name) for name in group) for group in groups]
    if max(stages_on(cards_of)) == 1:
        return tuple(specs)
    totals = {card.index: card.total for card in found if card.total is not None}
    given = expanded_arguments(specs[0].engine, specs[0].engine_args)
    words = share_words(cards_of, [bytes_on_a_gpu(spec) for spec in specs], totals, given)
    return tuple(
        msgspec.structs.replace(spec, engine_args=(*spec.engine_args, *own))
        for spec, own in zip(specs, words, strict=True)
    )


def bytes_on_a_gpu(spec: StageSpec) -> int:
    """What the weights of a stage take on each of its GPUs, in bytes."""
    return -(-stage_bytes(spec) // spec.tensor_parallel_size)


def machines_gpus() -> GpuPool:
    """The GPUs that stages of this machine may use; raises ZppError (USAGE) as `visible_gpus`."""
    return _pool(looks=True)[0]


def environment_of_one(spec: StageSpec, chosen: Sequence[Group]) -> dict[str, str]:
    """What shows a stage that is started alone its GPUs: those that were chosen, or all that this process sees.

    Raises:
        ZppError: (USAGE) another number than the stage takes, or too few.
    """
    if not chosen and computes_on_cpu(spec.device):
        return {}
    pool, found = _pool(looks=True)
    groups = _handed_out(pool, found, [spec], chosen)
    return pool.environment(groups[0]) if chosen else {}


def _handed_out(
    pool: GpuPool, found: Sequence[Card], specs: Sequence[StageSpec], chosen: Sequence[Group]
) -> tuple[Group, ...]:
    if found and not pool.named:
        refuse_missing([name for group in chosen for name in group], found)
    sizes = [spec.tensor_parallel_size for spec in specs]
    on_cpu = [computes_on_cpu(spec.device) for spec in specs]
    if any(on_cpu) and not all(on_cpu):  # a plan may give each stage a device
        sizes = [0 if own else size for own, size in zip(on_cpu, sizes, strict=True)]
    return hand_out(pool, sizes, chosen)


def _number(found: Sequence[Card], name: str) -> str:
    """One name for a GPU that has a number and a UUID."""
    card = find_card(found, name)
    return card.index if card is not None else name


def _pool(*, looks: bool) -> tuple[GpuPool, tuple[Card, ...]]:
    if not looks:
        return GpuPool((), (CUDA,), named=False), ()
    found = cards()
    return visible_gpus(os.environ, names(found)), found
