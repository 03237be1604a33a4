# SPDX-License-Identifier: Apache-2.0
"""Ports of this machine, and the stages before its own: can each be bound, and reached?"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

from zpptool.config.port_probe import probe_ports
from zpptool.doctor.finding import Finding, blocker, ok, warning
from zpptool.doctor.target import Target

CONNECT_S = 3.0


def check_ports(patient: Target) -> Iterator[Finding]:
    """Bind what this machine is to bind, for a moment; say who is in the way."""
    own = [item for item in patient.endpoints if item.stage in patient.here]
    if not patient.endpoints:
        yield ok("ports", "no pipeline is named: give a plan, or --num-stages and --hosts, to look at ports")
        return
    if not own:
        yield warning("ports", "no stage is on this machine", "Give --host NAME if it has an address that is not seen.")
        return
    faults = probe_ports(own, patient.api_port)
    for fault in faults:
        yield blocker("ports", fault.message, "End what is in the way, or choose another --base-port or --api-port.")
    if not faults:
        bound = [item.bind for item in own] + ([f"API port {patient.api_port}"] if patient.api_port else [])
        yield ok("ports", f"free: {', '.join(bound)}")


def check_peers(patient: Target) -> Iterator[Finding]:
    """Connect to every stage that one of this machine hears from, if it is on another."""
    for item in patient.endpoints:
        before = patient.endpoints[item.stage - 1]
        if item.stage in patient.here and before.stage not in patient.here and item.connect.startswith("tcp://"):
            yield peer_finding(before.stage, item.connect)


def peer_finding(stage: int, endpoint: str) -> Finding:
    """Whether something listens at a stage's endpoint, `tcp://host:port`."""
    check = f"stage {stage}"
    parts = urlsplit(endpoint)
    host, port = parts.hostname or "", parts.port or 0
    try:
        with socket.create_connection((host, port), timeout=CONNECT_S):
            return ok(check, f"{endpoint} answers")
    except socket.gaierror:
        return blocker(check, f"{host} is no name that this machine knows", "Use its address, or add it to /etc/hosts.")
    except ConnectionRefusedError:
        return warning(
            check, f"{host} is there, nothing listens at port {port}", f"Start stage {stage}; did it bind {host}?"
        )
    except TimeoutError:
        return blocker(check, f"{endpoint} does not answer", f"Open tcp {port} on {host} for this machine.")
    except OSError as cause:
        return blocker(check, f"{endpoint} cannot be reached: {cause.strerror}", "Look at routes and firewalls.")
