"""/v1/responses over a real engine and a small random model: what a turn costs, and that tokens are the chat's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from openai.types.responses import Response

from rookery.server.app import create_app
from rookery.server.config import Config
from rookery.server.engine.client import EngineClient

from .api_server import MODEL
from .server_process import write_tiny

PATH = "/v1/responses"
LONG = "Tell me all about rooks, and about ravens too, at some length, and do not forget the jackdaws, please."


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    path: Path = write_tiny(tmp_path_factory.mktemp("model"))
    config = Config(served_model_name=(MODEL,), max_batch=8)
    app = create_app(config, EngineClient(config, path))
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api", timeout=60)
    async with app.router.lifespan_context(app), client:
        await app.state.service.load()
        yield client


async def respond(client: httpx.AsyncClient, input: str, **fields: Any) -> Any:
    """A response that must succeed, parsed as the official package's `Response`."""
    body = {"model": MODEL, "input": input, "temperature": 0, "max_output_tokens": 8, **fields}
    answer = await client.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    return Response.model_validate(answer.json(), strict=True)


def cost(answer: Any) -> tuple[int, int]:
    """Tokens of the whole context, and how many of them had to be computed."""
    return answer.usage.input_tokens, answer.usage.input_tokens - answer.usage.input_tokens_details.cached_tokens


@pytest.mark.asyncio(loop_scope="module")
async def test_a_turn_computes_what_is_new_and_so_does_a_fork(client: httpx.AsyncClient) -> None:
    first = await respond(client, LONG)
    assert cost(first)[1] == cost(first)[0]
    second = await respond(client, "And the crows?", previous_response_id=first.id)
    third = await respond(client, "And the magpies?", previous_response_id=second.id)
    fork = await respond(client, "And the choughs?", previous_response_id=first.id)
    for answer, before in ((second, first), (third, second), (fork, first)):
        context, computed = cost(answer)
        assert context > cost(before)[0] and computed <= context - cost(before)[0] + 20


@pytest.mark.asyncio(loop_scope="module")
async def test_a_chain_says_what_the_chat_in_full_says(client: httpx.AsyncClient) -> None:
    first = await respond(client, LONG, cache=False)
    second = await respond(client, "And the crows?", previous_response_id=first.id)
    messages = [
        {"role": "user", "content": LONG},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And the crows?"},
    ]
    body = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 8, "cache": False}
    whole = (await client.post("/v1/chat/completions", json=body)).json()
    assert whole["choices"][0]["message"]["content"] == second.output_text
    assert whole["usage"]["prompt_tokens"] == cost(second)[0]


@pytest.mark.asyncio(loop_scope="module")
async def test_log_probabilities_join_to_the_text(client: httpx.AsyncClient) -> None:
    answer = await respond(client, "hi", top_logprobs=2, max_output_tokens=24)
    part = answer.output[0].content[0]
    raw = b"".join(bytes(token.bytes) for token in part.logprobs)
    assert raw.decode(errors="replace") == part.text
    assert all(token.logprob == token.top_logprobs[0].logprob for token in part.logprobs)
