"""Sets up OpenTelemetry's SDK if the standard OTEL_* variables ask for it; the SDK is an extra and imported late."""

from __future__ import annotations

import logging
import os
from functools import cache

from opentelemetry import metrics, trace
from opentelemetry.util.types import AttributeValue

_ENDPOINTS = {
    signal: ("OTEL_EXPORTER_OTLP_ENDPOINT", f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT") for signal in ("TRACES", "METRICS")
}
# A collector that does not answer delays the end of a run by at most this time.
_FLUSH_MILLISECONDS = 5000

# One request to a collector, whatever drips.
_SEND_SECONDS = 10.0

logger = logging.getLogger(__name__)


def wanted(signal: str) -> bool:
    """Whether ``TRACES`` or ``METRICS`` should be sent: an endpoint is set, and no variable switches them off."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if os.environ.get(f"OTEL_{signal}_EXPORTER", "otlp") != "otlp":
        return False
    return any(os.environ.get(name) for name in _ENDPOINTS[signal])


@cache
def start() -> None:
    """Send spans and metrics of this process by OTLP over HTTP, if the variables ask for it; the first call decides.

    If a provider exists already, for example under ``opentelemetry-instrument``, it does the work. Intervals, headers
    and the service's name come from the SDK's own variables.
    """
    if not (wanted("TRACES") or wanted("METRICS")):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from rowvec.runtime.request_deadline import Deadlines, bounded_session
    except ImportError:
        logger.warning("OTEL_EXPORTER_OTLP_ENDPOINT is set and nothing is sent: pip install 'rowvec[otel]'")
        return
    # A collector answers with a few bytes.
    deadlines = Deadlines(grace_seconds=_SEND_SECONDS, slowest=64 << 10, answer_bytes=0)
    named: dict[str, AttributeValue] = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "rowvec"}
    if wanted("TRACES") and isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        tracers = TracerProvider(resource=Resource.create(named))
        tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(session=bounded_session(deadlines))))
        trace.set_tracer_provider(tracers)
    if wanted("METRICS") and not isinstance(metrics.get_meter_provider(), MeterProvider):
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(session=bounded_session(deadlines)))
        metrics.set_meter_provider(MeterProvider([reader], resource=Resource.create(named)))


def flush() -> None:
    """Send everything that is recorded, because a run's process may end without time for it."""
    for provider in (trace.get_tracer_provider(), metrics.get_meter_provider()):
        # The API's own providers have nothing to flush and no such method.
        if callable(force := getattr(provider, "force_flush", None)):
            force(_FLUSH_MILLISECONDS)
