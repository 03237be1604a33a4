# SPDX-License-Identifier: Apache-2.0
"""The groups of interchangeable hosts, and the links between them.

Hosts with one device each are interchangeable where they are of one kind, have the same memory, are linked alike to all
others and to each other, and neither a pin nor the plan in force distinguishes them. A host with several devices is a
group by itself: its devices are linked to each other differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zpptool.partition import LayerRange
from zpptool.planner.costs import link_seconds
from zpptool.planner.device_profile import LinkRate, LinkSpeed, Source
from zpptool.planner.devices import Host, Inventory
from zpptool.planner.problem import NEVER, Table

NANO = 1_000_000_000
"""Times are planned in nanoseconds."""
_LOCAL = (LinkRate(bytes=1, bytes_per_second=1e9),)
LOCAL = LinkSpeed(origin="", target="", round_trip_seconds=1e-4, rates=_LOCAL, source=Source.GIVEN)
"""What is assumed of links between two devices of one host."""
InForce = Mapping[str, tuple[LayerRange, ...]]
"""The layers that each host holds in the plan in force."""

Pairs = Mapping[tuple[str, str], LinkSpeed]


@dataclass(frozen=True)
class Places:
    """Groups of hosts.

    Attributes:
        groups: the hosts of each group.
        inventory: where they come from.
        pairs: the links that have an entry of their own, by origin and target.
    """

    groups: tuple[tuple[Host, ...], ...]
    inventory: Inventory
    pairs: Pairs

    @property
    def counts(self) -> tuple[int, ...]:
        """How many devices each group has."""
        return tuple(sum(host.devices for host in group) for group in self.groups)

    def link(self, origin: int, target: int) -> LinkSpeed | None:
        """The link from a group to another, or between two members of one; None if there is none."""
        first = self.groups[origin][0]
        second = self.groups[target][-1]
        return _link(self.inventory, self.pairs, first.name, second.name)

    def links(self, step_bytes: float, answer_bytes: float) -> tuple[Table, Table, Table, Table]:
        """How long links are busy with a step, and how much later it arrives, in nanoseconds.

        Args:
            step_bytes: what one step sends to the next stage.
            answer_bytes: what the last stage sends to the head.

        Returns:
            busy and delay of the links between stages, then of those back to the head.
        """
        tables = []
        for size in (step_bytes, answer_bytes):
            busy, delay = [], []
            for origin in range(len(self.groups)):
                known = [self.link(origin, target) for target in range(len(self.groups))]
                busy.append([_busy(link, size) for link in known])
                delay.append([_delay(link, size) for link in known])
            tables += [busy, delay]
        return tables[0], tables[1], tables[2], tables[3]


def group_hosts(inventory: Inventory, in_force: InForce) -> Places:
    """Put interchangeable hosts together."""
    pinned = {pin.host for pin in inventory.devices.pins}
    groups: list[list[Host]] = []
    hosts = inventory.devices.usable_hosts
    pairs = {(link.origin, link.target): link for link in inventory.links}
    links = {(a.name, b.name): _link(inventory, pairs, a.name, b.name) for a in hosts for b in hosts if a is not b}
    numbers = {pair: None if link is None else (link.round_trip_seconds, link.rates) for pair, link in links.items()}

    def alike(host: Host, other: Host) -> bool:
        if host.devices > 1 or other.devices > 1 or {host.name, other.name} & (pinned | in_force.keys()):
            return False
        own = (host.kind, inventory.devices.usable_memory(host), host.tensor_parallel)
        if own != (other.kind, inventory.devices.usable_memory(other), other.tensor_parallel):
            return False
        if numbers[host.name, other.name] != numbers[other.name, host.name]:
            return False
        return all(
            numbers[host.name, third.name] == numbers[other.name, third.name]
            and numbers[third.name, host.name] == numbers[third.name, other.name]
            for third in hosts
            if third.name not in (host.name, other.name)
        )

    for host in hosts:
        for group in groups:
            if all(alike(host, member) for member in group):
                group.append(host)
                break
        else:
            groups.append([host])
    return Places(tuple(map(tuple, groups)), inventory, pairs)


def _link(inventory: Inventory, pairs: Pairs, origin: str, target: str) -> LinkSpeed | None:
    links = inventory.devices.links
    if origin == target:
        return links.local.between(origin, target) if links.local else LOCAL
    known = pairs.get((origin, target)) or pairs.get((target, origin))
    if known is not None:
        return known
    return links.default.between(origin, target) if links.default else None


def _busy(link: LinkSpeed | None, size: float) -> int:
    if link is None:
        return NEVER
    return round(NANO * link_seconds([(rate.bytes, rate.bytes_per_second) for rate in link.rates], size))


def _delay(link: LinkSpeed | None, size: float) -> int:
    return NEVER if link is None else _busy(link, size) + round(NANO * link.round_trip_seconds / 2)


def hosts_of_stages(
    places: Places, groups: Sequence[int], ranges: Sequence[LayerRange], in_force: InForce
) -> list[Host]:
    """Choose a host for each stage: of those in its group, the one that holds most of its layers in the plan in force.

    Args:
        places: the groups.
        groups: the group of each stage.
        ranges: the layers of each stage.
        in_force: what each host holds.
    """
    free = {host.name: host.devices for group in places.groups for host in group}
    chosen = []
    for group, layers in zip(groups, ranges, strict=True):
        held = {
            host.name: sum(
                max(0, min(own.end, layers.end) - max(own.start, layers.start)) for own in in_force.get(host.name, ())
            )
            for host in places.groups[group]
        }
        host = max((host for host in places.groups[group] if free[host.name]), key=lambda host: held[host.name])
        free[host.name] -= 1
        chosen.append(host)
    return chosen
