"""Traces: off by default, one span a request when the standard variables ask for them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from rookery.server.errors import StartupError
from rookery.server.telemetry import asked_for, traced

from .server_process import MODEL, server_process

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Collector(ThreadingHTTPServer):
    """Takes spans as a collector does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Route)
        self.received: list[ExportTraceServiceRequest] = []

    @property
    def spans(self) -> dict[str, Span]:
        resources = [resource for message in self.received for resource in message.resource_spans]
        return {span.name: span for resource in resources for scope in resource.scope_spans for span in scope.spans}


class _Route(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def attributes(span: Span) -> dict[str, Any]:
    return {
        item.key: [one.string_value for one in item.value.array_value.values]
        or item.value.string_value
        or item.value.int_value
        for item in span.attributes
    }


def test_a_request_is_a_span_of_its_callers_trace(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my-server")
    with server_process(tmp_path) as server:
        body = {"model": MODEL, "prompt": "a secret prompt", "max_tokens": 3, "stream": True}
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine-1"}
        httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=60).raise_for_status()
        httpx.get(f"{server.url}/v1/models/none", timeout=60)
        texts = {"model": MODEL, "input": ["ab"] * 40}  # computed in two parts, one span all the same
        httpx.post(f"{server.url}/v1/embeddings", json=texts, timeout=60).raise_for_status()
        assert server.stop() == 0
    spans = collector.spans
    assert set(spans) == {"POST /v1/completions", "GET /v1/models/{model:path}", "POST /v1/embeddings"}
    span = spans["POST /v1/completions"]
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert attributes(span)["http.response.status_code"] == 200
    assert attributes(span)["rookery.request_id"] == "mine-1"
    told = {name: value for name, value in attributes(span).items() if name.startswith("gen_ai.")}
    assert told.pop("gen_ai.response.id").startswith("cmpl-")
    assert told == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "rookery",
        "gen_ai.request.model": MODEL,
        "gen_ai.response.model": MODEL,
        "gen_ai.response.finish_reasons": ["length"],
        "gen_ai.usage.input_tokens": len("a secret prompt"),
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 0,
    }
    (first,) = span.events
    assert span.start_time_unix_nano < first.time_unix_nano <= span.end_time_unix_nano
    asked = attributes(spans["GET /v1/models/{model:path}"])
    assert asked["http.response.status_code"] == 404 and not [name for name in asked if name.startswith("gen_ai.")]
    embedded = attributes(spans["POST /v1/embeddings"])
    assert embedded["gen_ai.operation.name"] == "embeddings"
    assert embedded["gen_ai.usage.input_tokens"] == 80 and embedded["gen_ai.usage.output_tokens"] == 0
    text = str(collector.received)
    assert "my-server" in text and "secret" not in text


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_TRACES_EXPORTER": "console"}, True),
    ],
)
def test_the_standard_variables_decide(environment: dict[str, str], wanted: bool) -> None:
    assert asked_for(environment) is wanted


@pytest.mark.parametrize(
    "environment",
    [{"OTEL_TRACES_EXPORTER": "pigeon"}, {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}],
)
def test_what_cannot_be_done_is_said(environment: dict[str, str]) -> None:
    with pytest.raises(StartupError), traced(lambda *_: None, environment):  # type: ignore[arg-type]
        raise AssertionError


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(StartupError) as caught, traced(None, {"OTEL_TRACES_EXPORTER": "otlp"}):  # type: ignore[arg-type]
        raise AssertionError
    assert "rookery[otel]" in caught.value.mend


def test_nothing_is_loaded_when_nobody_asks() -> None:
    code = "import sys, rookery.server.run; sys.exit('opentelemetry.sdk' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
