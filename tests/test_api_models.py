"""GET /v1/models and /v1/models/{id}: shapes, aliases, tuned states."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator

import pytest
from openai.types import Model

from rookery.server.config import Config

from .api_server import Api, api_in_process
from .fake_engine import BYTE_MODEL, FakeEngine

INFO = dataclasses.replace(BYTE_MODEL, tuned_states=("poet",))


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    config = Config(served_model_name=("big", "org/alias"))
    async with api_in_process(FakeEngine(info=INFO, config=config), config) as api:
        yield api


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
async def test_every_name_and_tuned_state_is_listed(api: Api, path: str) -> None:
    body = (await api.client.get(path)).json()
    assert body["object"] == "list"
    assert [card["id"] for card in body["data"]] == ["big", "org/alias", "big:poet", "org/alias:poet"]
    for card in body["data"]:
        model = Model.model_validate(card, strict=True)
        assert model.object == "model" and model.owned_by == "rookery" and model.created > 1_600_000_000
        assert card["meta"]["version"] == "7" and card["meta"]["architecture"] == "rwkv7"
        assert card["meta"]["parameters"] == INFO.parameters and card["meta"]["state_bytes"] == INFO.state_bytes
        assert card["meta"]["demo"] is False


@pytest.mark.parametrize("name", ["big", "org/alias", "big:poet", "org%2Falias"])
@pytest.mark.parametrize("path", ["/v1/models", "/models"])
async def test_one_model_is_the_entry_of_the_list(api: Api, path: str, name: str) -> None:
    cards = {card["id"]: card for card in (await api.client.get("/v1/models")).json()["data"]}
    answer = await api.client.get(f"{path}/{name}")
    assert answer.json() == cards[name.replace("%2F", "/")]


@pytest.mark.parametrize("name", ["nobody", "big:", "big:nobody", "BIG", "big/", "..%2Fbig", "a" * 5000])
async def test_an_unknown_model_is_a_404(api: Api, name: str) -> None:
    answer = await api.client.get(f"/v1/models/{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found" and answer.json()["error"]["param"] == "model"
    assert len(answer.content) < 1000


async def test_models_are_not_there_before_the_engine_is(api: Api) -> None:
    api.engine.info = None
    answer = await api.client.get("/v1/models")
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] == "not_ready"
