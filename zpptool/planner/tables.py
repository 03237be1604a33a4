# SPDX-License-Identifier: Apache-2.0
"""A model and the devices there are as a problem in integers: what each possible stage takes, and whether it fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from zpptool.planner.costs import Model, OperatingPoint, StageCosts
from zpptool.planner.device_profile import DeviceProfile
from zpptool.planner.devices import Host, Inventory
from zpptool.planner.places import NANO, InForce, Places
from zpptool.planner.problem import NEVER, Problem, StageOption

ANSWER_BYTES = 64
"""About what the last stage sends to the head for each sequence."""


@dataclass(frozen=True)
class Tables:
    """A problem, and what its numbers come from.

    Attributes:
        problem: in nanoseconds.
        places: the groups of hosts.
        costs: of each option.
        memory: bytes of one device that each option may take.
    """

    problem: Problem
    places: Places
    costs: tuple[StageCosts, ...]
    memory: tuple[int, ...]

    def lacking(self) -> Problem:
        """The same problem with the bytes that a stage lacks in place of its time."""
        options = tuple(
            StageOption(option.group, option.width, self._lack_of(option, costs, memory), option.moved)
            for option, costs, memory in zip(self.problem.options, self.costs, self.memory, strict=True)
        )
        linked = [[0 if hop < NEVER else NEVER for hop in row] for row in self.problem.hops]
        back = [[0 if hop < NEVER else NEVER for hop in row] for row in self.problem.returns]
        return Problem(
            self.problem.num_layers,
            self.problem.counts,
            options,
            linked,
            linked,
            back,
            back,
            self.problem.max_stages,
        )

    def _lack_of(self, option: StageOption, costs: StageCosts, memory: int) -> list[list[int]]:
        def lack(start: int, end: int) -> int:
            return max(0, costs.memory(start, end) - memory)

        return _table(self.places, option.group, costs.model, lack)


def make_tables(inventory: Inventory, places: Places, model: Model, point: OperatingPoint, in_force: InForce) -> Tables:
    """Compute what every possible stage takes.

    Raises:
        ZppError: (INVALID) profiles do not fit the model, or say too little.
    """
    options, costs, memory = [], [], []
    known: dict[tuple[str, int], StageCosts] = {}
    shared: dict[tuple[int, int, bool], Sequence[Sequence[int]]] = {}
    for group, hosts in enumerate(places.groups):
        host = hosts[0]
        for width in host.tensor_parallel:
            if width > host.devices:
                continue
            if (host.kind, width) not in known:
                profile, divided = profile_of(inventory, host, width)
                kind = inventory.devices.kinds[host.kind]
                known[host.kind, width] = StageCosts(
                    model, kind, profile, width, divided, inventory.devices.workload, point
                )
            own, usable = known[host.kind, width], inventory.devices.usable_memory(host)
            key = (id(own), usable, bool(inventory.devices.pins))
            if key not in shared or inventory.devices.pins:
                shared[key] = _times(places, group, own, usable)
            options.append(StageOption(group, width, shared[key], _moved(model, hosts, in_force)))
            costs.append(own)
            memory.append(usable)
    step = (point.batch + costs[0].prompt_share) * model.activation_bytes if costs else 0.0
    tables = places.links(step, point.batch * ANSWER_BYTES)
    most = min(point.in_flight, sum(places.counts))
    problem = Problem(model.weights.num_layers, places.counts, tuple(options), *tables, most)
    return Tables(problem, places, tuple(costs), tuple(memory))


def profile_of(inventory: Inventory, host: Host, width: int) -> tuple[DeviceProfile | None, bool]:
    """The profile of a host's devices, `width` of them sharing a stage, and whether it is of one of them only.

    The first is None where the kind has no profile.
    """
    profiles = inventory.profiles.get(host.kind, {})
    if width in profiles:
        return profiles[width], False
    return profiles.get(1), width > 1


def _times(places: Places, group: int, costs: StageCosts, usable: int) -> list[list[int]]:
    def time(start: int, end: int) -> int:
        if costs.memory(start, end) > usable:
            return NEVER
        return max(1, round(NANO * costs.seconds(start, end).nominal))

    return _table(places, group, costs.model, time)


def _table(places: Places, group: int, model: Model, cell: Callable[[int, int], int]) -> list[list[int]]:
    """The value of `cell` for every range that is a legal stage on a group, and `NEVER` for the others."""
    count = model.weights.num_layers
    barred = [0, *accumulate(_pinned_elsewhere(places, group, count))]
    table = [[NEVER] * (count + 1) for _ in range(count + 1)]
    cuts = sorted(model.weights.cuts)
    for start in cuts:
        for end in cuts:
            if start < end and barred[start] == barred[end]:
                table[start][end] = cell(start, end)
    return table


def _pinned_elsewhere(places: Places, group: int, count: int) -> list[bool]:
    """Of each layer, whether it has to be on a host that is not in the group."""
    names = {host.name for host in places.groups[group]}
    barred = [False] * count
    for pin in places.inventory.devices.pins:
        pinned = pin.range(count)
        if pin.host not in names:
            barred[pinned.start : pinned.end] = [True] * pinned.count
    return barred


def _moved(model: Model, hosts: Sequence[Host], in_force: InForce) -> list[int]:
    """Running sums of the bytes of layers that none of the hosts holds; nothing moves where no plan is in force."""
    held = {layer for host in hosts for own in in_force.get(host.name, ()) for layer in range(own.start, own.end)}
    sizes = model.weights.layer_bytes
    return [0, *accumulate(0 if layer in held or not in_force else size for layer, size in enumerate(sizes))]
