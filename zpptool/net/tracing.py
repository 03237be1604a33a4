# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry spans, where the environment names a collector (OTEL_EXPORTER_OTLP_ENDPOINT) and `zpptool[otel]` is
installed; otherwise nothing is recorded, at no cost.

All further settings are OpenTelemetry's own variables: OTEL_EXPORTER_OTLP_HEADERS, OTEL_TRACES_SAMPLER and so on. Spans
are sent in the background, OTLP over HTTP. A process that is killed loses those of its last second.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any, Protocol

from zpptool.places import place_name

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Each is the URL of a collector; without one there is no tracing."""
DISABLED = "OTEL_SDK_DISABLED"
SEND_EVERY_MS = 1000

_log = logging.getLogger(__name__)


class Span(Protocol):
    """Something that is being done, as part of a trace."""

    @property
    def parent(self) -> str:
        """What a span within this one names as its parent: a W3C `traceparent`; empty where nothing is recorded."""

    def event(self, name: str, **about: str | int | float) -> None:
        """Record something that happens during the span. Any thread may call it."""


class NoSpan:
    """A span of which nothing is recorded."""

    parent = ""

    def event(self, name: str, **about: str | int | float) -> None:
        """Record nothing."""


class _RecordedSpan:
    """A span of OpenTelemetry."""

    def __init__(self, span: Any, parent: str) -> None:
        self._span = span
        self.parent = parent

    def event(self, name: str, **about: str | int | float) -> None:
        """See `Span`."""
        self._span.add_event(name, dict(about))


class Tracer(Protocol):
    """Records spans of one process."""

    def span(self, name: str, parent: str = "", **about: str | int | float) -> AbstractContextManager[Span]:
        """A context manager that is a `Span` for the duration of its block.

        Args:
            name: what is done.
            parent: the `traceparent` of the span that this is a part of; empty to begin a trace.
            about: attributes.
        """


class _NoTracer:
    @contextmanager
    def span(self, name: str, parent: str = "", **about: str | int | float) -> Iterator[Span]:
        """A span of which nothing is recorded; a parent given by a client is passed on."""
        yield NoSpan()


class _OtlpTracer:
    """Sends spans to the collector that the environment names.

    Args:
        place: this process's place in the pipeline, as text.
    """

    def __init__(self, place: str) -> None:
        sdk = importlib.import_module("opentelemetry.sdk.trace")
        export = importlib.import_module("opentelemetry.sdk.trace.export")
        otlp = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        resources = importlib.import_module("opentelemetry.sdk.resources")
        carrier = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
        attributes = {"service.name": os.environ.get("OTEL_SERVICE_NAME", "zpptool"), "zpptool.place": place}
        provider = sdk.TracerProvider(resource=resources.Resource.create(attributes))
        processor = export.BatchSpanProcessor(otlp.OTLPSpanExporter(), schedule_delay_millis=SEND_EVERY_MS)
        provider.add_span_processor(processor)
        self._tracer = provider.get_tracer("zpptool")
        self._propagator = carrier.TraceContextTextMapPropagator()
        self._set_in_context = importlib.import_module("opentelemetry.trace").set_span_in_context

    @contextmanager
    def span(self, name: str, parent: str = "", **about: str | int | float) -> Iterator[Span]:
        """See `Tracer`."""
        context = self._propagator.extract({"traceparent": parent}) if parent else None
        with self._tracer.start_as_current_span(name, context=context, attributes=dict(about)) as span:
            headers: dict[str, str] = {}
            self._propagator.inject(headers, context=self._set_in_context(span))
            yield _RecordedSpan(span, headers.get("traceparent", ""))


def is_wanted() -> bool:
    """Whether the environment names a collector."""
    return os.environ.get(DISABLED, "").lower() != "true" and any(os.environ.get(name) for name in ENDPOINTS)


@cache
def tracer_of(place: str) -> Tracer:
    """Return the tracer of this process; it records nothing where no collector is named.

    Args:
        place: this process's place in the pipeline, as text: `front`, `head`, `stage 1`.
    """
    if not is_wanted():
        return _NoTracer()
    try:
        return _OtlpTracer(place)
    except ImportError as cause:
        _log.warning("no traces are sent: %s is not installed (pip install 'zpptool[otel]')", cause.name)
        return _NoTracer()


def tracer_at(place: int) -> Tracer:
    """Return the tracer of a place of the ring: a stage's index, or `HEAD`."""
    return tracer_of(place_name(place))
