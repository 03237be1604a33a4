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
_TYPE = re.compile(r"^# TYPE (?P<name>\S+) ", re.MULTILINE)
_REPLICA = re.compile(r"(^|,)replica=")
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
    """The pipelines as Prometheus text; what their rings tell is not in it."""
    ready = GaugeMetricFamily("zpp:pipeline_ready", "Whether a pipeline is whole.", labels=["replica"])
    restarts = CounterMetricFamily("zpp:pipeline_restarts", "Times it was started again.", labels=["replica"])
    flight = GaugeMetricFamily("zpp:front_in_flight", "Requests that a pipeline is answering.", labels=["replica"])
    for each in status["replicas"]:
        ready.add_metric([each["replica"]], float(each["ready"]))
        restarts.add_metric([each["replica"]], float(each["restarts"]))
        flight.add_metric([each["replica"]], float(each["requests"]))
    waiting = GaugeMetricFamily("zpp:front_waiting", "Requests that wait for a pipeline.", value=pool.waiting)
    up = GaugeMetricFamily("zpp:stage_up", "Whether a stage's process runs.", labels=["replica", "stage"])
    for stage in status["stages"]:
        up.add_metric([stage["replica"], str(stage["stage"])], float(stage["pid"] is not None))
    registry = CollectorRegistry()
    registry.register(_Now([ready, restarts, flight, waiting, up]))
    return generate_latest(registry)


def generated_tokens(text: str) -> float:
    """How many tokens an engine says that it has generated; 0 where it does not say."""
    return sum(float(found["value"]) for found in _TOKENS.finditer(text))


def merged(texts: Mapping[str, str], own: str) -> str:
    """The metrics of the front and of the servers behind it as one text.

    Args:
        texts: what each server said, by the name of its pipeline; empty for nothing. A single one is passed on as it
            is, unless it tells of families of the front's own, as another front does.
        own: the front's.
    """
    if len(texts) == 1 and not (families_of(own) & families_of(*texts.values())):
        return "".join(texts.values()) + own
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for replica, text in ((None, own), *texts.items()):
        family = ""
        for line in text.splitlines():
            words = line.split(" ", 3)
            if line.startswith(("# HELP ", "# TYPE ")):
                family = words[2]
                known = heads.setdefault(family, [])
                if not any(old.startswith(f"# {words[1]} ") for old in known):
                    known.append(line)
            elif (sample := _SAMPLE.fullmatch(line)) is not None:
                told = line if replica is None else _labelled(sample, replica)
                samples.setdefault(family or sample["name"], []).append(told)
    lines = [line for family in {**heads, **samples} for line in (*heads.get(family, ()), *samples.get(family, ()))]
    return "".join(f"{line}\n" for line in lines)


def families_of(*texts: str) -> set[str]:
    """The names of the metrics in Prometheus texts."""
    return {found["name"] for text in texts for found in _TYPE.finditer(text)}


def _labelled(sample: re.Match[str], replica: str) -> str:
    """A sample with its pipeline's name; one that it has already is kept the way Prometheus keeps it."""
    escaped = replica.replace("\\", "\\\\").replace('"', '\\"')
    given = _REPLICA.sub(r"\1exported_replica=", sample["labels"] or "")
    labels = ",".join(part for part in (f'replica="{escaped}"', given) if part)
    return f"{sample['name']}{{{labels}}}{sample['rest']}"
