# SPDX-License-Identifier: Apache-2.0
"""What stands behind the front, as the front's event loop knows it, and the way there from other threads.

The pool belongs to the loop's thread. Other threads only ask the loop to look again, and it then reads the supervisor's
present state; so news can come late, but never in the wrong order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette

from zpptool.net.http_server import HttpServer
from zpptool.places import place_name
from zpptool.ring.status import RECOVERING, RingStatus, change_path
from zpptool.serve.gateway import Front, FrontParts
from zpptool.serve.load_balancing import BackendState
from zpptool.serve.pipeline_status import describe_pipeline, stage_phase
from zpptool.serve.pool import Pool
from zpptool.serve.proxy import open_client
from zpptool.serve.remote import RemotePipeline
from zpptool.supervisor import lifecycle as lc
from zpptool.supervisor.pipeline_view import PipelineView
from zpptool.supervisor.supervisor import Supervisor

if TYPE_CHECKING:
    from zpptool.serve.serve_options import ServeSettings


class Backend:
    """The pipelines behind one front.

    Args:
        serving: what is served.
        names: of the pipelines that are started here.
        supervisors: theirs, in this order; the list may be filled later.
        server: the front's.
    """

    def __init__(
        self, serving: ServeSettings, names: Sequence[str], supervisors: Sequence[Supervisor], server: HttpServer
    ) -> None:
        self._serving, self._supervisors, self._server = serving, supervisors, server
        self._names = tuple(names)
        self._pool = Pool([*names, *serving.upstreams], serving.recovery_deadline_s)
        self._tasks: list[asyncio.Future[None]] = []

    @property
    def under_way(self) -> int:
        """Requests that are being answered, or wait."""
        return self._pool.in_flight

    def app(self) -> Starlette:
        """The front's application. Called on the loop's thread."""
        client = open_client()
        here = len(self._supervisors)
        remote = [
            RemotePipeline(here + number, url, self._pool, client) for number, url in enumerate(self._serving.upstreams)
        ]
        describe: list[Callable[[], Awaitable[dict[str, Any]]]] = [
            partial(asyncio.to_thread, _describe, supervisor) for supervisor in self._supervisors
        ]
        parts = FrontParts(
            pool=self._pool,
            describe=[*describe, *(each.describe for each in remote)],
            watch=[each.watch for each in remote],
            client=client,
            limits=self._serving.limits,
            keys=self._serving.api_keys,
            rings=self._rings,
            changes=self._changes,
        )
        return Front(parts).app()

    def refresh(self, number: int) -> None:
        """Have the front look at a pipeline's state again."""
        self._call(lambda: self._pool.update(number, standing_of(self._supervisors[number].view())))

    def drain(self) -> None:
        """Have the front take no more requests."""
        self._call(self._pool.drain)

    def tell_when_empty(self, tell: Callable[[], None]) -> None:
        """Have `tell` called once no request is under way."""

        async def wait() -> None:
            await self._pool.empty()
            tell()

        self._call(lambda: self._tasks.append(asyncio.ensure_future(wait())))

    def _rings(self) -> dict[str, RingStatus]:
        """What the heads here tell, by the names of their pipelines."""
        views = [(name, supervisor.view()) for name, supervisor in zip(self._names, self._supervisors, strict=True)]
        return {name: view.ring for name, view in views if view.ring is not None}

    def _changes(self) -> dict[str, Path]:
        """Where the heads here take planned changes, by the names of their pipelines."""
        views = [(name, supervisor.view()) for name, supervisor in zip(self._names, self._supervisors, strict=True)]
        return {name: change_path(view.specs[0].local) for name, view in views if view.specs}

    def _call(self, what: Callable[[], object]) -> None:
        """On the loop's thread; a loop that has ended has nobody to tell."""
        with suppress(RuntimeError):
            self._server.loop.call_soon_threadsafe(what)


def _describe(supervisor: Supervisor) -> dict[str, Any]:
    return describe_pipeline(supervisor.view())


def standing_of(view: PipelineView) -> BackendState:
    """What the front knows of a pipeline that was started here."""
    state = view.state
    phase = str(state.phase)
    if state.phase is lc.Phase.STARTING:
        doing = [f"{place_name(spec.stage)} {stage_phase(view, spec.stage)}" for spec in view.specs]
        phase = f"{phase}: {', '.join(doing)}" if doing else phase
    elif state.phase is lc.Phase.READY and view.is_recovering:
        phase = RECOVERING
    return BackendState(
        url=view.url,
        ready=view.is_ready,
        phase=phase,
        generation=state.generation,
        hopeless=state.phase is lc.Phase.ENDED or state.giving_up,
        why=state.cause.message if state.cause is not None and not view.is_ready else None,
    )
