# SPDX-License-Identifier: Apache-2.0
"""Why a plan is as fast as it is: what limits it, what would limit it next, and what more of something would bring.

Prices are not estimated: each is the answer of the planner to the same question with a little more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import msgspec

from zpptool.console import human_bytes
from zpptool.errors import ZppError
from zpptool.planner.chain import Effort
from zpptool.planner.costs import Model
from zpptool.planner.devices import Host, Inventory
from zpptool.planner.places import InForce
from zpptool.planner.planned import Planned, PlannedStage
from zpptool.planner.planning import Answer, make_answer

PRICED_EFFORT = Effort(steps=20_000, reached=4_000)
"""How much is searched for each price."""
MOST_PRICES = 8
"""How many prices are computed at most; each costs as much as a small plan."""
LEAST_SHARE = 0.01
"""What takes less of the period limits nothing."""


class Limit(NamedTuple):
    """What takes a part of the period: a stage or a link, and its share of the period."""

    name: str
    share: float


class Price(NamedTuple):
    """What more of something brings.

    Attributes:
        change: what is changed, in words.
        gain: by which part tokens per second rise.
    """

    change: str
    gain: float


def limits(plan: Planned) -> list[Limit]:
    """Stages and links, those that take the most of the period first."""
    period = plan.period.nominal or 1.0
    named = [
        *((f"stage {number} on {stage.host}", stage.seconds.nominal) for number, stage in enumerate(plan.stages)),
        *((f"the link from {link.origin} to {link.target}", link.busy.nominal) for link in plan.links),
    ]
    shares = (Limit(name, time / period) for name, time in named)
    return sorted((limit for limit in shares if limit.share >= LEAST_SHARE), key=lambda limit: -limit.share)


def cache_limit(plan: Planned) -> PlannedStage | None:
    """The stage whose caches keep the pipeline from serving all requests that are wanted; None if all are planned."""
    if plan.most_sequences is None or plan.most_sequences >= plan.workload.concurrency:
        return None
    full = [stage for stage in plan.stages if stage.most_sequences is not None]
    return min(full, key=lambda stage: stage.most_sequences or 0, default=None)


def prices(answer: Answer, inventory: Inventory, model: Model, *, in_force: InForce | None = None) -> list[Price]:
    """What more memory, devices or bandwidth would bring to one pipeline, where it brings anything; the most first."""
    if len(answer.pipelines) > 1:
        return []
    before = answer.rate
    found = []
    for change, changed in list(_changes(answer.best, inventory, model))[:MOST_PRICES]:
        try:
            after = make_answer(changed, model, in_force=in_force, effort=PRICED_EFFORT)
        except ZppError:
            continue
        gain = after.rate / before - 1
        if gain > 0.0005:
            found.append(Price(change, gain))
    return sorted(found, key=lambda price: -price.gain)


def _changes(plan: Planned, inventory: Inventory, model: Model) -> Iterator[tuple[str, Inventory]]:
    slowest = max(plan.stages, key=lambda stage: stage.seconds.nominal)
    for stage in sorted(plan.stages, key=lambda stage: -stage.seconds.nominal):
        needed = _next_layer(stage, model) - stage.free
        if needed > 0:
            yield f"+{human_bytes(needed)} on {stage.host}", _with_memory(inventory, stage.host, needed)
    host = next(host for host in inventory.devices.hosts if host.name == slowest.host)
    yield f"one more device like {host.name}'s", _with_device(inventory, host)
    yield "links of twice the bandwidth", _with_links(inventory, 2.0)


def _next_layer(stage: PlannedStage, model: Model) -> int:
    """About what one layer more takes of each device of a stage: weights and caches of its largest neighbour."""
    sizes = model.weights.layer_bytes
    beside = [layer for layer in (stage.layers.start - 1, stage.layers.end) if 0 <= layer < len(sizes)]
    if not beside:
        return 0
    cache = -(-stage.cache // stage.layers.count)
    return max(-(-sizes[layer] // stage.width) for layer in beside) + cache


def _with_memory(inventory: Inventory, name: str, more: int) -> Inventory:
    def changed(host: Host) -> Host:
        if host.name != name:
            return host
        return msgspec.structs.replace(host, free=inventory.devices.usable_memory(host) + more, reserve=0)

    return _with_hosts(inventory, changed)


def _with_device(inventory: Inventory, like: Host) -> Inventory:
    def changed(host: Host) -> Host:
        return msgspec.structs.replace(host, devices=host.devices + 1) if host.name == like.name else host

    return _with_hosts(inventory, changed)


def _with_hosts(inventory: Inventory, changed: Callable[[Host], Host]) -> Inventory:
    hosts = tuple(map(changed, inventory.devices.hosts))
    return msgspec.structs.replace(inventory, devices=msgspec.structs.replace(inventory.devices, hosts=hosts))


def _with_links(inventory: Inventory, factor: float) -> Inventory:
    links = inventory.devices.links
    default, local = links.default, links.local
    if default is not None:
        default = msgspec.structs.replace(default, bytes_per_second=default.bytes_per_second * factor)
    if local is not None:
        local = msgspec.structs.replace(local, bytes_per_second=local.bytes_per_second * factor)
    faster = tuple(
        msgspec.structs.replace(
            link,
            rates=tuple(
                msgspec.structs.replace(rate, bytes_per_second=rate.bytes_per_second * factor) for rate in link.rates
            ),
        )
        for link in inventory.links
    )
    devices = msgspec.structs.replace(
        inventory.devices, links=msgspec.structs.replace(links, default=default, local=local)
    )
    return msgspec.structs.replace(inventory, devices=devices, links=faster)
