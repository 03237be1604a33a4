# SPDX-License-Identifier: Apache-2.0
"""Put a model that a user named on this machine: the whole of it, or the tensors of one stage.

What is here already is used without a request: a path, a model in the Hugging Face cache, a fetched stage.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from zpptool.checkpoint.manifest import is_stage_directory, load_manifest
from zpptool.checkpoint.split import write_split
from zpptool.checkpoint.splitplan import plan_split
from zpptool.checkpoint.stage_tensors import count_layers
from zpptool.checkpoint.streaming import CopyOptions
from zpptool.console import Console
from zpptool.errors import ZppError
from zpptool.partition import Partition
from zpptool.sources.hub_cache import Snapshot, cached_snapshot, download_whole, has_tokenizer, is_offline
from zpptool.sources.names import HubId, ModelName, UrlId, parse_remote, served_name
from zpptool.sources.opened import OpenedModel, known_model, open_model, open_source, remember_model
from zpptool.sources.store import fetching, stage_home, store_directory, whole_home, whole_stage
from zpptool.sources.whole import fetch_whole

ChoosePartition = Callable[[int], Partition]
"""The layer ranges of all stages, from the model's number of layers."""


@dataclass(frozen=True)
class LocatedModel:
    """A model, or one stage of it, on this machine.

    Attributes:
        directory: the checkpoint, or the stage directory.
        source: names the model and its state for other machines, for example `hf://org/name@commit`; empty for a path.
        served: what requests call the model by default; empty for a path.
    """

    directory: Path
    source: str = ""
    served: str = ""


def local_path(directory: Path) -> LocatedModel:
    """A path as a located model. A stage directory remembers where its model came from."""
    if is_stage_directory(directory):
        with suppress(ZppError):  # what loads the stage reports an invalid manifest
            source = load_manifest(directory).origin
            return LocatedModel(directory, source, served_name(source))
    return LocatedModel(directory)


def cached_model(model: ModelName) -> LocatedModel | None:
    """The whole model, if it is on this machine; no request is made.

    Raises:
        ZppError: (USAGE) the name is not valid.
    """
    remote = model.remote
    if remote is None:
        return local_path(Path(model.text))
    known = known_model(remote)
    if isinstance(remote, HubId):
        found = _snapshot(remote, known.identity if known else "")
        return LocatedModel(found.directory, remote.at(found.commit), remote.repo) if found else None
    if known is None:
        return None
    home = whole_home(store_directory(), known.identity)
    held = sorted(home.glob("*/config.json"))
    return LocatedModel(held[0].parent, known.identity, model.served) if held else None


def whole_model(model: ModelName, console: Console) -> LocatedModel:
    """The whole model on this machine; what is missing is downloaded: from the Hub into the Hugging Face cache, from
    elsewhere into the store.

    Args:
        model: as the user named it.
        console: shows the progress.

    Raises:
        ZppError: as `open_model`; (INVALID) the disk is too full.
    """
    remote = model.remote
    held = cached_model(model)
    if held is not None and (remote is None or is_offline() or not isinstance(remote, HubId)):
        return held
    if held is not None and has_tokenizer(held.directory):
        return held
    if isinstance(remote, HubId):
        try:
            found = download_whole(remote, model.token, console)
        except ZppError:
            if held is None:
                raise
            return held  # whole but for a tokenizer, which the model may not have
        return LocatedModel(found.directory, remote.at(found.commit), remote.repo)
    assert isinstance(remote, UrlId)
    source = open_source(remote, model.token)
    directory = fetch_whole(source, store_directory(), console)
    remember_model(remote, source.identity, count_layers(directory))
    return LocatedModel(directory, source.identity, model.served)


def stage_model(model: ModelName, stage: int, choose: ChoosePartition, console: Console) -> LocatedModel:
    """One stage of a model on this machine: its directory, or the whole model if that is here.

    Only the stage's own tensors, the headers and the small files are fetched, into the store.

    Args:
        model: as the user named it.
        stage: the stage's index.
        choose: the layer ranges.
        console: shows the progress.

    Raises:
        ZppError: as `open_model`, `plan_split` and `write_split`.
    """
    remote = model.remote
    held = cached_model(model)
    if held is not None and (remote is None or has_tokenizer(held.directory) or is_offline()):
        return held
    assert remote is not None
    store = store_directory()
    known = known_model(remote)
    if known is not None:
        stored = _stored_stage(store, known.identity, choose(known.num_layers), stage)
        if stored is not None:
            return stored
    with open_model(model) as opened:
        num_layers = count_layers(opened.directory)
        partition = choose(num_layers)
        remember_model(remote, opened.identity, num_layers)
        stored = _stored_stage(store, opened.identity, partition, stage)
        if stored is not None:
            return stored
        home = stage_home(store, opened.identity, partition, stage)
        with fetching(store, home):
            fetch_stage(opened, partition, stage, home, console)
        return LocatedModel(home / f"stage_{stage}", opened.identity, opened.served)


def fetch_stage(
    opened: OpenedModel, partition: Partition, stage: int, output: Path, console: Console, *, lock: bool = True
) -> Path:
    """Write one stage of an opened model into `output`, if it is not there; return its directory.

    Raises:
        ZppError: as `plan_split` and `write_split`.
    """
    directory = output / f"stage_{stage}"
    if whole_stage(directory, stage, partition) and load_manifest(directory).origin == opened.source:
        return directory
    plan = plan_split(opened.directory, None, [str(own) for own in partition]).only(stage)
    for note in plan.notes:
        console.note(f"note: {note}")
    with console.progress(f"fetching stage {stage} of {opened.name}", plan.nbytes) as advance:
        options = CopyOptions(fetch=opened.fetch)
        write_split(plan, output, options=options, origin=opened.origin, advance=advance, lock=lock)
    return directory


def _snapshot(remote: HubId, known: str) -> Snapshot | None:
    """The model in the Hugging Face cache, by the name it has or by the one that it is known to mean."""
    found = cached_snapshot(remote)
    named = parse_remote(known) if known and found is None else None
    return cached_snapshot(named) if isinstance(named, HubId) else found


def _stored_stage(store: Path, identity: str, partition: Partition, stage: int) -> LocatedModel | None:
    directory = stage_home(store, identity, partition, stage) / f"stage_{stage}"
    if not whole_stage(directory, stage, partition):
        return None
    return LocatedModel(directory, identity, served_name(identity))
