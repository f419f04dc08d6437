"""POST /tokenize, /detokenize, /apply_template and GET /tokenizer_info, in vLLM's shapes."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Discriminator, Field, Tag

from ..service import Service
from .chat_schemas import ChatTurns
from .logprobs import token_text
from .openapi import PromptText, TokenizerInfo, Tokens, answers
from .schemas import Body, TokenId

router = APIRouter(tags=["tokens"])

ModelName = Annotated[str, Field(max_length=512)]


class TokenizeText(Body):
    """Body of POST /tokenize for plain text."""

    prompt: str
    model: ModelName | None = None
    return_token_strs: bool | None = None


class TokenizeChat(ChatTurns):
    """Body of POST /tokenize and /apply_template for a chat."""

    model: ModelName | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    """Body of POST /detokenize."""

    tokens: Annotated[list[TokenId], Field(fail_fast=True)]
    model: ModelName | None = None


def _text_or_chat(value: Any) -> str:
    return "chat" if isinstance(value, dict) and "messages" in value else "text"


TokenizeBody = Annotated[
    Annotated[TokenizeText, Tag("text")] | Annotated[TokenizeChat, Tag("chat")], Discriminator(_text_or_chat)
]


@router.post("/tokenize", summary="Token ids of a text or a chat", responses=answers(Tokens))
async def tokenize(body: TokenizeBody, request: Request) -> dict[str, Any]:
    service = _service(request, body.model)
    if isinstance(body, TokenizeChat):
        _, ids = await service.render(body.chat())
    else:
        ids = await service.encode(body.prompt, param="prompt") if body.prompt else []
    tokenizer = service.model.tokenizer
    return {
        "count": len(ids),
        "max_model_len": service.config.max_prompt_tokens,
        "tokens": ids,
        "token_strs": [token_text(tokenizer, id) for id in ids] if body.return_token_strs else None,
    }


@router.post("/detokenize", summary="The text of token ids", responses=answers(PromptText))
async def detokenize(body: DetokenizeBody, request: Request) -> dict[str, Any]:
    service = _service(request, body.model)
    return {"prompt": service.model.tokenizer.decode(service.check_prompt(body.tokens, param="tokens"))}


@router.post("/apply_template", summary="A chat as the prompt text the model gets", responses=answers(PromptText))
async def apply_template(body: TokenizeChat, request: Request) -> dict[str, Any]:
    prompt, _ = await _service(request, body.model).render(body.chat())
    return {"prompt": prompt.text}


@router.get("/tokenizer_info", summary="The vocabulary and the chat template", responses=answers(TokenizerInfo))
async def tokenizer_info(request: Request) -> dict[str, Any]:
    model = _service(request, None).model
    end = model.tokenizer.eos_token_id
    return {
        "tokenizer_class": type(model.tokenizer).__name__,
        "vocab_size": model.tokenizer.vocab_size,
        "eos_token_id": end,
        "eos_token": None if end is None else token_text(model.tokenizer, end),
        "bos_token": None,
        "fingerprint": model.tokenizer.fingerprint,
        "chat_template": model.template.name,
        "stop": list(model.template.stop),
    }


def _service(request: Request, model: str | None) -> Service:
    service: Service = request.app.state.service
    if model is not None:
        service.tuned_state(model, None)  # raises for a model that is not served
    return service
