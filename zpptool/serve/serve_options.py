# SPDX-License-Identifier: Apache-2.0
"""serve/serve_options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zpptool.serve.launch_plan import PipelineLaunchPlan
from zpptool.serve.proxy import ProxyLimits


@dataclass(frozen=True)
class ServeSettings:
    """What to serve, and how.

    Attributes:
        orders: the pipelines to start here.
        upstreams: the addresses of those that run elsewhere.
        host: where the front listens.
        port: its port; 0 for any.
        certificate: a PEM file for TLS, or None.
        key: its key's file.
        api_keys: any of which is asked for; none lets everybody in.
        limits: what one request may take.
        recovery_deadline_s: how long a request waits for a pipeline to be ready.
        drain_timeout_s: how long answers under way are waited for at the end.
        max_restarts: a pipeline is given up after this many failures in a row; 0 counts as 1.
        log_dir: where logs are kept; None keeps them only if something went wrong.
        spares: how many processes each pipeline keeps ready to take the place of one that is lost.
    """

    orders: tuple[PipelineLaunchPlan, ...]
    upstreams: tuple[str, ...]
    host: str
    port: int
    certificate: Path | None
    key: Path | None
    api_keys: tuple[str, ...]
    limits: ProxyLimits
    recovery_deadline_s: float
    drain_timeout_s: float
    max_restarts: int
    log_dir: Path | None
    spares: int = 0
