# SPDX-License-Identifier: Apache-2.0
"""The spec that a process saves for its restart, where a planned change has altered it.

The invariant: the file is in a directory that only its user can enter, and is written under another name and renamed,
so a reader never sees a part of it. The parent accepts only what a planned change may alter (`CHANGES`): a spec that
differs in anything else is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import msgspec

from zpptool.config.stage_spec import StageSpec, spec_from_argv
from zpptool.errors import ZppError
from zpptool.process.environment import next_spec_file

SUFFIX = ".spec"
CHANGES = ("partition", "connect")
"""The fields of a spec that a planned change may alter."""


def leave_spec(spec: StageSpec, **changes: object) -> None:
    """Have this process restarted with an altered spec.

    Args:
        spec: what this process was started with.
        changes: fields of `CHANGES`; those that were saved before are kept.

    Raises:
        OSError: the file cannot be written; the restart then uses the former spec.
        ZppError: what was saved before cannot be read; the restart then uses the former spec.
    """
    path = next_spec_file()
    if path is None:
        return
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(msgspec.structs.replace(next_spec(path, spec), **changes).to_json())
    beside.replace(path)


def next_spec(path: Path, spec: StageSpec) -> StageSpec:
    """The spec for a process's restart.

    Args:
        path: where the process may have saved one.
        spec: what it was started with before.

    Raises:
        ZppError: (FAILURE) what is saved there is no spec, or another stage's.
    """
    try:
        saved = msgspec.json.decode(path.read_bytes(), type=StageSpec)
    except FileNotFoundError:
        return spec
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as cause:
        raise ZppError(f"the spec for a restart in {path.name} cannot be read: {cause}") from cause
    changed = msgspec.structs.replace(spec, **{name: getattr(saved, name) for name in CHANGES})
    if changed != saved:
        raise ZppError(f"the spec for a restart in {path.name} is another stage's")
    return saved


def next_argv(path: Path, argv: Sequence[str]) -> Sequence[str]:
    """The command line for a process's restart, as `next_spec`; the last argument of `argv` is its spec."""
    if not path.exists():
        return argv
    return (*argv[:-1], next_spec(path, spec_from_argv(list(argv[-2:]))).to_json())


def common_partition(specs: Sequence[StageSpec]) -> tuple[tuple[int, int], ...] | None:
    """The partition in which each stage has the layers of its own spec.

    None if those layers make no partition, as after a change that only some stages have saved; and for no stages.
    """
    own = tuple(spec.partition[spec.stage] for spec in specs)
    if not own or own[0][0] != 0 or own[-1][1] != specs[0].num_layers:
        return None
    return own if all(one[1] == other[0] for one, other in pairwise(own)) else None
