# SPDX-License-Identifier: Apache-2.0
"""Fetch one stage into a directory that the caller names, such as a container's volume; what is there is used first.

This is what the generated deployments run before a stage starts. It works where only the volume can be written to, and
when the stage is whole it needs nothing but the volume.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from zpptool.checkpoint.manifest import is_stage_directory
from zpptool.checkpoint.stage_tensors import count_layers
from zpptool.checkpoint.stage_tensors import model_digest as digest_of
from zpptool.console import Console
from zpptool.errors import invalid_error
from zpptool.partition import Partition, parse_range
from zpptool.sources.located import ChoosePartition, LocatedModel, fetch_stage, local_path
from zpptool.sources.names import ModelName
from zpptool.sources.opened import open_model
from zpptool.sources.store import DIGEST_LENGTH, content_digest, whole_stage

_SPLIT_NAME = re.compile(rf"[0-9a-f]{{{DIGEST_LENGTH}}}")


def volume_directory(source: str, model_digest: str, partition: Partition, stage: int) -> str:
    """The name of the directory in a volume that holds one stage: other ranges or another model have another name."""
    return content_digest(source, model_digest, *partition, stage)


def fetch_to_volume(
    model: ModelName,
    stage: int,
    choose: ChoosePartition,
    output: Path,
    *,
    ranges: Sequence[str],
    model_digest: str | None,
    replace: bool,
    lock: bool,
    console: Console,
) -> LocatedModel:
    """Write `output/stage_K`, unless it is there.

    Args:
        model: as the user named it.
        stage: the stage's index.
        choose: the layer ranges, from the number of layers.
        output: the directory.
        ranges: the layer ranges as typed; with `model_digest` they identify a stage without asking the source.
        model_digest: the model's identity in the plan; None if it is not known.
        replace: first remove this stage of other splits beside `output`.
        lock: whether to lock `output`.
        console: shows the progress.

    Raises:
        ZppError: as `open_model`, `plan_split` and `write_split`; (INVALID) the source holds another model than
            `model_digest` says.
    """
    directory = output / f"stage_{stage}"
    if model_digest is not None and ranges:
        partition = tuple(parse_range(text) for text in ranges)
        if whole_stage(directory, stage, partition, model_digest):
            console.note(f"{directory} holds the stage already")
            return local_path(directory)
    with open_model(model) as opened:
        if model_digest is not None and digest_of(opened.directory) != model_digest:
            raise invalid_error(
                f"{opened.name} is not the model that was planned for: another config or other tensors",
                "Name the commit that was planned for, or plan again.",
            )
        partition = choose(count_layers(opened.directory))
        if replace:
            _remove_others(output, stage, console)
        return local_path(fetch_stage(opened, partition, stage, output, console, lock=lock))


def _remove_others(output: Path, stage: int, console: Console) -> None:
    """Remove one stage of other splits beside `output`, finished or not."""
    beside = [path for path in output.parent.glob("*") if path != output and _SPLIT_NAME.fullmatch(path.name)]
    for other in beside:
        entries = {path.name for path in other.iterdir()} if other.is_dir() else {""}
        own = {f"stage_{stage}", *(f".stage_{stage}.zpp-{what}" for what in ("partial", "work", "lock")), ".zpp-lock"}
        if not entries <= own or not (is_stage_directory(other / f"stage_{stage}") or entries & own):
            continue
        console.note(f"removing {other}, a stage of another split")
        with suppress(OSError):
            shutil.rmtree(other)
