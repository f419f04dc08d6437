"""Body fields that say what an answer must match: `response_format`, beside `regex` and `grammar`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ..answer_grammar import AnswerGrammar
from ..errors import InvalidRequest
from ..text.chat_template import Prompt
from ..text.grammar import response_grammar
from .schemas import PLAIN, Body, GenerationBody

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
JsonObject = dict[str, Any]


class JsonSchemaFormat(Body):
    """The schema of a `json_schema` response format."""

    name: Name
    description: str | None = None
    schema_: JsonObject | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """`response_format`: free text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("response_format of type json_schema needs the field json_schema")
        return self


class FormattedBody(GenerationBody):
    """What completions and chats have in common; responses have it in `text.format`."""

    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _has_one_shape(self) -> FormattedBody:
        if self.shaped_by is not None and self._format is not None and self.shaped_by != "response_format":
            raise InvalidRequest(
                f"{self.shaped_by} and response_format cannot both shape the answer", param="response_format"
            )
        return self

    @property
    def _format(self) -> ResponseFormat | None:
        """The format, where it asks for something."""
        return None if self.response_format is None or self.response_format.type == "text" else self.response_format

    @property
    def shaped_by(self) -> str | None:
        """The field that says what the answer must match."""
        shapes = {"grammar": self.grammar, "regex": self.regex, "response_format": self._format}
        return next((name for name, given in shapes.items() if given is not None), None)

    def constraint(self, prompt: Prompt = PLAIN) -> AnswerGrammar | None:
        """What the answer must match; `prompt` is how its text begins.

        Raises:
            InvalidRequest: a schema, regex or grammar that cannot be enforced.
        """
        if self._format is None:
            return super().constraint(prompt)
        asked = self._format.model_dump(by_alias=True, exclude_none=True)
        return AnswerGrammar(response_grammar(asked, prompt) or "", "response_format")
