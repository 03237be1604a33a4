# SPDX-License-Identifier: Apache-2.0
"""Check that the ports of this machine's stages can be bound, and that the preceding stages can be reached."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

from zpptool.config.port_probe import probe_ports
from zpptool.doctor.finding import Finding, blocker, ok, warning
from zpptool.doctor.target import Target

CONNECT_S = 3.0


def check_ports(target: Target) -> Iterator[Finding]:
    """Bind the ports of this machine's stages briefly, and report those in use and by which process."""
    local = [item for item in target.endpoints if item.stage in target.here]
    if not target.endpoints:
        yield ok("ports", "not checked: give a plan, or --num-stages and --hosts")
        return
    if not local:
        yield warning("ports", "no stage is on this machine", "Give --host NAME if its address was not recognised.")
        return
    faults = probe_ports(local, target.api_port)
    for fault in faults:
        yield blocker("ports", fault.message, "End that process, or choose another --base-port or --api-port.")
    if not faults:
        bound = [item.bind for item in local] + ([f"API port {target.api_port}"] if target.api_port else [])
        yield ok("ports", f"free: {', '.join(bound)}")


def check_peers(target: Target) -> Iterator[Finding]:
    """Connect to every stage on another machine that a stage of this machine receives from."""
    for item in target.endpoints:
        before = target.endpoints[item.stage - 1]
        if item.stage in target.here and before.stage not in target.here and item.connect.startswith("tcp://"):
            yield peer_finding(before.stage, item.connect)


def peer_finding(stage: int, endpoint: str) -> Finding:
    """Try to connect to a stage's endpoint, `tcp://host:port`."""
    check = f"stage {stage}"
    parts = urlsplit(endpoint)
    host, port = parts.hostname or "", parts.port or 0
    try:
        with socket.create_connection((host, port), timeout=CONNECT_S):
            return ok(check, f"{endpoint} accepts connections")
    except socket.gaierror:
        return blocker(check, f"this machine cannot resolve {host}", "Use its address, or add it to /etc/hosts.")
    except ConnectionRefusedError:
        return warning(
            check, f"nothing listens on port {port} of {host}", f"Start stage {stage}, and check that it binds {host}."
        )
    except TimeoutError:
        return blocker(check, f"{endpoint} does not respond", f"Open tcp {port} on {host} for this machine.")
    except OSError as cause:
        return blocker(check, f"{endpoint} cannot be reached: {cause.strerror}", "Check routes and firewalls.")
