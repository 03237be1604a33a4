# SPDX-License-Identifier: Apache-2.0
"""A compose file for a pipeline on one machine: one service per stage, connected by an internal network.

Each stage fetches its own tensors into a volume of its own before it starts. The API is published on the machine's
loopback address.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from zpptool.deploy.deployment import Deployment
from zpptool.deploy.output import documents
from zpptool.deploy.stageunit import (
    GIB,
    MODELS,
    SOURCE,
    StageUnit,
    key_file,
    link_environment,
    stage_units,
    stop_limit_s,
)
from zpptool.errors import usage_error

COMPOSE_FILE = "compose.yaml"
_HEALTH_CHECK = "import sys, urllib.request as r; r.build_opener(r.ProxyHandler({})).open(sys.argv[1], timeout=4)"

Service = dict[str, Any]


def compose_files(deployment: Deployment) -> dict[str, str]:
    """Return the compose file, by file name.

    Raises:
        ZppError: (USAGE) a container cannot read the source; (INVALID) a link does not use tcp.
    """
    if not deployment.is_hub and not PurePosixPath(deployment.source).is_absolute():
        raise usage_error(
            f"{deployment.source!r} cannot be read by a container",
            "Give --model hf://org/name@revision, or the absolute path of the checkpoint.",
        )
    units = stage_units(deployment, deployment.source if deployment.is_hub else SOURCE)
    services: dict[str, Service] = {}
    for unit in units:
        services[_fetcher(unit)] = _fetch(deployment, unit)
        services[unit.name] = _stage(deployment, unit)
    compose: dict[str, Any] = {
        "name": deployment.name,
        "services": services,
        "networks": {"ring": {"internal": True}, "outside": {}},
        "volumes": {unit.name: {} for unit in units},
    }
    if not deployment.insecure:
        compose["secrets"] = {f"{unit.name}-keys": {"file": f"./keys/{key_file(unit.stage)}"} for unit in units}
    return {COMPOSE_FILE: documents([compose])}


def _fetcher(unit: StageUnit) -> str:
    return f"{unit.name}-fetch"


def _fetch(deployment: Deployment, unit: StageUnit) -> Service:
    mounted = {"type": "bind", "source": _literal(deployment.source), "target": SOURCE, "read_only": True}
    source = [] if deployment.is_hub else [mounted]
    token = {"HF_TOKEN": "${HF_TOKEN:-}"} if deployment.is_hub else {}
    return {
        **_container(deployment, unit, list(unit.fetch)),
        "environment": {"HOME": "/tmp", **token},
        "volumes": [f"{unit.name}:{MODELS}", *source],
        "networks": ["outside"],
        "restart": "on-failure",
    }


def _stage(deployment: Deployment, unit: StageUnit) -> Service:
    keys = f"{unit.name}-keys"
    service: Service = {
        **_container(deployment, unit, list(unit.run)),
        "depends_on": {_fetcher(unit): {"condition": "service_completed_successfully"}},
        "environment": {"HOME": "/tmp", **link_environment(deployment, f"/run/secrets/{keys}")},
        "volumes": [f"{unit.name}:{MODELS}:ro"],
        "networks": ["ring"] if unit.api_port is None else ["ring", "outside"],
        "restart": "unless-stopped",
        "stop_grace_period": f"{stop_limit_s(unit.stage)}s",
        "shm_size": "1gb",
        "ulimits": {"nofile": {"soft": 65536, "hard": 65536}},
        "deploy": {"resources": _resources(unit)},
    }
    if not deployment.insecure:
        service["secrets"] = [keys]
    if unit.api_port is not None:
        url = f"http://127.0.0.1:{unit.api_port}/health"
        service["ports"] = [f"127.0.0.1:{unit.api_port}:{unit.api_port}"]
        service["healthcheck"] = {
            "test": ["CMD", "python", "-c", _HEALTH_CHECK, url],
            "interval": "10s",
            "timeout": "5s",
            "retries": 6,
            "start_period": "30m",
        }
    return service


def _container(deployment: Deployment, unit: StageUnit, arguments: list[str]) -> Service:
    return {
        "image": deployment.image_of(unit.place),
        "entrypoint": [],
        "command": list(map(_literal, arguments)),
        "user": "1000:1000",
        "read_only": True,
        "tmpfs": ["/tmp"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }


def _literal(argument: str) -> str:
    """Escape `$`, so that compose substitutes no variables."""
    return argument.replace("$", "$$")


def _resources(unit: StageUnit) -> dict[str, Any]:
    resources: dict[str, Any] = {"limits": {"memory": f"{unit.memory_bytes // GIB}g"}}
    if unit.cpus:
        resources["limits"]["cpus"] = str(unit.cpus)
    if unit.gpus:
        gpu = {"driver": "nvidia", "device_ids": list(map(str, unit.gpus)), "capabilities": ["gpu"]}
        resources["reservations"] = {"devices": [gpu]}
    return resources
