# SPDX-License-Identifier: Apache-2.0
"""The names of metrics in the examples of monitoring, and in the text of `/metrics`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

MONITORING = Path(__file__).resolve().parents[1] / "examples/monitoring"
DASHBOARD, ALERTS, KEDA = (MONITORING / name for name in ("dashboard.json", "alerts.yaml", "keda.yaml"))
_NAME = re.compile(r"\b(?:zpp|vllm):[a-z_]+")


def names_in(text: str) -> set[str]:
    """The names of metrics in an expression, or in a text of metrics."""
    return set(_NAME.findall(text))


def expressions() -> Iterator[str]:
    """Every expression of the dashboard, the alerts and the scaler."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    for group in yaml.safe_load(ALERTS.read_text())["spec"]["groups"]:
        yield from (rule["expr"] for rule in group["rules"])
    for trigger in yaml.safe_load(KEDA.read_text())["spec"]["triggers"]:
        yield trigger["metadata"]["query"]
