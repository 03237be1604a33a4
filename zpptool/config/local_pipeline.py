# SPDX-License-Identifier: Apache-2.0
"""A whole pipeline on this machine: its stage directories, its partition and the addresses of its links."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zpptool.checkpoint.manifest import Manifest, load_manifest
from zpptool.checkpoint.stage_tensors import count_layers
from zpptool.config.endpoints import StageEndpoints, open_ports, plan_endpoints
from zpptool.config.port_probe import probe_ports
from zpptool.errors import address_error, invalid_error, usage_error
from zpptool.partition import Partition, resolve_partition


def split_stages(pipeline_dir: Path) -> tuple[list[Path], list[Manifest]]:
    """The stage directories of a split and their manifests, in order.

    Raises:
        ZppError: (INVALID) there are none, or they are not all stages of one split.
    """
    found = {path.parent.name for path in pipeline_dir.glob("stage_*/zpp-stage.json")}
    if not found:
        raise invalid_error(
            f"{pipeline_dir} holds no stages", "Name the directory that zpptool split wrote, with stage_0 in it."
        )
    first = load_manifest(pipeline_dir / min(found))
    directories = [pipeline_dir / f"stage_{stage}" for stage in range(first.num_stages)]
    wanted = {path.name for path in directories}
    if found != wanted:
        faults = [f"lacks {name}" for name in sorted(wanted - found)]
        faults += [f"also holds {name}" for name in sorted(found - wanted)]
        raise invalid_error(f"{pipeline_dir} {' and '.join(faults)}: it was split into {first.num_stages} stages")
    manifests = [load_manifest(path) for path in directories]
    for stage, (directory, manifest) in enumerate(zip(directories, manifests, strict=True)):
        if manifest.stage != stage:
            raise invalid_error(f"{directory} holds stage {manifest.stage}", "Rename it as zpptool split named it.")
        if (manifest.model_digest, manifest.ranges) != (first.model_digest, first.ranges):
            raise invalid_error(f"{directory} belongs to another split than {directories[0]}", "Split the model again.")
    return directories, manifests


def dynamic_partition(model: Path, num_stages: int | None, ranges: Sequence[str]) -> Partition:
    """The partition of a full checkpoint, even unless ranges are given.

    Raises:
        ZppError: (USAGE) neither ranges nor a number of stages is given; (INVALID) they do not fit the model.
    """
    if not model.is_dir():
        raise invalid_error(f"{model} is not a directory", "Give a checkpoint, or --pipeline-dir with split stages.")
    if num_stages is None and not ranges:
        raise usage_error("into how many stages?", "Give --num-stages N or --ranges START-END ...")
    return resolve_partition(count_layers(model), num_stages, list(ranges) or None)


def trial_endpoints(num_stages: int, base_port: int | None, api_port: int, scratch: Path) -> tuple[StageEndpoints, ...]:
    """The links of a pipeline on this machine: over tcp on loopback if a base port is given, else over ipc.

    Args:
        num_stages: how many stages.
        base_port: the first forward port; None for ipc.
        api_port: of the head's API.
        scratch: a private directory for the socket files of ipc.

    Raises:
        ZppError: (ADDRESS) a port is not valid, is also the API's, or is in use.
    """
    if base_port is None:
        endpoints = plan_endpoints(num_stages, transport="ipc", ipc_dir=scratch)
    else:
        endpoints = plan_endpoints(num_stages, base_port)
    open_ports(endpoints, api_port)
    faults = probe_ports(endpoints, api_port)
    if faults:
        raise address_error("; ".join(fault.message for fault in faults), "Give other ports, or none.")
    return endpoints
