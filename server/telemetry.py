"""OpenTelemetry traces: one span a request, from its head to the last byte of the answer. Off unless asked for.

The standard variables ask for it: `OTEL_EXPORTER_OTLP_ENDPOINT` (or `…_TRACES_ENDPOINT`), or `OTEL_TRACES_EXPORTER`
(`otlp`, `console`, `none`); the SDK honours the others. A `traceparent` header makes the span part of the caller's
trace. Of what a request generates its span tells the model and the tokens, under the names of OpenTelemetry's
conventions for generative AI (`gen_ai.…`); spans never hold prompts, answers or keys. Needs the extra `otel`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rookery import __version__

from .errors import StartupError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer
    from opentelemetry.util.types import AttributeValue

    from .generation import Generation

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_NOT_TRACED = frozenset({"/health", "/ready", "/metrics"})
"""Polled every few seconds."""
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
_generations: ContextVar[list[tuple[str, Generation]] | None] = ContextVar("generations", default=None)
"""Of the request that is being traced, each with its model's name; None where there is no trace."""


def asked_for(environment: Mapping[str, str]) -> bool:
    """Whether the environment wants traces."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER", "")
    return exporter != "none" and bool(exporter or any(environment.get(name) for name in _ENDPOINTS))


@contextmanager
def traced(app: ASGIApp, environment: Mapping[str, str] = os.environ) -> Iterator[ASGIApp]:
    """The application with traces where they are asked for, else as it is; what is left is exported at the end.

    Raises:
        StartupError: they are asked for and cannot be made.
    """
    if not asked_for(environment):
        yield app
        return
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = _exporter(environment)
    except ImportError as error:
        raise StartupError(
            f"traces are asked for, but {error.name} is not installed",
            'pip install "rookery[otel]", or unset the OTEL_… variables',
        ) from error
    attributes = {"service.version": __version__}
    if not environment.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = "rookery"
    provider = TracerProvider(resource=Resource.create(attributes))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield Tracing(app, provider.get_tracer("rookery", __version__))
    finally:
        provider.shutdown()


def trace(generation: Generation, model: str) -> None:
    """The span of this request, if it has one, shall tell what `generation` comes to."""
    if (generations := _generations.get()) is not None:
        generations.append((model, generation))


def _exporter(environment: Mapping[str, str]) -> SpanExporter:
    """Where spans go."""
    kind = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
    if kind == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if kind != "otlp":
        raise StartupError(f"OTEL_TRACES_EXPORTER is {kind!r}", "use otlp, console or none", exit_code=2)
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), "http/protobuf")
    if protocol != "http/protobuf":
        raise StartupError(f"traces cannot be sent by {protocol}", "set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


class Tracing:
    """A span for each request, around everything else that is done for it."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _NOT_TRACED:
            await self._app(scope, receive, send)
            return
        from opentelemetry import propagate
        from opentelemetry.trace import SpanKind, Status, StatusCode

        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with self._tracer.start_as_current_span(
            scope["method"],
            context=propagate.extract(carrier),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": scope["method"], "url.path": scope["path"][:200]},
        ) as span:
            begun = False
            generations: list[tuple[str, Generation]] = []
            token = _generations.set(generations)

            async def send_and_note(message: Message) -> None:
                nonlocal begun
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(Status(StatusCode.ERROR))
                elif not begun and message.get("body"):
                    begun = True
                    span.add_event("first byte of the body")  # of a stream: its first token
                await send(message)

            try:
                await self._app(scope, receive, send_and_note)
            finally:
                _generations.reset(token)
                if path := getattr(scope.get("route"), "path", None):
                    span.update_name(f"{scope['method']} {path}")
                    span.set_attribute("http.route", path)
                span.set_attributes(_generated(path, generations))
                span.set_attribute("rookery.request_id", scope.get("state", {}).get("request_id", ""))


def _generated(route: str | None, generations: Sequence[tuple[str, Generation]]) -> dict[str, AttributeValue]:
    """What a request has generated: attributes of its span. A request for many embeddings makes several parts."""
    if not generations:
        return {}
    model, first = generations[0]
    usages = [generation.usage for _, generation in generations]
    return {
        "gen_ai.operation.name": _OPERATIONS.get(route or "", "chat"),
        "gen_ai.provider.name": "rookery",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.response.id": first.id,
        "gen_ai.response.finish_reasons": [reason for reason in first.finish_reasons if reason],
        "gen_ai.usage.input_tokens": sum(usage.prompt_tokens for usage in usages),
        "gen_ai.usage.output_tokens": sum(usage.completion_tokens for usage in usages),
        "gen_ai.usage.cache_read.input_tokens": sum(usage.cached_tokens for usage in usages),
    }
