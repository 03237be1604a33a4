# SPDX-License-Identifier: Apache-2.0
"""The pipelines behind the gateway, and access to them from threads other than the event loop's.

The pool is used on the event loop's thread only. Other threads ask the loop to refresh a pipeline, and the loop then
reads the supervisor's current state. So an update can arrive late, but never out of order.
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
from zpptool.serve.gateway import Gateway, GatewayParts
from zpptool.serve.load_balancing import BackendState
from zpptool.serve.pipeline_status import describe_pipeline, stage_phase
from zpptool.serve.pool import Pool
from zpptool.serve.proxy import open_client
from zpptool.serve.remote import RemotePipeline
from zpptool.serve.remote_address import UpstreamAuth
from zpptool.supervisor.lifecycle import Phase
from zpptool.supervisor.pipeline_view import PipelineView
from zpptool.supervisor.supervisor import Supervisor

if TYPE_CHECKING:
    from zpptool.serve.serve_options import ServeSettings


class Backends:
    """The pipelines behind one gateway: those that were started here, then those behind `--upstream`.

    Args:
        settings: of the command.
        names: of the pipelines that are started here.
        supervisors: of these pipelines, in the same order; the list may be filled after construction.
        server: runs the gateway's event loop.
    """

    def __init__(
        self, settings: ServeSettings, names: Sequence[str], supervisors: Sequence[Supervisor], server: HttpServer
    ) -> None:
        self._settings, self._supervisors, self._server = settings, supervisors, server
        self._names = tuple(names)
        self._pool = Pool([*names, *(address.url for address in settings.upstreams)], settings.recovery_deadline_s)
        self._tasks: list[asyncio.Future[None]] = []

    @property
    def in_flight(self) -> int:
        """Requests that are being answered or wait for a pipeline."""
        return self._pool.in_flight

    def app(self) -> Starlette:
        """The gateway's ASGI application. Must be called on the event loop's thread."""
        client = open_client()
        client.auth = UpstreamAuth(self._settings.upstreams)
        first_remote = len(self._supervisors)
        remote = [
            RemotePipeline(first_remote + number, address.url, self._pool, client)
            for number, address in enumerate(self._settings.upstreams)
        ]
        describe: list[Callable[[], Awaitable[dict[str, Any]]]] = [
            partial(asyncio.to_thread, _describe, supervisor) for supervisor in self._supervisors
        ]
        parts = GatewayParts(
            pool=self._pool,
            describe=[*describe, *(each.describe for each in remote)],
            watch=[each.watch for each in remote],
            client=client,
            limits=self._settings.limits,
            access=self._settings.access,
            rings=self._rings,
            changes=self._change_sockets,
            extension=self._settings.extension,
        )
        return Gateway(parts).app()

    def refresh(self, number: int) -> None:
        """Have the gateway read the state of the pipeline with that number. May be called from any thread."""
        self._call_on_loop(lambda: self._pool.update(number, backend_state(self._supervisors[number].view())))

    def drain(self) -> None:
        """Have the gateway accept no more requests. May be called from any thread."""
        self._call_on_loop(self._pool.drain)

    def call_when_idle(self, callback: Callable[[], None]) -> None:
        """Have `callback` called on the event loop's thread once no request is in flight."""

        async def wait() -> None:
            await self._pool.wait_until_idle()
            callback()

        self._call_on_loop(lambda: self._tasks.append(asyncio.ensure_future(wait())))

    def _rings(self) -> dict[str, RingStatus]:
        """The rings' statuses that local heads report, by pipeline name."""
        views = [(name, supervisor.view()) for name, supervisor in zip(self._names, self._supervisors, strict=True)]
        return {name: view.ring for name, view in views if view.ring is not None}

    def _change_sockets(self) -> dict[str, Path]:
        """The sockets on which local heads accept planned changes, by pipeline name."""
        views = [(name, supervisor.view()) for name, supervisor in zip(self._names, self._supervisors, strict=True)]
        return {name: change_path(view.specs[0].local) for name, view in views if view.specs}

    def _call_on_loop(self, function: Callable[[], object]) -> None:
        """Call a function on the event loop's thread; a closed loop ignores it."""
        with suppress(RuntimeError):
            self._server.loop.call_soon_threadsafe(function)


def _describe(supervisor: Supervisor) -> dict[str, Any]:
    return describe_pipeline(supervisor.view())


def backend_state(view: PipelineView) -> BackendState:
    """The gateway's view of a pipeline that was started here."""
    state = view.state
    phase = str(state.phase)
    if state.phase is Phase.STARTING:
        stages = [f"{place_name(spec.stage)} {stage_phase(view, spec.stage)}" for spec in view.specs]
        phase = f"{phase}: {', '.join(stages)}" if stages else phase
    elif state.phase is Phase.READY and view.is_recovering:
        phase = RECOVERING
    return BackendState(
        url=view.url,
        ready=view.is_ready,
        phase=phase,
        generation=state.generation,
        hopeless=state.phase is Phase.ENDED or state.giving_up,
        why=state.cause.message if state.cause is not None and not view.is_ready else None,
    )
