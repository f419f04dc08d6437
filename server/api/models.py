"""GET /v1/models: the model under each of its names, and each tuned state as `model:state`."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel

from ..errors import ModelNotFound, NotReady

router = APIRouter(tags=["models"])


class ModelMeta(BaseModel):
    """What a client may want to know of the model beyond its name."""

    architecture: str
    """"rwkv4" to "rwkv7"."""
    version: str
    parameters: int
    vocab_size: int
    layers: int
    width: int
    state_bytes: int
    """Memory of one chat, whatever its length."""
    dtype: str
    demo: bool
    """The built-in model, there to try the server with."""


class ModelCard(BaseModel):
    """One model, in OpenAI's shape."""

    id: str
    object: Literal["model"] = "model"
    created: int
    """When this server started, in seconds since 1970."""
    owned_by: str = "rookery"
    meta: ModelMeta


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


@router.get("/v1/models", summary="List the models")
@router.get("/models", include_in_schema=False)
async def list_models(request: Request) -> ModelList:
    return ModelList(data=_cards(request))


@router.get("/v1/models/{model:path}", summary="One model")
@router.get("/models/{model:path}", include_in_schema=False)
async def get_model(request: Request, model: str) -> ModelCard:
    cards = _cards(request)
    for card in cards:
        if card.id == model:
            return card
    raise ModelNotFound(model, [card.id for card in cards])


def _cards(request: Request) -> list[ModelCard]:
    state = request.app.state
    info = state.engine.info
    if info is None:
        raise NotReady("the model is still loading", retry_after_s=2)
    meta = ModelMeta(
        architecture=f"rwkv{info.version.partition('.')[0]}",
        version=info.version,
        parameters=info.parameters,
        vocab_size=info.vocab_size,
        layers=info.layers,
        width=info.width,
        state_bytes=info.state_bytes,
        dtype=info.dtype,
        demo=state.demo,
    )
    names = state.config.served_model_name
    ids = [*names, *(f"{name}:{tuned}" for name in names for tuned in info.tuned_states)]
    return [ModelCard(id=name, created=state.started, meta=meta) for name in ids]
