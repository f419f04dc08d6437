"""/health, /ready, /metrics, /version, /docs: what they say in each phase of the engine."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rookery import __version__
from rookery.server.engine.client import EngineStatus, Phase
from rookery.server.engine.request import EngineStats

from .api_server import MODEL, Api, api_in_process
from .fake_engine import FakeEngine


class SilentEngine(FakeEngine):
    """Says it is ready, and when it last spoke."""

    silence = 0.0

    @property
    def silent_s(self) -> float:
        return self.silence


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with api_in_process(SilentEngine()) as api:
        yield api


async def metric(api: Api, name: str, **labels: str) -> float:
    text = (await api.client.get("/metrics")).text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    raise AssertionError(f"no {name} {labels} in /metrics")


async def test_ready_when_the_engine_is(api: Api) -> None:
    assert (await api.client.get("/health")).json() == {"status": "ok"}
    answer = await api.client.get("/ready")
    assert answer.status_code == 200 and answer.json()["status"] == "ready"
    assert (await api.client.head("/health")).status_code == (await api.client.head("/ready")).status_code == 200


@pytest.mark.parametrize("phase", ["loading", "warming_up", "restarting", "failed", "stopping"])
async def test_not_ready_in_any_other_phase(api: Api, phase: Phase) -> None:
    api.engine.status = EngineStatus(phase, 0.25)
    answer = await api.client.get("/ready")
    assert answer.status_code == 503 and "retry-after" in answer.headers
    assert answer.json() == {"status": "failed" if phase == "failed" else "not_ready", "phase": phase, "progress": 0.25}
    assert (await api.client.get("/health")).status_code == (503 if phase == "failed" else 200)


async def test_an_engine_that_has_fallen_silent_is_not_ready(api: Api) -> None:
    assert isinstance(api.engine, SilentEngine)
    api.engine.silence = 100.0
    answer = await api.client.get("/ready")
    assert answer.status_code == 503 and answer.json()["status"] == "unresponsive"


async def test_version(api: Api) -> None:
    assert (await api.client.get("/version")).json() == {"version": __version__}


async def test_docs_name_every_route_and_load_nothing_from_elsewhere(api: Api) -> None:
    page = await api.client.get("/docs")
    spec = (await api.client.get("/openapi.json")).json()
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    for path in spec["paths"]:
        assert path in page.text
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/models", "/metrics"):
        assert path in spec["paths"]
    assert "temperature" in page.text
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page.text)
    assert "default-src 'none'" in page.headers["content-security-policy"]


async def test_requests_and_tokens_are_counted(api: Api) -> None:
    await api.complete("hello", max_tokens=4)
    labels = {"endpoint": "/v1/completions", "status": "200"}
    assert await metric(api, "rookery_requests_total", **labels) == 1
    assert await metric(api, "rookery_prompt_tokens_total") == 5
    assert await metric(api, "rookery_generated_tokens_total") == 4
    assert await metric(api, "rookery_time_to_first_token_seconds_count") == 1
    assert await metric(api, "rookery_inter_token_latency_seconds_count") == 3
    assert await metric(api, "rookery_request_duration_seconds_count", endpoint="/v1/completions") == 1
    assert await metric(api, "rookery_finished_total", reason="length") == 1


async def test_gauges_are_the_engine_s(api: Api) -> None:
    api.engine.stats = EngineStats(
        running=3, waiting=2, slots_used=3, slots_free=1, steps=7, step_seconds=0.5, batch_rows=3
    )
    assert await metric(api, "rookery_requests_running") == 3
    assert await metric(api, "rookery_requests_waiting") == 2
    assert await metric(api, "rookery_slots", state="used") == 3
    assert await metric(api, "rookery_slots", state="free") == 1
    assert await metric(api, "rookery_step_seconds") == 0.5
    assert await metric(api, "rookery_batch_rows") == 3
    assert await metric(api, "rookery_state_bytes", tier="device") == 3 * 1024
    assert await metric(api, "vllm:num_requests_running", model_name=MODEL) == 3
    assert await metric(api, "vllm:kv_cache_usage_perc", model_name=MODEL) == 0.75


async def test_dashboards_made_for_vllm_find_their_names(api: Api) -> None:
    await api.complete("hello", max_tokens=4)
    for ours, theirs in (
        ("rookery_prompt_tokens_total", "vllm:prompt_tokens_total"),
        ("rookery_generated_tokens_total", "vllm:generation_tokens_total"),
        ("rookery_time_to_first_token_seconds_sum", "vllm:time_to_first_token_seconds_sum"),
        ("rookery_inter_token_latency_seconds_count", "vllm:inter_token_latency_seconds_count"),
        ("rookery_generation_duration_seconds_count", "vllm:e2e_request_latency_seconds_count"),
    ):
        assert await metric(api, theirs, model_name=MODEL) == await metric(api, ours)
    assert await metric(api, "vllm:request_success_total", finished_reason="length") == 1


async def test_unknown_paths_do_not_make_new_series(api: Api) -> None:
    for path in ("/a", "/b", "/v1/c"):
        await api.client.get(path)
    assert await metric(api, "rookery_requests_total", endpoint="other", status="404") == 3
    assert "/v1/c" not in (await api.client.get("/metrics")).text
