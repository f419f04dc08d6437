"""Body of POST /v1/completions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from ..errors import InvalidRequest
from .format_schemas import FormattedBody
from .schemas import MAX_CHOICES, PromptField, Refused, one_by_one


class CompletionBody(FormattedBody):
    """Body of POST /v1/completions."""

    prompt: PromptField | None = None
    max_tokens: Annotated[int, Field(ge=0, le=2**31)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    suffix: Refused = None

    @model_validator(mode="after")
    def _best_of_agrees(self) -> CompletionBody:
        if self.best_of is not None and self.best_of < self.choices:
            raise InvalidRequest(f"best_of must be at least n ({self.choices})", param="best_of")
        if self.stream and self.best_of is not None and self.best_of > self.choices:
            raise InvalidRequest("best_of cannot be streamed: the best is known at the end", param="best_of")
        return self

    def fits_session(self) -> None:
        super().fits_session()
        if self.session_id is not None and (len(self.prompts) != 1 or self.best_of not in (None, 1)):
            raise InvalidRequest("a session goes on with one prompt and one choice", param="session_id")
        if self.session_id is not None and self.echo:
            raise InvalidRequest("echo cannot show what a session holds", param="echo")

    @property
    def prompts(self) -> list[str | list[int]]:
        """One entry a prompt. No prompt at all is the empty text."""
        return [""] if self.prompt is None else one_by_one(self.prompt)
