# SPDX-License-Identifier: Apache-2.0
"""Which GPUs a machine has for its stages, and which of them each stage gets: pure decisions, by name alone.

A name is what the device's own variable takes: a number, a UUID, the name of a MIG device. What the user's variable
leaves out is never handed out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from zpptool.errors import usage_error

CUDA, HIP, XPU = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"
ORDER, BY_BUS = "CUDA_DEVICE_ORDER", "PCI_BUS_ID"
"""CUDA numbers GPUs by speed unless this says by bus, as nvidia-smi does."""
NO_MORE = ("", "-1", "NoDevFiles")
"""CUDA does not see what follows one of these in its variable; Slurm writes the last."""

Group = tuple[str, ...]
"""The GPUs of one stage, one for each of its tensor-parallel ranks."""


@dataclass(frozen=True, slots=True)
class GpuPool:
    """The GPUs that stages of this machine may use.

    Attributes:
        ids: their names, in order.
        variables: the variables of the environment that show a process its GPUs.
        named: whether the user's own variable names them; otherwise they were found.
        beside: other variables for a process that is shown some of them by number.
    """

    ids: tuple[str, ...]
    variables: tuple[str, ...]
    named: bool
    beside: Mapping[str, str] = field(default_factory=dict)

    def environment(self, group: Group) -> dict[str, str]:
        """What shows a process these GPUs and no others; nothing for no GPUs."""
        return {**dict.fromkeys(self.variables, ",".join(group)), **self.beside} if group else {}


def visible_gpus(env: Mapping[str, str], found: Sequence[str]) -> GpuPool:
    """The GPUs that this process's environment shows, or those that were found where it names none.

    Args:
        env: the environment.
        found: the names of this machine's GPUs, in order.

    Raises:
        ZppError: (USAGE) a variable names a GPU twice, or the two of ROCm differ.
    """
    if CUDA in env and HIP in env and env[CUDA] != env[HIP]:
        raise usage_error(f"{CUDA}={env[CUDA]} and {HIP}={env[HIP]} name different GPUs", "Set one of them.")
    for variables in ((CUDA, HIP), (XPU,)):
        said = tuple(name for name in variables if name in env)
        if said and (ids := _named(said[0], env[said[0]])):
            return GpuPool(ids, said, named=True)
    if CUDA in env or HIP in env or XPU in env:
        return GpuPool((), tuple(name for name in (CUDA, HIP, XPU) if name in env), named=True)
    return GpuPool(tuple(found), (CUDA,), named=False, beside={} if ORDER in env else {ORDER: BY_BUS})


def parse_gpu_ids(text: str | None) -> tuple[Group, ...]:
    """The groups of `--gpu-ids 0,1;2,3`; one group for a list without `;`, none for nothing.

    Raises:
        ZppError: (USAGE) a name is missing.
    """
    if not text:
        return ()
    groups = tuple(tuple(name.strip() for name in group.split(",")) for group in text.split(";"))
    if not all(name for group in groups for name in group):
        raise usage_error(f"--gpu-ids {text}: a GPU's name is missing", "Write 0,1,2,3, or a group a stage: 0,1;2,3.")
    return groups


def hand_out(pool: GpuPool, sizes: Sequence[int], chosen: Sequence[Group]) -> tuple[Group, ...]:
    """The GPUs of each stage.

    Without a choice each stage takes the next ones, from the first again after the last: stages share GPUs only where
    there are too few. With one, each stage takes what it is given, and shares what is given twice.

    Args:
        pool: what there is.
        sizes: each stage's tensor-parallel size: so many GPUs it takes.
        chosen: a group for each stage, or one group for all, which is cut by the sizes; empty for no choice.

    Returns:
        a group for each stage; empty groups where there is no GPU and none is chosen.

    Raises:
        ZppError: (USAGE) a stage takes more GPUs than there are, or the choice does not fit the stages or the pool.
    """
    groups = _as_chosen(pool, sizes, chosen) if chosen else _next_ones(pool, sizes)
    for group in groups:
        if len(group) > 1 and any(name.startswith("MIG-") for name in group):
            raise usage_error(
                f"a stage of --tensor-parallel-size {len(group)} would get {', '.join(group)}, and a process sees one"
                " MIG device only",
                "Use --tensor-parallel-size 1 on MIG devices.",
            )
    return groups


def _next_ones(pool: GpuPool, sizes: Sequence[int]) -> tuple[Group, ...]:
    if not pool.ids:
        return ((),) * len(sizes)
    if max(sizes) > len(pool.ids):
        raise usage_error(
            f"stage {sizes.index(max(sizes))} takes {max(sizes)} GPUs (--tensor-parallel-size), and"
            f" {len(pool.ids)} can be seen: {', '.join(pool.ids)}",
            f"Give a smaller --tensor-parallel-size, or show more GPUs ({pool.variables[0]}).",
        )
    starts = [sum(sizes[:stage]) for stage in range(len(sizes))]
    return tuple(
        tuple(pool.ids[(start + rank) % len(pool.ids)] for rank in range(size))
        for start, size in zip(starts, sizes, strict=True)
    )


def _named(variable: str, text: str) -> tuple[str, ...]:
    ids: list[str] = []
    for name in (part.strip() for part in text.split(",")):
        if name in NO_MORE:
            break
        if name in ids:
            raise usage_error(f"{variable}={text} names GPU {name} twice", "Name each once.")
        ids.append(name)
    return tuple(ids)


def _as_chosen(pool: GpuPool, sizes: Sequence[int], chosen: Sequence[Group]) -> tuple[Group, ...]:
    count, wanted = sum(map(len, chosen)), sum(sizes)
    if len(chosen) == 1:
        if count != wanted:
            raise usage_error(
                f"{count} GPUs are given for {len(sizes)} stages, which take {wanted}",
                "Name one for each tensor-parallel rank of each stage: --gpu-ids 0,1,2; the same twice shares a GPU.",
            )
        ends = [sum(sizes[: stage + 1]) for stage in range(len(sizes))]
        chosen = [chosen[0][end - size : end] for end, size in zip(ends, sizes, strict=True)]
    if len(chosen) != len(sizes):
        raise usage_error(f"{len(chosen)} groups of GPUs are given for {len(sizes)} stages", "Give one a stage.")
    for group, size in zip(chosen, sizes, strict=True):
        if len(group) != size or len(set(group)) != size:
            raise usage_error(
                f"--gpu-ids: a stage of --tensor-parallel-size {size} is given {','.join(group)}",
                "Give it as many different GPUs as its size.",
            )
        for name in group:
            if pool.named and name not in pool.ids:
                raise usage_error(
                    f"--gpu-ids: GPU {name} is not among {pool.variables[0]}={','.join(pool.ids)}",
                    "Name a GPU as the variable does, or unset the variable.",
                )
    return tuple(chosen)
