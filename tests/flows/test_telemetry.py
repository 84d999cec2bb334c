"""What a run sends through OpenTelemetry, by the standard variables, to a real receiver of OTLP over HTTP."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from rowvec.pipeline import Pipeline
from rowvec.postgres.connection import Connection
from rowvec.runtime.telemetry_export import wanted
from tests.support import cli_process
from tests.support.cli_process import PrefectServer, write_pipeline

pytestmark = pytest.mark.flow

PLANTED = "sk-planted-0123456789"


class Receiver(ThreadingHTTPServer):
    """A collector that keeps what it receives."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[tuple[str, bytes]] = []

    def of(self, path: str) -> list[bytes]:
        """The bodies that were posted to a path."""
        return [body for posted, body in self.bodies if posted == path]

    @property
    def spans(self) -> list[Span]:
        """All spans of rowvec."""
        requests = [ExportTraceServiceRequest.FromString(body) for body in self.of("/v1/traces")]
        scopes = [scope for r in requests for resource in r.resource_spans for scope in resource.scope_spans]
        return [span for scope in scopes if scope.scope.name == "rowvec" for span in scope.spans]

    @property
    def metrics(self) -> dict[str, Metric]:
        """The latest value of each metric."""
        requests = [ExportMetricsServiceRequest.FromString(body) for body in self.of("/v1/metrics")]
        scopes = [scope for r in requests for resource in r.resource_metrics for scope in resource.scope_metrics]
        return {metric.name: metric for scope in scopes for metric in scope.metrics}


class Handler(BaseHTTPRequestHandler):
    """Takes every POST."""

    server: Receiver  # pyright: ignore[reportIncompatibleVariableOverride] # no other server has this handler

    def do_POST(self) -> None:
        """Keep the body, unpacked."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append((self.path, gzip.decompress(body) if self.headers["Content-Encoding"] else body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def receiver() -> Generator[Receiver]:
    """A running collector."""
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def values_of(attributes: object) -> dict[str, str | int]:
    """Attributes by name."""
    pairs: list[KeyValue] = list(attributes)  # pyright: ignore[reportArgumentType] # a repeated field
    return {pair.key: pair.value.string_value or pair.value.int_value for pair in pairs}


def test_a_run_sends_its_stages_and_figures_and_no_content(
    prefect_server: PrefectServer, source: Connection, paintings: Pipeline, receiver: Receiver, tmp_path: Path
) -> None:
    source.execute("UPDATE paintings SET description = 'Unspeakable' WHERE id = 3")
    file = write_pipeline(paintings, tmp_path)
    endpoint = f"http://127.0.0.1:{receiver.server_address[1]}"
    # The key is in the run's environment, as a real key would be.
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OPENAI_API_KEY": PLANTED}
    ended = cli_process.start(prefect_server.api, "sync", file, "--json", **environment).wait()
    assert ended.status == 0, ended
    by_name = {span.name: span for span in receiver.spans}
    stages = ("extract", "embed", "binarize", "upload", "load", "merge", "index", "validate")
    assert set(by_name) == {"rowvec run", *(f"rowvec {stage}" for stage in stages)}
    run = by_name["rowvec run"]
    assert values_of(run.attributes) == {"rowvec.pipeline": "paintings", "rowvec.run_id": 1, "rowvec.cause": "command"}
    assert {span.trace_id for span in by_name.values()} == {run.trace_id}
    assert values_of(by_name["rowvec load"].attributes)["rowvec.stage"] == "load"
    rows = {values_of(p.attributes)["rowvec.kind"]: p.as_int for p in receiver.metrics["rowvec.rows"].sum.data_points}
    assert (rows["new"], rows["embedded"], rows["deleted"]) == (50, 50, 0)
    seconds = {
        values_of(p.attributes)["rowvec.stage"] for p in receiver.metrics["rowvec.duration"].histogram.data_points
    }
    assert {*stages, "total"} <= seconds
    assert receiver.metrics["rowvec.table.rows"].gauge.data_points[0].as_int == 50
    assert {"rowvec.tokens", "rowvec.cost", "rowvec.runs", "rowvec.rejects"} <= set(receiver.metrics)
    everything = b"".join(body for _, body in receiver.bodies)
    for secret in (PLANTED, "Unspeakable", "It shows the number", "host="):
        assert secret.encode() not in everything


def test_an_error_is_sent_by_its_class(
    prefect_server: PrefectServer, source: Connection, paintings: Pipeline, receiver: Receiver, tmp_path: Path
) -> None:
    source.execute("ALTER TABLE paintings DROP COLUMN year")
    file = write_pipeline(paintings, tmp_path)
    endpoint = f"http://127.0.0.1:{receiver.server_address[1]}"
    ended = cli_process.start(prefect_server.api, "sync", file, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint).wait()
    assert ended.status == 1, ended
    by_name = {span.name: span for span in receiver.spans}
    assert set(by_name) == {"rowvec run", "rowvec extract"}
    assert {(span.status.message, len(span.events)) for span in by_name.values()} == {("SourceError", 0)}


def test_a_collector_that_does_not_answer_stops_nothing(
    prefect_server: PrefectServer, source: Connection, paintings: Pipeline, tmp_path: Path
) -> None:
    file = write_pipeline(paintings, tmp_path)
    ended = cli_process.start(
        prefect_server.api, "sync", file, "--json", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9"
    ).wait()
    assert ended.status == 0, ended
    assert ended.json["consistent"]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (False, False)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, (True, True)),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, (True, False)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_METRICS_EXPORTER": "none"}, (True, False)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, (False, False)),
    ],
)
def test_the_standard_variables_decide(
    environment: dict[str, str], expected: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (wanted("TRACES"), wanted("METRICS")) == expected
