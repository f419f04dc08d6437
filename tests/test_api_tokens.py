"""/tokenize, /detokenize, /apply_template and /tokenizer_info, in vLLM's shapes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from rookery.server.config import Config

from .api_server import MODEL, Api, api_in_process

USER = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with api_in_process() as api:
        yield api


async def test_texts_go_there_and_back(api: Api) -> None:
    answer = await api.client.post("/tokenize", json={"model": MODEL, "prompt": "hé", "return_token_strs": True})
    body = answer.json()
    assert answer.status_code == 200 and body["tokens"] == [104, 195, 169] and body["count"] == 3
    assert body["max_model_len"] == Config().max_prompt_tokens
    assert body["token_strs"] == ["h", "bytes:\\xc3", "bytes:\\xa9"]
    answer = await api.client.post("/detokenize", json={"tokens": body["tokens"]})
    assert answer.json() == {"prompt": "hé"}
    assert (await api.client.post("/tokenize", json={"prompt": ""})).json()["tokens"] == []


async def test_a_chat_is_tokenised_as_the_engine_gets_it(api: Api) -> None:
    chat = {"messages": USER}
    text = (await api.client.post("/apply_template", json=chat)).json()["prompt"]
    tokens = (await api.client.post("/tokenize", json=chat)).json()["tokens"]
    await api.chat("hi")
    assert bytes(tokens).decode() == text and tuple(tokens) == api.engine.submitted[-1].prompt_ids


async def test_tokenizer_info(api: Api) -> None:
    body = (await api.client.get("/tokenizer_info")).json()
    assert body["vocab_size"] == 256 and body["chat_template"] == "world" and body["fingerprint"]


async def test_wrong_bodies_are_refused(api: Api) -> None:
    assert (await api.refused("/detokenize", tokens=[256]))["param"] == "tokens"
    assert (await api.refused("/detokenize", tokens=[-1]))["param"] == "tokens.0"
    assert (await api.refused("/tokenize", prompt=5))["param"] == "prompt"
    assert (await api.refused("/apply_template", messages=[]))["param"] == "messages"
    answer = await api.client.post("/tokenize", json={"model": "other", "prompt": "a"})
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"
