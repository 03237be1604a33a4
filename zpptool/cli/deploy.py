# SPDX-License-Identifier: Apache-2.0
"""`zpptool deploy`: from a plan to Kubernetes manifests, a compose file or systemd units."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from zpptool.cli.options import InsecureOption, JsonOption, RequiredPlanOption
from zpptool.config.plan import PipelinePlan, load_plan_file
from zpptool.console import Console
from zpptool.deploy.deployment import Deployment, Device, check_deployment

DEFAULT_NAME = "zpp"
DEFAULT_IMAGE = "zpptool:latest"


class Target(StrEnum):
    """What the pipeline is deployed on."""

    KUBERNETES = "kubernetes"
    COMPOSE = "compose"
    SYSTEMD = "systemd"


def deploy(
    target: Annotated[Target, typer.Argument(help="What to write: manifests, a compose file, or units.")],
    plan_file: RequiredPlanOption,
    output: Annotated[
        Path, typer.Option("--output-dir", "-o", metavar="OUT", help="Will hold the files.", show_default=False)
    ],
    source: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="SOURCE",
            help="Where stages get their tensors: org/name@revision, a directory on each host, or, on "
            "Kubernetes, pvc://claim/path. The plan's own model if not given.",
        ),
    ] = None,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="The name of everything that is created.")
    ] = DEFAULT_NAME,
    image: Annotated[
        str,
        typer.Option("--image", metavar="IMAGE", help="The image of stages without one in the plan; see docker/."),
    ] = DEFAULT_IMAGE,
    device: Annotated[
        Device, typer.Option("--device", help="What stages compute on where the plan names no device.")
    ] = Device.CUDA,
    program: Annotated[
        str, typer.Option("--zpptool", metavar="PATH", help="systemd: the path of zpptool on the hosts.")
    ] = "/opt/zpptool/bin/zpptool",
    insecure: InsecureOption = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if zpptool deploy wrote it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the files that run a plan: Kubernetes manifests, a compose file, or systemd units.

    The same plan and options always give the same files; a branch of --model org/name@branch is replaced by the commit
    that it means now, so that all stages have the same one. No secret is written: put each stage's key file into
    OUT/keys (systemd: /etc/zpptool/NAME) yourself. There is exactly one of each stage; to serve more, deploy the
    whole pipeline again under another --name.
    """
    from zpptool.deploy.output import write_directory
    from zpptool.sources.names import ModelName, hub_id
    from zpptool.sources.opened import pinned_name

    plan = load_plan_file(plan_file)
    named = ModelName(source or plan.model)
    deployment = check_deployment(
        Deployment(
            plan=plan,
            name=name,
            image=image,
            source=pinned_name(named) if named.text.startswith("hf:") or hub_id(named.text) else named.text,
            device=device,
            insecure=insecure,
            program=program,
        )
    )
    files = _writer(target)(deployment)
    write_directory(files, output, force=force)
    steps = _next(target, deployment, output)
    payload = {"target": target, "directory": str(output), "files": sorted(files), "next": steps}
    Console(as_json=as_json).result(payload, lambda out: _show(out, plan, sorted(files), steps))


def _writer(target: Target) -> Callable[[Deployment], dict[str, str]]:
    from zpptool.deploy.compose import compose_files
    from zpptool.deploy.kubernetes.manifests import kubernetes_files
    from zpptool.deploy.systemd import systemd_files

    return {
        Target.KUBERNETES: kubernetes_files,
        Target.COMPOSE: compose_files,
        Target.SYSTEMD: systemd_files,
    }[target]


def _next(target: Target, deployment: Deployment, output: Path) -> list[str]:
    """The steps that are left to do, each a line of text."""
    stages = len(deployment.plan.stages)
    if target is Target.SYSTEMD:
        keys = f"put each stage's key file into /etc/zpptool/{deployment.name}/ on its host; make a user zpptool there"
        run = [
            f"on each host: copy its zpp.yaml to /etc/zpptool/{deployment.name}/ and its units to /etc/systemd/system/",
            f"on each host: systemctl daemon-reload && systemctl enable --now --no-block {deployment.name}.target",
        ]
    else:
        keys = f"put the key files of {stages} stages into {output}/keys"
        compose = shlex.join(["docker", "compose", "-f", f"{output}/compose.yaml", "up", "-d"])
        run = [compose if target is Target.COMPOSE else shlex.join(["kubectl", "apply", "-k", str(output)])]
    return run if deployment.insecure else [keys, *run]


def _show(out: Console, plan: PipelinePlan, files: list[str], steps: list[str]) -> None:
    for file in files:
        out.line(f"wrote {file}")
    out.line(f"a pipeline of {len(plan.stages)} stages, plan {plan.digest[:16]}; next:")
    for step in steps:
        out.line(f"  {step}")
