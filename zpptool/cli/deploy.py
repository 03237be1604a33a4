# SPDX-License-Identifier: Apache-2.0
"""`zpptool deploy`: from a plan to Kubernetes manifests, a LeaderWorkerSet, a chart, a compose file or units."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from zpptool.cli.options import InsecureOption, JsonOption, RequiredPlanOption
from zpptool.config.plan import PipelinePlan, load_plan_file
from zpptool.console import Console
from zpptool.deploy.cluster_settings import DEFAULTS, ClusterSettings, read_values
from zpptool.deploy.deployment import Deployment, Device, check_deployment
from zpptool.deploy.stageunit import key_file, stage_name
from zpptool.errors import usage_error

DEFAULT_NAME = "zpp"
DEFAULT_IMAGE = "zpptool:latest"


class Target(StrEnum):
    """What the pipeline is deployed on."""

    KUBERNETES = "kubernetes"
    LWS = "lws"
    HELM = "helm"
    COMPOSE = "compose"
    SYSTEMD = "systemd"


ON_KUBERNETES = frozenset({Target.KUBERNETES, Target.LWS, Target.HELM})


def deploy(
    target: Annotated[
        Target, typer.Argument(help="What to write: manifests, a LeaderWorkerSet, a chart, a compose file, or units.")
    ],
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
    values: Annotated[
        Path | None,
        typer.Option("--values", metavar="FILE", help="Kubernetes: settings of the cluster; see docs/deployment.md."),
    ] = None,
    node_selector: Annotated[
        list[str] | None,
        typer.Option("--node-selector", metavar="KEY=VALUE", help="Kubernetes: a label of the nodes; may be repeated."),
    ] = None,
    storage_class: Annotated[
        str, typer.Option("--storage-class", metavar="NAME", help="Kubernetes: the storage class of stages' volumes.")
    ] = "",
    insecure: InsecureOption = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if zpptool deploy wrote it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the files that run a plan: Kubernetes manifests, a LeaderWorkerSet, a Helm chart, a compose file, or units.

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
    given = (("--values", values), ("--node-selector", node_selector), ("--storage-class", storage_class))
    settings = cluster_settings(values, node_selector or [], storage_class)
    if target not in ON_KUBERNETES and any(value for _, value in given):
        option = next(option for option, value in given if value)
        raise usage_error(f"{option} is for Kubernetes, and {target} has no such settings", "Leave it out.")
    deployment = check_deployment(
        Deployment(
            plan=plan,
            name=name,
            image=image,
            source=pinned_name(named) if named.text.startswith("hf:") or hub_id(named.text) else named.text,
            device=device,
            insecure=insecure,
            program=program,
            settings=settings,
        )
    )
    files = _writer(target)(deployment)
    write_directory(files, output, force=force)
    steps = _next(target, deployment, output)
    payload = {"target": target, "directory": str(output), "files": sorted(files), "next": steps}
    Console(as_json=as_json).result(payload, lambda out: _show(out, plan, sorted(files), steps))


def cluster_settings(values: Path | None, node_selector: list[str], storage_class: str) -> ClusterSettings:
    """Return the settings of the file of values, with those of the command line in their place.

    Raises:
        ZppError: (USAGE) a node selector is not KEY=VALUE, or the file is not valid; (INVALID) it cannot be read.
    """
    settings = DEFAULTS if values is None else read_values(values)
    labels = dict(settings.node_selector)
    for text in node_selector:
        key, sign, value = text.partition("=")
        if not key or not sign:
            raise usage_error(f"--node-selector {text}: not KEY=VALUE", "Write it as kubectl get nodes -l takes it.")
        labels[key] = value
    chosen = storage_class or settings.storage_class_name
    return msgspec.structs.replace(settings, node_selector=labels, storage_class_name=chosen)


def _writer(target: Target) -> Callable[[Deployment], dict[str, str]]:
    from zpptool.deploy.compose import compose_files
    from zpptool.deploy.kubernetes.helm import helm_files
    from zpptool.deploy.kubernetes.leader_worker_set import lws_files
    from zpptool.deploy.kubernetes.manifests import kubernetes_files
    from zpptool.deploy.systemd import systemd_files

    return {
        Target.KUBERNETES: kubernetes_files,
        Target.LWS: lws_files,
        Target.HELM: helm_files,
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
    elif target is Target.HELM:
        secrets = [
            f"kubectl create secret generic {stage_name(deployment.name, number)}-keys"
            f" --from-file=stage.keys=keys/{key_file(number)}"
            for number in range(stages)
        ]
        install = shlex.join(["helm", "upgrade", "--install", deployment.name, str(output)])
        return [*([] if deployment.insecure else secrets), install]
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
