# SPDX-License-Identifier: Apache-2.0
"""Turn a CustomResourceDefinition into the strict JSON schema that the tests hold manifests against.

    python scripts/trim_crd.py CRD.yaml "kubernetes-sigs/lws v0.9.0, Apache-2.0" >tests/schemas/leaderworkerset.json

Descriptions are left out, an object with named properties takes no others, and a pod template within it is any object:
tests hold it against Kubernetes' own schema.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

KEPT = (
    "type", "enum", "required", "minimum", "maximum", "minItems", "maxItems", "minLength", "maxLength", "pattern",
    "anyOf",
)  # fmt: skip


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema of Kubernetes as a JSON schema that refuses unknown properties."""
    if "containers" in schema.get("properties", {}):
        return {"type": "object"}
    found: dict[str, Any] = {key: schema[key] for key in KEPT if key in schema}
    if found.get("pattern", "").startswith("^(?i)"):  # Go has flags anywhere, Python only at the beginning
        found["pattern"] = "(?i)^" + found["pattern"].removeprefix("^(?i)")
    if schema.get("x-kubernetes-int-or-string"):
        found["type"] = ["integer", "string"]
        found.pop("anyOf", None)
    if "properties" in schema:
        found["properties"] = {name: strict(below) for name, below in schema["properties"].items()}
        found["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        found["additionalProperties"] = strict(schema["additionalProperties"])
    if "items" in schema:
        found["items"] = strict(schema["items"])
    return found


def main(path: Path, source: str) -> None:
    """Print the schema of the storage version."""
    definition = yaml.safe_load(path.read_text(encoding="utf-8"))["spec"]
    version = next(each for each in definition["versions"] if each["storage"])
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    schema["properties"].pop("status", None)
    schema["properties"]["apiVersion"] = {"const": f"{definition['group']}/{version['name']}"}
    schema["properties"]["kind"] = {"const": definition["names"]["kind"]}
    schema["required"] = sorted({*schema.get("required", ()), "apiVersion", "kind", "metadata", "spec"} - {"status"})
    head = {
        "$comment": f"From {source}, by scripts/trim_crd.py.",
        "$schema": "https://json-schema.org/draft/2020-12/schema",
    }
    print(json.dumps({**head, **schema}, separators=(",", ":")))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
