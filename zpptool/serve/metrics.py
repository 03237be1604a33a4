# SPDX-License-Identifier: Apache-2.0
"""What Prometheus is told: the front's own numbers, the stages', and whatever the engines' own servers say.

One pipeline's lines are passed on as they are. Those of several get a label, `replica`, each family standing together
once, as the text format wants it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from zpptool.serve.pool import Pool

SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_SAMPLE = re.compile(r"(?P<name>[A-Za-z_:][A-Za-z0-9_:]*)(?:\{(?P<labels>.*)\})?(?P<rest> .*)")
_TOKENS = re.compile(r"^(?:vllm|zpp):generation_tokens_total(?:\{.*\})? (?P<value>\S+)", re.MULTILINE)


class FrontMetrics:
    """The front's own numbers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._answers = Counter(
            "zpp:front_requests", "Requests that were answered, by status.", ["code"], registry=self.registry
        )
        self._retries = Counter(
            "zpp:front_retries", "Times that a request was asked again, unseen by its client.", registry=self.registry
        )
        self._seconds = Histogram(
            "zpp:front_request_seconds", "From a request's first byte to its answer's last.",
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._begun = Counter(
            "zpp:front_answers_begun", "Answers of which a first byte was sent.", registry=self.registry
        )
        self.counts = {"answered": 0, "failed": 0, "retried": 0}

    def answered(self, status: int, seconds: float) -> None:
        """A request is over."""
        self._answers.labels(str(status)).inc()
        self._seconds.observe(seconds)
        self.counts["answered"] += 1
        self.counts["failed"] += status >= 500

    def retried(self) -> None:
        """A request is asked again."""
        self._retries.inc()
        self.counts["retried"] += 1

    def first_byte(self) -> None:
        """An answer has begun."""
        self._begun.inc()


class _Now:
    """A collector of metrics that were just made."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Sequence[Metric]:
        return self._metrics


def status_metrics(status: Mapping[str, Any], pool: Pool) -> bytes:
    """The pipeline status as Prometheus text."""
    ready = GaugeMetricFamily("zpp:pipeline_ready", "Whether a pipeline is whole.", labels=["replica"])
    restarts = CounterMetricFamily("zpp:pipeline_restarts", "Times it was started again.", labels=["replica"])
    flight = GaugeMetricFamily("zpp:front_in_flight", "Requests that a pipeline is answering.", labels=["replica"])
    for each in status["replicas"]:
        ready.add_metric([each["replica"]], float(each["ready"]))
        restarts.add_metric([each["replica"]], float(each["restarts"]))
        flight.add_metric([each["replica"]], float(each["requests"]))
    waiting = GaugeMetricFamily("zpp:front_waiting", "Requests that wait for a pipeline.", value=pool.waiting)
    own = ["replica", "stage"]
    memory = GaugeMetricFamily("zpp:stage_memory_bytes", "Resident memory of a stage's processes.", labels=own)
    up = GaugeMetricFamily("zpp:stage_up", "Whether a stage's process runs.", labels=own)
    for stage in status["stages"]:
        labels = [stage["replica"], str(stage["stage"])]
        up.add_metric(labels, float(stage["pid"] is not None))
        if stage["memory"] is not None:
            memory.add_metric(labels, float(stage["memory"]))
    registry = CollectorRegistry()
    registry.register(_Now([ready, restarts, flight, waiting, memory, up, *_link_metrics(status)]))
    return generate_latest(registry)


def _link_metrics(status: Mapping[str, Any]) -> list[Metric]:
    labels = ["replica", "stage", "peer"]
    sent = CounterMetricFamily("zpp:link_sent_bytes", "Bytes that a stage has sent on its link.", labels=labels)
    received = CounterMetricFamily("zpp:link_received_bytes", "Bytes that came on the link.", labels=labels)
    rtt = GaugeMetricFamily("zpp:link_rtt_seconds", "Round trip time of a link.", labels=labels)
    for stage in status["stages"]:
        link = stage.get("link")
        if not link:
            continue
        own = [stage["replica"], str(stage["stage"]), link["peer"]]
        sent.add_metric(own, float(link["bytes_sent"]))
        received.add_metric(own, float(link["bytes_received"]))
        if link["rtt_ms"] is not None:
            rtt.add_metric(own, link["rtt_ms"] / 1000)
    return [sent, received, rtt]


def generated_tokens(text: str) -> float:
    """How many tokens an engine says that it has generated; 0 where it does not say."""
    return sum(float(found["value"]) for found in _TOKENS.finditer(text))


def merged(texts: Mapping[str, str]) -> str:
    """The metrics of several servers as one text.

    Args:
        texts: what each said, by the name of its pipeline; empty for nothing. A single one is passed on as it is.
    """
    if len(texts) == 1:
        return next(iter(texts.values()))
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for replica, text in texts.items():
        family = ""
        for line in text.splitlines():
            words = line.split(" ", 3)
            if line.startswith(("# HELP ", "# TYPE ")):
                family = words[2]
                known = heads.setdefault(family, [])
                if not any(old.startswith(f"# {words[1]} ") for old in known):
                    known.append(line)
            elif (sample := _SAMPLE.fullmatch(line)) is not None:
                samples.setdefault(family or sample["name"], []).append(_labelled(sample, replica))
    lines = [line for family in {**heads, **samples} for line in (*heads.get(family, ()), *samples.get(family, ()))]
    return "".join(f"{line}\n" for line in lines)


def _labelled(sample: re.Match[str], replica: str) -> str:
    escaped = replica.replace("\\", "\\\\").replace('"', '\\"')
    labels = ",".join(part for part in (f'replica="{escaped}"', sample["labels"] or "") if part)
    return f"{sample['name']}{{{labels}}}{sample['rest']}"
