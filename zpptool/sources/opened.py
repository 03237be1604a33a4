# SPDX-License-Identifier: Apache-2.0
"""Open a model that a user named, so that its headers can be read: a directory, a cached model, or a remote one."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zpptool.checkpoint.sample import read_samples
from zpptool.checkpoint.split import Origin
from zpptool.checkpoint.streaming import Fetcher
from zpptool.sources.headers import headers_directory, read_samples_of
from zpptool.sources.hub import HubSource
from zpptool.sources.hub_cache import cached_snapshot
from zpptool.sources.names import MODELSCOPE, WEB_SCHEMES, HubId, ModelName, UrlId, parse_remote
from zpptool.sources.ranges import RangeFetcher
from zpptool.sources.source import RemoteSource
from zpptool.sources.store import KnownModel, recall, remember, store_directory

_COMMIT = re.compile("[0-9a-f]{7,40}")
"""A commit, or its beginning, as git abbreviates it."""


@dataclass(frozen=True)
class OpenedModel:
    """A model whose headers can be read.

    Attributes:
        name: for display.
        directory: the checkpoint; for a remote model a temporary directory with its headers and small files.
        served: what requests call the model by default; empty for a path.
        origin: identifies the state of the model and reads samples; None for a path.
        fetch: fetches tensors; None where they are in `directory`.
    """

    name: str
    directory: Path
    served: str = ""
    origin: Origin | None = None
    fetch: Fetcher | None = None

    @property
    def identity(self) -> str:
        """Names the model for other machines: `hf://org/name@commit`; for a path, the absolute path."""
        return self.origin.name if self.origin else str(self.directory.resolve())

    @property
    def source(self) -> str:
        """`identity` of a model with an origin of its own; empty for a path."""
        return self.origin.name if self.origin else ""

    @property
    def is_local(self) -> bool:
        """Whether the tensors are in `directory`."""
        return self.fetch is None


@contextmanager
def open_model(model: ModelName) -> Iterator[OpenedModel]:
    """Open a model: the path if there is one, else the model in the Hugging Face cache, else the remote one.

    Only headers and small files are fetched.

    Raises:
        ZppError: (USAGE) the name is not valid, or a package that reads it is missing; (INVALID) the model does not
            exist or this user may not read it; (FAILURE) the place does not respond, or responds incorrectly.
    """
    remote = model.remote
    if remote is None:
        yield OpenedModel(model.text, Path(model.text))
        return
    if isinstance(remote, HubId) and (found := cached_snapshot(remote)):
        identity = remote.at(found.commit)
        yield OpenedModel(identity, found.directory, remote.repo, Origin(identity, read_samples))
        return
    source = open_source(remote, model.token)
    with headers_directory(source) as directory, RangeFetcher(source, directory) as fetch:
        origin = Origin(source.identity, read_samples_of(source, directory))
        yield OpenedModel(source.identity, directory, source.served, origin, fetch)


def pinned_name(model: ModelName) -> str:
    """The name of a model at the commit that its branch or tag means now; a path, a URL, or a name with a commit as it
    is. Nothing is fetched but the answer to that question.

    Raises:
        ZppError: as `open_model`.
    """
    remote = model.remote
    if not isinstance(remote, HubId):
        return model.text
    if _COMMIT.fullmatch(remote.revision or ""):
        return remote.at(remote.wanted)
    return HubSource(remote, model.token).identity


def open_source(remote: HubId | UrlId, token: str | None) -> RemoteSource:
    """The source of a remote model.

    Raises:
        ZppError: as `open_model`; (INVALID) the URL names a version, and the directory has changed since.
    """
    if isinstance(remote, HubId):
        return HubSource(remote, token)
    if remote.url.partition("://")[0] in WEB_SCHEMES:
        from zpptool.sources.web import WebSource

        return WebSource(remote)
    if remote.url.partition("://")[0] == MODELSCOPE:
        from zpptool.sources.modelscope import ModelScopeSource

        return ModelScopeSource(remote)
    from zpptool.sources.objects import ObjectSource

    return ObjectSource(remote)


def known_model(remote: HubId | UrlId) -> KnownModel | None:
    """What is known of a remote model without a request; None for nothing."""
    return recall(store_directory(), known_name(remote))


def known_name(remote: HubId | UrlId) -> str:
    """The key of a remote model in the store: two names that mean the same have the same key."""
    if isinstance(remote, UrlId):
        return remote.url if remote.version is None else f"{remote.url}#{remote.version}"
    endpoint = os.environ.get("HF_ENDPOINT", "")
    return f"hf://{remote.repo}@{remote.wanted}" + (f" at {endpoint}" if endpoint else "")


def remember_model(remote: HubId | UrlId, identity: str, num_layers: int) -> None:
    """Note what a name means, under the name itself and under its identity, so that it needs no request again."""
    pinned = parse_remote(identity)
    for key in {known_name(remote), *([known_name(pinned)] if pinned is not None else ())}:
        remember(store_directory(), KnownModel(key, identity, num_layers))
