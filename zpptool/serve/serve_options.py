# SPDX-License-Identifier: Apache-2.0
"""The settings of one `zpptool serve`, checked and complete: what the command line hands to `serve.run`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zpptool.net.connection_limits import ConnectionLimits
from zpptool.serve.extension import FrontExtension
from zpptool.serve.front_access import FrontAccess
from zpptool.serve.launch_plan import PipelineLaunchPlan
from zpptool.serve.proxy import ProxyLimits
from zpptool.serve.remote_address import RemoteAddress


@dataclass(frozen=True)
class ServeSettings:
    """What to serve, and how; times are in seconds.

    Attributes:
        launch_plans: the pipelines to start here.
        upstreams: the addresses of pipelines that run elsewhere.
        host: the address that the front listens on.
        port: the front's port; 0 for any that is free.
        certificate: a PEM file for TLS, or None.
        key: the PEM file of the certificate's key, or None.
        access: who may use the front.
        limits: of one request.
        connections: the limits of connections to the front.
        recovery_deadline_s: how long a request waits for a pipeline to become ready.
        drain_timeout_s: how long requests in flight may go on after a stop was requested.
        max_restarts: how many starts in a row may fail after the first.
        log_dir: the directory of the processes' logs; with None they are kept only if something failed.
        spares: how many spare processes each pipeline keeps ready to replace a lost one.
        extension: what the front has beside its own routes; None for nothing.
    """

    launch_plans: tuple[PipelineLaunchPlan, ...]
    upstreams: tuple[RemoteAddress, ...]
    host: str
    port: int
    certificate: Path | None
    key: Path | None
    access: FrontAccess
    limits: ProxyLimits
    connections: ConnectionLimits
    recovery_deadline_s: float
    drain_timeout_s: float
    max_restarts: int
    log_dir: Path | None
    spares: int = 0
    extension: FrontExtension | None = None
