# SPDX-License-Identifier: Apache-2.0
"""Generate systemd units: one directory per host, with the plan, a unit per stage, and a target that groups them.

The units run `zpptool run-stage --plan`. Every stage is started from the same plan; the roll call detects one that is
not. Keys are passed as credentials, which only the service's own user can read (systemd 247 and later).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from zpptool.config.plan import PlannedStage
from zpptool.config.plan_gpus import gpus_on_host
from zpptool.deploy.deployment import Deployment
from zpptool.deploy.quoting import check_program
from zpptool.deploy.stageunit import (
    START_S,
    fetch_words,
    key_file,
    link_environment,
    shutdown_timeout_s,
    stage_home,
    stop_limit_s,
)
from zpptool.errors import ExitCode, invalid_error, usage_error
from zpptool.file_names import holds_control

PLAN_FILE = "zpp.yaml"
WATCHDOG_S = 120
"""Seconds after which systemd restarts a stage that shows no progress. run-stage shows it every 60 s, unless the stage
has been still for --beat-timeout (60 s): the ring, which knows more, has acted by then."""


def systemd_files(deployment: Deployment) -> dict[str, str]:
    """Return the units and the plan, by path: one directory per host.

    Raises:
        ZppError: (USAGE) the program or a directory is not an absolute path; (INVALID) a value has more than one line.
    """
    if not deployment.is_hub and not PurePosixPath(deployment.source).is_absolute():
        raise usage_error(
            f"{deployment.source!r} cannot be read by a systemd unit",
            "Give --model hf://org/name@revision, or the absolute path of the checkpoint or its stages on each host.",
        )
    check_program(deployment.program)
    files: dict[str, str] = {}
    for host in dict.fromkeys(place.host for place in deployment.plan.stages):
        places = [place for place in deployment.plan.stages if place.host == host]
        files[f"{host}/{PLAN_FILE}"] = deployment.plan.to_yaml()
        files[f"{host}/{deployment.name}.target"] = _target(deployment, places)
        for place in places:
            files[f"{host}/{_unit_name(deployment, place)}"] = _service(deployment, place)
    return files


def _unit_name(deployment: Deployment, place: PlannedStage) -> str:
    return f"{deployment.name}-stage-{place.stage}.service"


def _target(deployment: Deployment, places: Sequence[PlannedStage]) -> str:
    units = " ".join(_unit_name(deployment, place) for place in places)
    return _text(
        {
            "Unit": [("Description", f"zpptool pipeline {deployment.name} on this host"), ("Wants", units)],
            "Install": [("WantedBy", "multi-user.target")],
        }
    )


def _service(deployment: Deployment, place: PlannedStage) -> str:
    settings = f"/etc/zpptool/{deployment.name}"
    state = f"zpptool/{deployment.name}-{place.stage}"
    volume = f"/var/lib/{state}"
    stage_directory = f"{stage_home(deployment, place.stage, volume)}/stage_{place.stage}"
    run = [
        "run-stage",
        "--plan",
        f"{settings}/{PLAN_FILE}",
        "--stage-idx",
        str(place.stage),
        "--device",
        deployment.device_of(place),
    ]
    run += ["--start-timeout", str(START_S), "--shutdown-timeout", str(shutdown_timeout_s(place.stage))]
    if gpus := _gpus(deployment, place):
        run += ["--gpu-ids", ",".join(map(str, gpus))]
    lines: list[tuple[str, str]] = [
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("WatchdogSec", str(WATCHDOG_S)),
        ("User", "zpptool"),
        ("StateDirectory", state),
    ]
    environment = {"HOME": f"/var/lib/{state}", **link_environment(deployment, "%d/stage.keys")}
    lines += [("Environment", f"{name}={value}") for name, value in environment.items()]
    if not deployment.insecure:
        lines.append(("LoadCredential", f"stage.keys:{settings}/{key_file(place.stage)}"))
    if deployment.is_hub:
        lines.append(("EnvironmentFile", f"-{settings}/environment"))
        fetch = fetch_words(deployment, place.stage, deployment.source, volume)
        lines.append(("ExecStartPre", _command(deployment, fetch)))
    model = stage_directory if deployment.is_hub else deployment.source
    lines += [
        ("ExecStart", _command(deployment, [*run, "--model", model])),
        ("Restart", "always"),
        ("RestartSec", "5"),
        ("TimeoutStartSec", "infinity"),
        ("TimeoutStopSec", str(stop_limit_s(place.stage))),
        ("SuccessExitStatus", str(int(ExitCode.INTERRUPTED))),
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
                ("Description", f"zpptool pipeline {deployment.name}, stage {place.stage}, layers {place.layers}"),
                ("Wants", "network-online.target"),
                ("After", "network-online.target"),
                ("PartOf", f"{deployment.name}.target"),
                ("StartLimitIntervalSec", "0"),
            ],
            "Service": lines,
            "Install": [("WantedBy", f"{deployment.name}.target")],
        }
    )


def _gpus(deployment: Deployment, place: PlannedStage) -> tuple[int, ...]:
    """Return the numbers of a stage's GPUs; the stages of a host take them in order."""
    places = [other for other in deployment.plan.stages if other.host == place.host]
    return gpus_on_host(places, str(deployment.device))[place.stage]


def _command(deployment: Deployment, arguments: Sequence[str]) -> str:
    """Return a command line in the syntax of systemd.service(5)."""
    return " ".join([deployment.program, *map(_quoted, arguments)])


def _quoted(argument: str) -> str:
    escaped = argument.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if not argument or any(sign in argument for sign in " \t'\";") else escaped


def _text(sections: dict[str, list[tuple[str, str]]]) -> str:
    """Return the text of a unit file.

    Raises:
        ZppError: (INVALID) a value contains a line break, after which the text would be a setting of its own.
    """
    for key, value in (line for lines in sections.values() for line in lines):
        if holds_control(value):
            raise invalid_error(
                f"{key} of a unit would have more than one line: {value[:80]!r}",
                "Remove the line break from the value.",
            )
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in lines) for name, lines in sections.items()
    )
