# SPDX-License-Identifier: Apache-2.0
"""`/metrics` as Prometheus text: the gateway's metrics, the stages', and those of the engines' own servers.

The engine metrics of a single pipeline are forwarded unchanged. Those of several get the label `replica`, and each
family is written once with all its samples, as the text format requires.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families

from zpptool.serve.pool import Pool

SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_TOKENS = "generation_tokens_total"

_log = logging.getLogger(__name__)


class GatewayMetrics:
    """The gateway's own counters.

    Attributes:
        registry: holds them for Prometheus.
        counts: requests answered, failed (status 500 or above) and retried since the start, for the status.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._answers = Counter(
            "zpp:front_requests", "Requests that were answered, by status.", ["code"], registry=self.registry
        )
        self._retries = Counter(
            "zpp:front_retries", "Requests that were repeated without their client noticing.", registry=self.registry
        )
        self._seconds = Histogram(
            "zpp:front_request_seconds", "Time from a request's first byte to its answer's last.",
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._begun = Counter(
            "zpp:front_answers_begun", "Answers of which the first byte was sent.", registry=self.registry
        )
        self.counts = {"answered": 0, "failed": 0, "retried": 0}

    def record_answer(self, status: int, seconds: float) -> None:
        """Count a request that ended with that status after so many seconds."""
        self._answers.labels(str(status)).inc()
        self._seconds.observe(seconds)
        self.counts["answered"] += 1
        self.counts["failed"] += status >= 500

    def record_retry(self) -> None:
        """Count a request that is repeated."""
        self._retries.inc()
        self.counts["retried"] += 1

    def record_first_byte(self) -> None:
        """Count an answer that has begun."""
        self._begun.inc()


class _FixedMetrics:
    """A collector that returns the metrics that it was made with."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Sequence[Metric]:
        return self._metrics


def status_metrics(status: Mapping[str, Any], pool: Pool) -> bytes:
    """The pipelines' state as Prometheus text, without the metrics of their rings.

    Args:
        status: the object of `/pipeline/status`.
        pool: the pipelines.
    """
    ready = GaugeMetricFamily("zpp:pipeline_ready", "Whether a pipeline is ready.", labels=["replica"])
    restarts = CounterMetricFamily("zpp:pipeline_restarts", "Times it was started again.", labels=["replica"])
    in_flight = GaugeMetricFamily("zpp:front_in_flight", "Requests that a pipeline is answering.", labels=["replica"])
    for each in status["replicas"]:
        ready.add_metric([each["replica"]], float(each["ready"]))
        restarts.add_metric([each["replica"]], float(each["restarts"]))
        in_flight.add_metric([each["replica"]], float(each["requests"]))
    waiting = GaugeMetricFamily("zpp:front_waiting", "Requests that wait for a pipeline.", value=pool.waiting)
    up = GaugeMetricFamily("zpp:stage_up", "Whether a stage's process runs.", labels=["replica", "stage"])
    for stage in status["stages"]:
        up.add_metric([stage["replica"], str(stage["stage"])], float(stage["pid"] is not None))
    registry = CollectorRegistry()
    lines = GaugeMetricFamily("zpp:batch_lines", "Lines of the batches that are not over.", labels=["state"])
    for state in ("total", "done", "failed"):
        lines.add_metric([state], float(sum(batch[state] for batch in status.get("batches", ()))))
    registry.register(_FixedMetrics([ready, restarts, in_flight, waiting, up, lines]))
    return generate_latest(registry)


def generated_tokens(text: str) -> float:
    """The number of generated tokens in an engine's metrics; 0 where they have no such counter."""
    counts = "".join(f"{line}\n" for line in text.splitlines() if _TOKENS in line and not line.startswith("#"))
    samples = (sample for family in _families("an engine", counts) for sample in family.samples)
    return sum(sample.value for sample in samples if sample.name in (f"vllm:{_TOKENS}", f"zpp:{_TOKENS}"))


def merged(texts: Mapping[str, str], own: str) -> str:
    """The metrics of the gateway and of the servers behind it as one text.

    A text that is not in Prometheus' format is left out, and a warning says so.

    Args:
        texts: the metrics of each server by pipeline name; empty where it has none. A single text is forwarded
            unchanged, unless it shares families with the gateway's own metrics, as that of another gateway does.
        own: the gateway's metrics.
    """
    parsed = {name: _families(name, text) for name, text in texts.items()}
    own_families = _families("the gateway", own)
    of_servers = {family.name for families in parsed.values() for family in families}
    if len(texts) == 1 and not of_servers & {family.name for family in own_families}:
        return "".join(texts.values()) + own
    found = {family.name: family for family in own_families}
    for replica, families in parsed.items():
        for family in families:
            into = found.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            into.samples += [sample._replace(labels=_labelled(sample.labels, replica)) for sample in family.samples]
    registry = CollectorRegistry()
    registry.register(_FixedMetrics(list(found.values())))
    return generate_latest(registry).decode()


def _families(server: str, text: str) -> list[Metric]:
    """The families of a server's metrics; none where they are not in Prometheus' format."""
    try:
        return list(text_string_to_metric_families(text))
    except ValueError as cause:
        _log.warning("the metrics of %s are not in Prometheus' format: %s", server, cause)
        return []


def _labelled(labels: Mapping[str, str], replica: str) -> dict[str, str]:
    """A sample's labels with its pipeline's name; an existing `replica` becomes `exported_replica`, as in Prometheus
    itself."""
    kept = {("exported_replica" if name == "replica" else name): value for name, value in labels.items()}
    return {"replica": replica, **kept}
