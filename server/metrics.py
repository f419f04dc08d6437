"""What `/metrics` tells, and when each clock starts and stops.

One `Metrics` a server. The edge calls `answered` once a request; `Service` takes one `RequestMeter` for each request
it admits and tells it what happens. The engine's own gauges are read from `EngineStats` at every scrape.

Clocks: TTFT runs from the arrival of the request's head to its first token, ITL from one token of a choice to the
next, the request's duration from the arrival of its head to the last byte of the answer.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from .engine.request import EngineInfo, EngineStats

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second line for each counter that no dashboard reads

_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_ITL = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)


class Metrics:
    """Counters and histograms of one server, in a registry of their own.

    Args:
        stats: the engine's gauges as of now.
        info: what was loaded; None until then.
        model_name: label of the `vllm:` names.
    """

    def __init__(
        self, stats: Callable[[], EngineStats], info: Callable[[], EngineInfo | None], *, model_name: str
    ) -> None:
        self.registry = CollectorRegistry(auto_describe=False)

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"rookery_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"rookery_{name}", text, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(f"rookery_{name}", text, labels, registry=self.registry, buckets=buckets)

        self.requests = counter("requests", "Answers sent, by route and HTTP status.", ("endpoint", "status"))
        self.cancelled = counter("cancelled", "Requests ended before their last token.", ("reason",))
        self.finished = counter("finished", "Choices that ended, by finish reason.", ("reason",))
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of admitted requests.")
        self.cached_tokens = counter("cached_tokens", "Prompt tokens taken from a stored state.")
        self.generated_tokens = counter("generated_tokens", "Completion tokens drawn.")
        self.time_to_first_token = histogram(
            "time_to_first_token_seconds", "From the arrival of a request to its first token.", _LATENCY
        )
        self.inter_token_latency = _Gaps(
            "rookery_inter_token_latency_seconds", "From one token of a choice to its next.", _ITL
        )
        self.registry.register(self.inter_token_latency)
        self.duration = histogram(
            "request_duration_seconds",
            "From the arrival of a request to the end of its answer.",
            _LATENCY,
            ("endpoint",),
        )
        self.prompt_length = histogram("request_prompt_tokens", "Prompt tokens a request.", _TOKENS)
        self.completion_length = histogram("request_generated_tokens", "Completion tokens a request.", _TOKENS)
        self.generation_time = histogram(
            "generation_duration_seconds", "From the arrival of a request for tokens to its last token.", _LATENCY
        )
        self.responses = gauge("responses", "Turns of responses and conversations that are stored.")
        self.response_bytes = gauge("response_bytes", "Size of their items.")
        self.response_evictions = counter(
            "response_evictions", "Of those, forgotten for want of room or for their age."
        )
        self.registry.register(_EngineGauges(stats, info))
        self.registry.register(_VllmNames(self, stats, info, {"model_name": model_name, "engine": "0"}))

    def answered(self, endpoint: str, status: int, duration_s: float) -> None:
        """One request has been answered in full, or its client has left."""
        self.requests.labels(endpoint, str(status)).inc()
        self.duration.labels(endpoint).observe(duration_s)

    def meter(self, *, prompt_tokens: int, arrival: float | None = None) -> RequestMeter:
        """A request has been admitted.

        Args:
            arrival: `perf_counter` when its head arrived (`scope["state"]["arrival"]`); default now.
        """
        return RequestMeter(self, prompt_tokens, perf_counter() if arrival is None else arrival)

    def render(self) -> bytes:
        """The whole registry in Prometheus' text form."""
        return generate_latest(self.registry)


class RequestMeter:
    """Clocks of one admitted request; exactly one of `finished` and `cancelled` ends it, later calls do nothing."""

    def __init__(self, metrics: Metrics, prompt_tokens: int, arrival: float) -> None:
        self._metrics = metrics
        self._arrival = arrival
        self._last: dict[int, float] = {}
        self._generated = 0
        self._ended = False
        metrics.prompt_tokens.inc(prompt_tokens)
        metrics.prompt_length.observe(prompt_tokens)

    def token(self, choice: int = 0, count: int = 1) -> None:
        """`count` tokens of one choice have arrived from the engine."""
        now = perf_counter()
        before = self._last.get(choice)
        if not self._last:
            self._metrics.time_to_first_token.observe(now - self._arrival)
        if before is not None:
            self._metrics.inter_token_latency.observe((now - before) / count, count)
        self._last[choice] = now
        self._generated += count
        self._metrics.generated_tokens.inc(count)

    def cached(self, tokens: int) -> None:
        """So many prompt tokens came from a stored state."""
        self._metrics.cached_tokens.inc(tokens)

    def finished(self, reasons: Iterable[str]) -> None:
        """Every choice has ended by itself; their finish reasons."""
        if self._end():
            for reason in reasons:
                self._metrics.finished.labels(reason).inc()

    def cancelled(self, reason: str) -> None:
        """The request ended early: "disconnect", "timeout", "shutdown" or "error"."""
        if self._end():
            self._metrics.cancelled.labels(reason).inc()

    def _end(self) -> bool:
        first, self._ended = not self._ended, True
        if first:
            self._metrics.completion_length.observe(self._generated)
            self._metrics.generation_time.observe(perf_counter() - self._arrival)
        return first


class _Gaps(Collector):
    """A histogram for what every token is counted in: one addition, where `Histogram` takes two locks."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...]) -> None:
        self._name, self._text, self._bounds = name, text, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, count: int) -> None:
        """So many observations of the same value."""
        self._counts[bisect_left(self._bounds, value)] += count
        self._sum += count * value

    def collect(self) -> Iterable[Metric]:
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        buckets = list(zip(bounds, map(float, accumulate(self._counts)), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets, self._sum)


class _EngineGauges(Collector):
    """`EngineStats` under our names."""

    def __init__(self, stats: Callable[[], EngineStats], info: Callable[[], EngineInfo | None]) -> None:
        self._stats, self._info = stats, info

    def collect(self) -> Iterable[Metric]:
        stats, info = self._stats(), self._info()
        gauges = {
            "requests_running": ("Sequences in the batch.", stats.running),
            "requests_waiting": ("Sequences that wait for a slot.", stats.waiting),
            "batch_rows": ("Rows of the last step.", stats.batch_rows),
            "step_seconds": ("Duration of the last step.", stats.step_seconds),
            "sessions": ("Sessions that are stored.", stats.sessions),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"rookery_{name}", text, value=value)
        yield CounterMetricFamily("rookery_steps", "Forward passes since the start.", value=stats.steps)
        slots = GaugeMetricFamily("rookery_slots", "State slots.", labels=["state"])
        slots.add_metric(["used"], stats.slots_used)
        slots.add_metric(["free"], stats.slots_free)
        yield slots
        held = GaugeMetricFamily("rookery_state_bytes", "Memory of the states that are held.", labels=["tier"])
        held.add_metric(["device"], stats.slots_used * (info.state_bytes if info else 0))
        held.add_metric(["memory"], stats.cache_bytes)
        held.add_metric(["disk"], stats.disk_bytes)
        held.add_metric(["sessions"], stats.session_bytes)
        held.add_metric(["session_memory"], stats.session_memory_bytes)
        yield held
        yield CounterMetricFamily(
            "rookery_sessions_damaged", "Stored states found missing or damaged.", value=stats.sessions_damaged
        )
        evictions = CounterMetricFamily("rookery_state_evictions", "States dropped to make room.", labels=["tier"])
        evictions.add_metric(["memory"], stats.cache_evictions)
        evictions.add_metric(["disk"], stats.disk_evictions)
        evictions.add_metric(["session_memory"], stats.session_evictions)
        yield evictions
        hits = CounterMetricFamily("rookery_state_hits", "Stored states that prompts started from.", labels=["tier"])
        hits.add_metric(["memory"], stats.cache_hits)
        hits.add_metric(["disk"], stats.disk_hits)
        yield hits
        yield CounterMetricFamily(
            "rookery_state_writes_skipped",
            "Prefix states not written to disk, for want of time or space.",
            value=stats.disk_skipped,
        )
        yield CounterMetricFamily(
            "rookery_prefixes_damaged", "Prefix states on disk found missing or damaged.", value=stats.disk_damaged
        )


class _VllmNames(Collector):
    """The same numbers under the names that dashboards made for vLLM read, with its labels."""

    def __init__(
        self,
        metrics: Metrics,
        stats: Callable[[], EngineStats],
        info: Callable[[], EngineInfo | None],
        labels: Mapping[str, str],
    ) -> None:
        self._stats, self._info, self._labels = stats, info, dict(labels)
        self._twins: dict[str, Counter | Histogram | _Gaps] = {
            "vllm:prompt_tokens": metrics.prompt_tokens,
            "vllm:generation_tokens": metrics.generated_tokens,
            "vllm:prefix_cache_hits": metrics.cached_tokens,
            "vllm:prefix_cache_queries": metrics.prompt_tokens,
            "vllm:time_to_first_token_seconds": metrics.time_to_first_token,
            "vllm:inter_token_latency_seconds": metrics.inter_token_latency,
            "vllm:time_per_output_token_seconds": metrics.inter_token_latency,
            "vllm:e2e_request_latency_seconds": metrics.generation_time,
            "vllm:request_prompt_tokens": metrics.prompt_length,
            "vllm:request_generation_tokens": metrics.completion_length,
            "vllm:request_success": metrics.finished,
        }

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        slots = stats.slots_used + stats.slots_free
        gauges = {
            "vllm:num_requests_running": ("Sequences in the batch.", float(stats.running)),
            "vllm:num_requests_waiting": ("Sequences that wait for a slot.", float(stats.waiting)),
            "vllm:kv_cache_usage_perc": ("Part of the state slots in use, 0 to 1.", stats.slots_used / max(slots, 1)),
        }
        for name, (text, value) in gauges.items():
            gauge = GaugeMetricFamily(name, text, labels=list(self._labels))
            gauge.add_metric(list(self._labels.values()), value)
            yield gauge
        for name, ours in self._twins.items():
            for family in ours.collect():
                yield self._renamed(family, name)

    def _renamed(self, family: Metric, name: str) -> Metric:
        twin = copy.copy(family)
        twin.name = name
        twin.samples = [
            sample._replace(
                name=name + sample.name.removeprefix(family.name),
                labels=self._labels
                | {"finished_reason" if label == "reason" else label: value for label, value in sample.labels.items()},
            )
            for sample in family.samples
        ]
        return twin
