# SPDX-License-Identifier: Apache-2.0
"""Hold Kubernetes objects against published schemas: Kubernetes' own, and custom resources' in tests/schemas."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

SCHEMAS = Path(__file__).parent / "schemas"
OWN_KINDS = frozenset({"Kustomization"})


def objects(*texts: str) -> list[dict[str, Any]]:
    """The objects of YAML texts."""
    return [item for text in texts for item in yaml.safe_load_all(text) if item]


def of_kind(found: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The objects of one kind."""
    return [item for item in found if item["kind"] == kind]


def check(item: dict[str, Any]) -> None:
    """Hold an object against its schema, strictly: unknown keys fail."""
    schema = SCHEMAS / f"{item['kind'].lower()}.json"
    if schema.exists():
        jsonschema.validate(item, json.loads(schema.read_text()))
        for template in templates(item):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", **template["metadata"]}}
            check({**pod, "spec": template["spec"]})
    elif item["kind"] not in OWN_KINDS:
        kubernetes_validate.validate(item, kubernetes_validate.latest_version(), strict=True)


def templates(item: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod templates inside a custom resource."""
    group = item["spec"].get("leaderWorkerTemplate", {})
    return [group[name] for name in ("leaderTemplate", "workerTemplate") if name in group]
