"""Log-probabilities as a client gets them, against the official package's logits for the same checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from torch import Tensor

from rookery.server.app import create_app
from rookery.server.config import Config
from rookery.server.engine.client import EngineClient
from rookery.server.model.shape import Version
from rookery.server.model.synthetic import Plan

from .api_server import MODEL
from .checkpoints import save_checkpoint
from .official_oracle import Job, ask_official

PLANS: dict[Version, Plan] = {
    "6": Plan(version="6", layers=2, width=48, ffn_width=76, vocab_size=256, head_size=16, ranks=(5, 11)),
    "7": Plan(version="7", layers=2, width=60, ffn_width=84, vocab_size=256, head_size=20, ranks=(7, 9, 5, 13)),
}
PROMPT = [*"Wie spät ist es? ".encode(), 0, 255, 7]


async def ask(path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """A greedy completion with its prompt, a drawn one, and a chat, each with log-probabilities."""
    config = Config(served_model_name=(MODEL,), dtype="float32", max_batch=4)
    app = create_app(config, EngineClient(config, path))
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api", timeout=60)
    async with app.router.lifespan_context(app), http:
        await app.state.service.load()

        async def choice(route: str, **fields: object) -> dict[str, Any]:
            body = {"model": MODEL, "max_tokens": 24, "return_token_ids": True, "seed": 3, **fields}
            answer = await http.post(route, json=body)
            assert answer.status_code == 200, answer.text
            found: dict[str, Any] = answer.json()["choices"][0]
            return found

        text = {"prompt": PROMPT, "echo": True, "logprobs": 5}
        messages = [{"role": "user", "content": "hi"}]
        return (
            await choice("/v1/completions", **text, temperature=0),
            await choice("/v1/completions", **text, temperature=1.4, presence_penalty=1, logit_bias={"65": 3}),
            await choice("/v1/chat/completions", messages=messages, temperature=0, logprobs=True, top_logprobs=20),
        )


@pytest.mark.parametrize("version", PLANS)
async def test_log_probabilities_are_those_of_the_official_package(version: Version, tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / f"{version}.pth", PLANS[version])
    choices = await ask(path)
    greedy, drawn, chat = choices
    ids = [[*choice["prompt_token_ids"], *choice["token_ids"]] for choice in choices]
    official = ask_official([Job(path, "cpu fp32", one) for one in ids], tmp_path, version_7=version == "7")
    expected = [torch.log_softmax(answer.logits, -1) for answer in official]

    for choice, tokens, rows in zip((greedy, drawn), ids, expected, strict=False):
        logprobs = choice["logprobs"]
        assert logprobs["token_logprobs"][0] is None
        chosen = [float(rows[at - 1, token]) for at, token in enumerate(tokens) if at > 0]
        assert logprobs["token_logprobs"][1:] == pytest.approx(chosen, abs=1e-4)
        for top, row in zip(logprobs["top_logprobs"][1:], rows, strict=False):
            assert sorted(top.values())[-5:] == pytest.approx(likeliest(row, 5)[::-1], abs=1e-4)

    answered = len(ids[0]) - len(PROMPT)
    assert ids[0][-answered:] == expected[0][-answered - 1 : -1].argmax(-1).tolist(), "greedy takes the likeliest"
    for logprob, top in zip(greedy["logprobs"]["token_logprobs"], greedy["logprobs"]["top_logprobs"], strict=True):
        assert logprob is None or logprob <= max(top.values())
    assert all(
        logprob == max(top.values())
        for logprob, top in zip(
            greedy["logprobs"]["token_logprobs"][-answered:],
            greedy["logprobs"]["top_logprobs"][-answered:],
            strict=True,
        )
    )

    first = len(chat["prompt_token_ids"])
    content = chat["logprobs"]["content"]
    assert content and len(content) <= len(chat["token_ids"])
    for at, entry in enumerate(content):
        row, token = expected[2][first + at - 1], chat["token_ids"][at]
        assert entry["bytes"] == [token] and entry["logprob"] == pytest.approx(float(row[token]), abs=1e-4)
        assert [top["logprob"] for top in entry["top_logprobs"]] == pytest.approx(likeliest(row, 20), abs=1e-4)
        assert entry["logprob"] == entry["top_logprobs"][0]["logprob"]


def likeliest(row: Tensor, count: int) -> list[float]:
    return [float(value) for value in row.topk(count).values]
