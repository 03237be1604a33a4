# SPDX-License-Identifier: Apache-2.0
"""What a process of a pipeline leaves for its next life: the spec that it is to be started with, where it has changed.

The invariant: the file is in a directory that only its user can enter, is written beside and renamed, so nobody meets
half of it, and whoever starts the process takes from it nothing but what a planned change may change (`CHANGES`): a
spec that differs in anything else is refused.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import msgspec

from zpptool.config.stage_spec import StageSpec, spec_from_argv
from zpptool.errors import ZppError

NEXT_SPEC_VARIABLE = "ZPP_NEXT_SPEC"
"""Names the file that a process leaves its next spec in; empty where nobody would look for it."""
SUFFIX = ".spec"
CHANGES = ("partition", "connect")


def leave_spec(spec: StageSpec, **changes: object) -> None:
    """Have this process's next life be started with another spec.

    Args:
        spec: what this life was started with.
        changes: fields of `CHANGES`, beside what was left before.

    Raises:
        OSError, ZppError: it cannot be written, or what was left before not be read; the next life is then as it would
            have been.
    """
    named = os.environ.get(NEXT_SPEC_VARIABLE)
    if not named:
        return
    path, beside = Path(named), Path(f"{named}.new")
    beside.write_text(msgspec.structs.replace(next_spec(path, spec), **changes).to_json())
    beside.replace(path)


def next_spec(path: Path, spec: StageSpec) -> StageSpec:
    """The spec of a process's next life.

    Args:
        path: where it may have left one.
        spec: what it was started with before.

    Raises:
        ZppError: (FAILURE) what is left there is no spec, or of another stage.
    """
    try:
        left = msgspec.json.decode(path.read_bytes(), type=StageSpec)
    except FileNotFoundError:
        return spec
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as cause:
        raise ZppError(f"the spec that {path.name} holds for the next life cannot be read: {cause}") from cause
    changed = msgspec.structs.replace(spec, **{name: getattr(left, name) for name in CHANGES})
    if changed != left:
        raise ZppError(f"the spec that {path.name} holds for the next life is another stage's")
    return left


def next_words(path: Path, words: Sequence[str]) -> Sequence[str]:
    """The command line of a process's next life, as `next_spec`; the last word of one is its spec."""
    if not path.exists():
        return words
    return (*words[:-1], next_spec(path, spec_from_argv(list(words[-2:]))).to_json())


def common_partition(specs: Sequence[StageSpec]) -> tuple[tuple[int, int], ...] | None:
    """The partition in which every stage has the layers of its own spec, where those are one: a change of which some
    stages have not heard leaves none. None for no stages."""
    own = tuple(spec.partition[spec.stage] for spec in specs)
    if not own or own[0][0] != 0 or own[-1][1] != specs[0].num_layers:
        return None
    return own if all(one[1] == other[0] for one, other in pairwise(own)) else None
