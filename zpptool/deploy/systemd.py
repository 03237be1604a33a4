# SPDX-License-Identifier: Apache-2.0
"""A pipeline as systemd units: a directory for each host, with the plan, a unit a stage, and a target that holds them.

The units run `zpptool run-stage --plan`: every stage is started from the same plan, and the roll call finds out when
one is not. Keys are handed over as credentials, which only the service's own user can read (systemd 247 and later).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from zpptool.config.plan import PlannedStage
from zpptool.deploy.deployment import Deployment, Device
from zpptool.deploy.quoting import check_program
from zpptool.deploy.stageunit import START_S, key_file, link_environment
from zpptool.errors import invalid_error, usage_error
from zpptool.file_names import holds_control

PLAN_FILE = "zpp.yaml"


def systemd_files(wish: Deployment) -> dict[str, str]:
    """The units and the plan by file name, in a directory for each host.

    Raises:
        ZppError: (USAGE) the program or a directory is no absolute path; (INVALID) a value is more than one line.
    """
    if not wish.is_hub and not PurePosixPath(wish.source).is_absolute():
        raise usage_error(
            f"{wish.source!r} is nothing that a unit can read",
            "Give --model hf://org/name@revision, or the absolute path of the checkpoint or its stages on each host.",
        )
    check_program(wish.program)
    files: dict[str, str] = {}
    for host in dict.fromkeys(place.host for place in wish.plan.stages):
        places = [place for place in wish.plan.stages if place.host == host]
        files[f"{host}/{PLAN_FILE}"] = wish.plan.to_yaml()
        files[f"{host}/{wish.name}.target"] = _target(wish, places)
        for place in places:
            files[f"{host}/{_unit_name(wish, place)}"] = _service(wish, place)
    return files


def _unit_name(wish: Deployment, place: PlannedStage) -> str:
    return f"{wish.name}-stage-{place.stage}.service"


def _target(wish: Deployment, places: Sequence[PlannedStage]) -> str:
    units = " ".join(_unit_name(wish, place) for place in places)
    return _text(
        {
            "Unit": [("Description", f"zpptool pipeline {wish.name} on this host"), ("Wants", units)],
            "Install": [("WantedBy", "multi-user.target")],
        }
    )


def _service(wish: Deployment, place: PlannedStage) -> str:
    settings = f"/etc/zpptool/{wish.name}"
    state = f"zpptool/{wish.name}-{place.stage}"
    own = f"/var/lib/{state}/stage_{place.stage}"
    run = ["run-stage", "--plan", f"{settings}/{PLAN_FILE}", "--stage-idx", str(place.stage), "--device", wish.device]
    run += ["--start-timeout", str(START_S)]
    if wish.device is Device.CUDA:
        run += ["--gpu-id", str(_place_on_host(wish, place))]
    lines: list[tuple[str, str]] = [("Type", "exec"), ("User", "zpptool"), ("StateDirectory", state)]
    environment = {"HOME": f"/var/lib/{state}", **link_environment(wish, "%d/stage.keys")}
    lines += [("Environment", f"{name}={value}") for name, value in environment.items()]
    if not wish.insecure:
        lines.append(("LoadCredential", f"stage.keys:{settings}/{key_file(place.stage)}"))
    if wish.is_hub:
        ranges = [own.layers for own in wish.plan.stages]
        split = ["split", wish.source, "--ranges", *ranges, "--stage", str(place.stage)]
        lines.append(("EnvironmentFile", f"-{settings}/environment"))
        lines.append(("ExecStartPre", _command(wish, [*split, "--output-dir", f"/var/lib/{state}"])))
    lines += [
        ("ExecStart", _command(wish, [*run, "--model", own if wish.is_hub else wish.source])),
        ("Restart", "always"),
        ("RestartSec", "5"),
        ("TimeoutStartSec", "infinity"),
        ("TimeoutStopSec", "60"),
        ("KillMode", "mixed"),
        ("LimitNOFILE", "65536"),
        ("NoNewPrivileges", "yes"),
        ("PrivateTmp", "yes"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "read-only"),
    ]
    return _text(
        {
            "Unit": [
                ("Description", f"zpptool pipeline {wish.name}, stage {place.stage}, layers {place.layers}"),
                ("Wants", "network-online.target"),
                ("After", "network-online.target"),
                ("PartOf", f"{wish.name}.target"),
                ("StartLimitIntervalSec", "0"),
            ],
            "Service": lines,
            "Install": [("WantedBy", f"{wish.name}.target")],
        }
    )


def _place_on_host(wish: Deployment, place: PlannedStage) -> int:
    """The first stage of a host takes its first GPU, and so on."""
    return [other.stage for other in wish.plan.stages if other.host == place.host].index(place.stage)


def _command(wish: Deployment, words: Sequence[str]) -> str:
    """A command line as systemd.service(5) reads it."""
    return " ".join([wish.program, *map(_quoted, words)])


def _quoted(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if not word or any(sign in word for sign in " \t'\";") else escaped


def _text(sections: dict[str, list[tuple[str, str]]]) -> str:
    """A unit file. A value is one line: what follows a line break would be a setting of its own.

    Raises:
        ZppError: (INVALID) a value is more than one line.
    """
    for key, value in (line for lines in sections.values() for line in lines):
        if holds_control(value):
            raise invalid_error(f"{key} of a unit would be more than one line: {value[:80]!r}")
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in lines) for name, lines in sections.items()
    )
