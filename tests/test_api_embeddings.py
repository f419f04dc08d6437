"""POST /v1/embeddings: shapes and refusals over the fake engine, numbers over a real one."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from rookery.kernels.rows import Rows
from rookery.server.app import create_app
from rookery.server.config import Config
from rookery.server.engine.client import EngineClient
from rookery.server.engine.engine import Engine
from rookery.server.engine.request import Request, SamplingParams

from .api_server import MODEL, Api, api_in_process
from .server_process import write_tiny
from .tiny_model import BOMB, TINY_PLAN, ToyModel, tiny_rwkv7

PATH = "/v1/embeddings"
WRONG: list[tuple[str, Any]] = [
    ("input", ""), ("input", []), ("input", [""]), ("input", [[]]), ("input", [1, "a"]), ("input", None),
    ("input", 5), ("input", [256]), ("input", [[-1]]), ("input", ["a"] * 2049), ("input", {}),
    ("dimensions", 0), ("dimensions", 65), ("dimensions", 1.5), ("encoding_format", "int8"), ("user", 5),
    ("state", "nope"), ("model", ""),
]  # fmt: skip


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with api_in_process() as api:
        yield api


async def vectors(client: httpx.AsyncClient, given: object, **fields: object) -> list[list[float]]:
    answer = await client.post(PATH, json={"model": MODEL, "input": given, **fields})
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [one["index"] for one in data] == list(range(len(data)))
    return [one["embedding"] for one in data]


async def test_the_four_shapes_of_the_input(api: Api) -> None:
    for given, prompts in (
        ("hi", [b"hi"]),
        (["hi", "you"], [b"hi", b"you"]),
        ([104, 105], [b"hi"]),
        ([[104, 105], [121]], [b"hi", b"y"]),
    ):
        api.engine.submitted.clear()
        found = await vectors(api.client, given)
        assert [bytes(request.prompt_ids) for request in api.engine.submitted] == prompts
        assert all(request.embed and not request.cache for request in api.engine.submitted)
        assert len(found) == len(prompts)
        assert all(math.isclose(sum(x * x for x in vector), 1, abs_tol=1e-5) for vector in found)


async def test_usage_and_both_formats(api: Api) -> None:
    body = {"model": MODEL, "input": ["hi", "you"]}
    floats = (await api.client.post(PATH, json={**body, "encoding_format": "float"})).json()
    packed = (await api.client.post(PATH, json={**body, "encoding_format": "base64"})).json()
    assert floats["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    for one, other in zip(floats["data"], packed["data"], strict=True):
        assert list(struct.unpack("<64f", base64.b64decode(other["embedding"]))) == pytest.approx(one["embedding"])


async def test_fewer_dimensions_have_length_one_too(api: Api) -> None:
    [whole] = await vectors(api.client, "hello")
    [short] = await vectors(api.client, "hello", dimensions=3)
    assert len(short) == 3 and math.isclose(sum(x * x for x in short), 1, abs_tol=1e-5)
    assert [x / short[0] for x in short] == pytest.approx([x / whole[0] for x in whole[:3]])


async def test_many_texts_come_back_in_their_order(api: Api) -> None:
    found = await vectors(api.client, [[i % 256, i // 256 + 1] for i in range(300)])
    assert len(found) == 300
    for i, vector in enumerate(found):
        assert vector[0] / vector[1] == pytest.approx(i % 256 / (i // 256 + 1), rel=1e-4)


@pytest.mark.parametrize(("field", "value"), WRONG)
async def test_a_wrong_value_is_refused_and_named(api: Api, field: str, value: object) -> None:
    error = await api.refused(PATH, **{"input": "hi", field: value})
    assert str(error["param"]).split(".")[0] == field and not api.engine.submitted


async def test_an_unknown_model_is_a_404(api: Api) -> None:
    answer = await api.client.post(PATH, json={"model": "other", "input": "a"})
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"


def embedding(engine: Engine, prompt: tuple[int, ...], **fields: Any) -> list[float]:
    engine.submit(Request(id="e", prompt_ids=prompt, sampling=SamplingParams(max_tokens=0), embed=True, **fields))
    events = []
    while engine.busy:
        events += engine.step()
    [event] = [event for event in events if event.request_id == "e"]
    assert event.finish == "length" and event.token_id is None and event.embedding is not None
    return list(struct.unpack(f"<{len(event.embedding) // 4}f", event.embedding))


@pytest.mark.parametrize("budget", [3, 64])
def test_the_vector_is_the_last_output_in_chunks_and_beside_others(budget: int) -> None:
    model = tiny_rwkv7()
    prompt = tuple(b"a text of a few words")
    hidden = model.forward(torch.tensor(prompt), Rows.pack([0], [len(prompt)]), model.new_pool(1))
    engine = Engine(model, max_batch=4, max_queue=4, prefill_budget=budget, cache_bytes=2**20)
    engine.submit(Request(id="other", prompt_ids=(1, 2, 3, 4, 5), sampling=SamplingParams(max_tokens=9)))
    engine.step()
    assert embedding(engine, prompt, cache=False) == pytest.approx(hidden[-1].tolist(), abs=1e-4)
    for _ in range(2):  # computed, then from the stored state
        assert embedding(engine, prompt) == pytest.approx(hidden[-1].tolist(), abs=1e-4)


def test_a_neighbour_that_fails_costs_no_vector() -> None:
    engine = Engine(ToyModel(), max_batch=4, max_queue=4, prefill_budget=64)
    alone = embedding(engine, (1, 2, 3))
    engine.submit(Request(id="bomb", prompt_ids=(1, BOMB), sampling=SamplingParams(max_tokens=4)))
    assert embedding(engine, (1, 2, 3)) == alone


async def test_the_official_client_over_a_real_engine(tmp_path: Path) -> None:
    config = Config(served_model_name=(MODEL,), max_batch=4)
    app = create_app(config, EngineClient(config, write_tiny(tmp_path)))
    http: Any = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api", timeout=60)
    async with app.router.lifespan_context(app), http:
        await app.state.service.load()
        client = openai.AsyncOpenAI(base_url="http://api/v1", api_key="none", http_client=http, max_retries=0)
        texts = ["one", "two", "one", "a longer text than the others"]
        answer = await client.embeddings.create(model=MODEL, input=texts)
        assert answer.usage.prompt_tokens == sum(map(len, texts)) and answer.model == MODEL
        first, second, third, _ = [one.embedding for one in answer.data]
        assert len(first) == TINY_PLAN.width and first == pytest.approx(third, abs=1e-5)
        assert first != pytest.approx(second, abs=1e-2)
        model = tiny_rwkv7()
        hidden = model.forward(torch.tensor(list(b"one")), Rows.pack([0], [3]), model.new_pool(1))[-1]
        assert first == pytest.approx((hidden / hidden.norm()).tolist(), abs=1e-4)
