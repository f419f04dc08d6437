"""POST /v1/embeddings: texts as vectors, made of the model's output at their last token.

That is the place where a recurrent model has read all of the text, and the one that the embedding models of the RWKV
family are trained for; a model that was trained to write gives rougher vectors. Nothing is added to a text: a model
trained with an end token behind it is sent token ids. Vectors have length 1, whatever their number of dimensions.
"""

from __future__ import annotations

import base64
import math
import struct
import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Discriminator, Field, Tag

from ..answer import Answer
from ..engine.request import SamplingParams
from ..errors import InvalidRequest
from ..generation import Delta
from ..service import Service
from .openapi import Embeddings, answers
from .schemas import Body, TokenIds, one_by_one, prompt_kind
from .sse import json_answer, nobody, whole

router = APIRouter(tags=["embeddings"])

MAX_INPUTS = 2048
"""Texts of one request."""
AT_ONCE = 32
"""Those of one request that wait or run in the engine at the same time: its queue is for everybody."""

Text = Annotated[str, Field(min_length=1)]
Input = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True), Tag("texts")]
    | Annotated[TokenIds, Tag("tokens")]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True), Tag("batch")],
    Discriminator(prompt_kind),
]


class EmbeddingBody(Body):
    """Body of POST /v1/embeddings."""

    input: Input
    model: str = Field(min_length=1, max_length=512)
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=2**20)] | None = None
    user: Annotated[str, Field(max_length=4096)] | None = None
    state: Annotated[str, Field(min_length=1, max_length=128)] | None = None


@router.post("/v1/embeddings", summary="Texts as vectors", responses=answers(Embeddings))
async def create_embeddings(body: EmbeddingBody, request: Request) -> Response:
    service: Service = request.app.state.service
    tuned_state = service.tuned_state(body.model, body.state)
    width = service.model.info.width
    if body.dimensions is not None and body.dimensions > width:
        raise InvalidRequest(f"this model's vectors have {width} dimensions", param="dimensions")
    prompts = [await service.prompt(one, param="input") for one in one_by_one(body.input)]
    sampling = SamplingParams(max_tokens=0)
    vectors: dict[int, bytes] = {}
    for start in range(0, len(prompts), AT_ONCE):
        part = prompts[start : start + AT_ONCE]

        def add(delta: Delta, start: int = start) -> None:
            if delta.embedding is not None:
                vectors[start + delta.choice] = delta.embedding

        generation = await service.generate(
            f"embd-{uuid.uuid4().hex}",
            part,
            [sampling] * len(part),
            lambda: Answer(service.model.tokenizer),
            choices=1,
            tuned_state=tuned_state,
            tenant=request.state.tenant,
            arrival=request.state.arrival,
            cache=False,  # thousands of texts that are read once would drive the chats out
            embed=True,
        )
        if not await whole(request, generation, add):
            return nobody()
    tokens = sum(map(len, prompts))
    data = [
        {"object": "embedding", "index": index, "embedding": _shown(_unit(vectors[index], body.dimensions), body)}
        for index in range(len(prompts))
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_answer({"object": "list", "data": data, "model": body.model, "usage": usage})


def _unit(raw: bytes, dimensions: int | None) -> bytes:
    """The first so many numbers, little-endian float32 as all of them are, scaled to length 1."""
    vector = struct.unpack(f"<{len(raw) // 4}f", raw)[:dimensions]
    length = math.hypot(*vector) or 1.0
    return struct.pack(f"<{len(vector)}f", *(number / length for number in vector))


def _shown(vector: bytes, body: EmbeddingBody) -> Any:
    """As the client wants it: a list of numbers, or little-endian float32 in base64."""
    if body.encoding_format == "base64":
        return base64.b64encode(vector).decode()
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))
