# SPDX-License-Identifier: Apache-2.0
"""The NVIDIA GPUs of this machine, as nvidia-smi tells them. Without nvidia-smi there are none."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from zpptool.errors import usage_error

NVIDIA_LIST = ("nvidia-smi", "-L")
NVIDIA_QUERY = ("nvidia-smi", "--query-gpu=index,uuid,memory.total,memory.free", "--format=csv,noheader,nounits")
ASK_TIMEOUT_S = 30.0
_GPU = re.compile(r"GPU (\d+):")
_MIG = re.compile(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)")


@dataclass(frozen=True, slots=True)
class Card:
    """One GPU.

    Attributes:
        index: its number, by bus.
        uuid: its UUID.
        total: bytes of its memory; None where nvidia-smi does not tell.
        free: bytes of it that are free; likewise.
        parts: the names of its MIG devices, which alone can be computed on where there are any.
    """

    index: str
    uuid: str
    total: int | None
    free: int | None
    parts: tuple[str, ...] = ()


def cards() -> tuple[Card, ...]:
    """This machine's GPUs, in the order of their numbers; none where nvidia-smi is missing or fails."""
    if shutil.which(NVIDIA_QUERY[0]) is None:
        return ()
    return parse_cards(_answer(NVIDIA_QUERY), _answer(NVIDIA_LIST))


def parse_cards(queried: str, listed: str) -> tuple[Card, ...]:
    """What nvidia-smi prints.

    Args:
        queried: for `NVIDIA_QUERY`, a line a GPU: `0, GPU-5f..., 81559, 40100`, memory in MiB or `[N/A]`.
        listed: for `NVIDIA_LIST`, where MIG devices are.
    """
    parts = dict(_parts(listed))
    found = []
    for line in queried.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 4 and fields[0].isdecimal():
            total, free = (int(size) << 20 if size.isdecimal() else None for size in fields[2:])
            found.append(Card(fields[0], fields[1], total, free, parts.get(fields[0], ())))
    return tuple(found)


def names(found: Sequence[Card]) -> list[str]:
    """What can be computed on: each GPU by its number, or its MIG devices."""
    return [name for card in found for name in (card.parts or (card.index,))]


def find_card(found: Sequence[Card], name: str) -> Card | None:
    """The GPU of that number, or whose UUID begins so; None for none, and for a MIG device."""
    for card in found:
        if name == card.index or (name.startswith("GPU-") and card.uuid.startswith(name)):
            return card
    return None


def refuse_missing(wanted: Sequence[str], found: Sequence[Card]) -> None:
    """Refuse GPUs that this machine does not have.

    Raises:
        ZppError: (USAGE) there is no such GPU.
    """
    for name in wanted:
        if find_card(found, name) is None and name not in names(found):
            raise usage_error(
                f"--gpu-ids: there is no GPU {name} on this machine", f"There are {', '.join(names(found))}."
            )


def _parts(listed: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    index, parts = "", list[str]()
    for line in listed.splitlines():
        if gpu := _GPU.match(line):
            yield index, tuple(parts)
            index, parts = gpu[1], []
        elif part := _MIG.match(line):
            parts.append(part[1])
    yield index, tuple(parts)


def _answer(words: Sequence[str]) -> str:
    try:
        return subprocess.run(
            words, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=True, stdin=subprocess.DEVNULL
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
