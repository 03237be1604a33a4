# SPDX-License-Identifier: Apache-2.0
"""The dashboard, the alert rules and the KEDA example: valid, and every metric in them is one that a front shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from manifests import check
from metricnames import ALERTS, DASHBOARD, KEDA, expressions, names_in

pytest.importorskip("starlette")
pytest.importorskip("httpx")

from prometheus_client import generate_latest

from tests.rings import ring, stage
from zpptool.admin.prometheus import metrics_text
from zpptool.serve.metrics import GatewayMetrics, status_metrics
from zpptool.serve.pool import Pool


def test_the_names_are_those_that_a_front_shows() -> None:
    """Here by the code that writes them; `test_serve_traces.py` asks a running front."""
    metrics = GatewayMetrics()
    metrics.record_answer(200, 0.1)
    status = {
        "replicas": [{"replica": "p", "ready": True, "restarts": 0, "requests": 0}],
        "stages": [{"replica": "p", "stage": 0, "pid": 1}],
    }
    shown = generate_latest(metrics.registry) + status_metrics(status, Pool([], 1.0))
    names = names_in(shown.decode() + metrics_text({"p": ring(stage(1))}))
    for text in expressions():
        unknown = names_in(text) - names - {"zpp:generation_tokens_total", "vllm:generation_tokens_total"}
        assert not unknown, text


def test_the_custom_resources_are_valid() -> None:
    for path in (ALERTS, KEDA):
        check(yaml.safe_load(path.read_text()))


def test_every_alert_says_what_to_do() -> None:
    (group,) = yaml.safe_load(ALERTS.read_text())["spec"]["groups"]
    assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"]) == 7
    for rule in group["rules"]:
        assert set(rule["annotations"]) == {"summary", "action"}
        assert rule["labels"]["severity"] in ("critical", "warning")


def test_the_panels_of_the_dashboard_have_places_and_queries() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels) == len({panel["id"] for panel in panels})
    assert all(target["expr"] for panel in panels for target in panel["targets"])


def test_a_name_that_is_none_is_found() -> None:
    assert names_in("rate(zpp:front_request_total[5m])") == {"zpp:front_request_total"}
    assert Path(ALERTS).parent.name == "monitoring"
