# SPDX-License-Identifier: Apache-2.0
"""A pipeline on one machine with `docker compose up`: a service a stage, linked on a network that leads nowhere else.

Each stage fetches its own tensors into a volume of its own before it starts. The API listens on the machine's loopback.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from zpptool.deploy.deployment import Deployment, Device
from zpptool.deploy.output import documents
from zpptool.deploy.stageunit import GIB, MODELS, SOURCE, StageUnit, key_file, link_environment, stage_units
from zpptool.errors import usage_error

COMPOSE_FILE = "compose.yaml"
_ASK_HEALTH = "import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=4)"

Service = dict[str, Any]


def compose_files(wish: Deployment) -> dict[str, str]:
    """The compose file by its name.

    Raises:
        ZppError: (USAGE) the source is nothing that a container can read; (INVALID) a link is not tcp.
    """
    if not wish.is_hub and not PurePosixPath(wish.source).is_absolute():
        raise usage_error(
            f"{wish.source!r} is nothing that a container can read",
            "Give --model hf://org/name@revision, or the absolute path of the checkpoint.",
        )
    units = stage_units(wish, wish.source if wish.is_hub else SOURCE)
    services: dict[str, Service] = {}
    for unit in units:
        services[_fetcher(unit)] = _fetch(wish, unit)
        services[unit.name] = _stage(wish, unit)
    made: dict[str, Any] = {
        "name": wish.name,
        "services": services,
        "networks": {"ring": {"internal": True}, "outside": {}},
        "volumes": {unit.name: {} for unit in units},
    }
    if not wish.insecure:
        made["secrets"] = {f"{unit.name}-keys": {"file": f"./keys/{key_file(unit.stage)}"} for unit in units}
    return {COMPOSE_FILE: documents([made])}


def _fetcher(unit: StageUnit) -> str:
    return f"{unit.name}-fetch"


def _fetch(wish: Deployment, unit: StageUnit) -> Service:
    mounted = {"type": "bind", "source": _literal(wish.source), "target": SOURCE, "read_only": True}
    source = [] if wish.is_hub else [mounted]
    token = {"HF_TOKEN": "${HF_TOKEN:-}"} if wish.is_hub else {}
    return {
        **_container(wish, list(unit.fetch)),
        "environment": {"HOME": "/tmp", **token},
        "volumes": [f"{unit.name}:{MODELS}", *source],
        "networks": ["outside"],
        "restart": "on-failure",
    }


def _stage(wish: Deployment, unit: StageUnit) -> Service:
    keys = f"{unit.name}-keys"
    made: Service = {
        **_container(wish, list(unit.run)),
        "depends_on": {_fetcher(unit): {"condition": "service_completed_successfully"}},
        "environment": {"HOME": "/tmp", **link_environment(wish, f"/run/secrets/{keys}")},
        "volumes": [f"{unit.name}:{MODELS}:ro"],
        "networks": ["ring"] if unit.api_port is None else ["ring", "outside"],
        "restart": "unless-stopped",
        "stop_grace_period": "60s",
        "shm_size": "1gb",
        "ulimits": {"nofile": {"soft": 65536, "hard": 65536}},
        "deploy": {"resources": _resources(wish, unit)},
    }
    if not wish.insecure:
        made["secrets"] = [keys]
    if unit.api_port is not None:
        url = f"http://127.0.0.1:{unit.api_port}/health"
        made["ports"] = [f"127.0.0.1:{unit.api_port}:{unit.api_port}"]
        made["healthcheck"] = {
            "test": ["CMD", "python", "-c", _ASK_HEALTH, url],
            "interval": "10s",
            "timeout": "5s",
            "retries": 6,
            "start_period": "30m",
        }
    return made


def _container(wish: Deployment, words: list[str]) -> Service:
    return {
        "image": wish.image,
        "entrypoint": [],
        "command": list(map(_literal, words)),
        "user": "1000:1000",
        "read_only": True,
        "tmpfs": ["/tmp"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }


def _literal(word: str) -> str:
    """A word in which compose reads no variable."""
    return word.replace("$", "$$")


def _resources(wish: Deployment, unit: StageUnit) -> dict[str, Any]:
    made: dict[str, Any] = {"limits": {"memory": f"{unit.memory_bytes // GIB}g"}}
    if wish.device is Device.CUDA:
        gpu = {"driver": "nvidia", "device_ids": [str(unit.stage)], "capabilities": ["gpu"]}
        made["reservations"] = {"devices": [gpu]}
    return made
