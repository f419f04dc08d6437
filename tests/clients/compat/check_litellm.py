"""LiteLLM: completions, chat, streaming, tools, embeddings, and its names for errors."""

from __future__ import annotations

import json
import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks the network for prices at import

import litellm

URL = f"{os.environ['ROOKERY_URL']}/v1"
HI = [{"role": "user", "content": "Hello"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Bern", "Genf"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "report", "parameters": SCHEMA}}


def main() -> None:
    litellm.suppress_debug_info = True
    to: dict[str, Any] = {"model": "openai/tiny", "api_base": URL, "api_key": "none", "max_retries": 0}
    whole = litellm.completion(messages=HI, max_tokens=30, seed=1, **to)
    assert whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 30
    chunks = list(
        litellm.completion(
            messages=HI, max_tokens=30, seed=1, stream=True, stream_options={"include_usage": True}, **to
        )
    )
    rebuilt = litellm.stream_chunk_builder(chunks, messages=HI)
    assert rebuilt.choices[0].message.content == whole.choices[0].message.content
    assert rebuilt.usage.completion_tokens == 30

    called = litellm.completion(messages=HI, tools=[TOOL], tool_choice="required", max_tokens=200, seed=1, **to)
    call = called.choices[0].message.tool_calls[0]
    assert call.function.name == "report" and json.loads(call.function.arguments)["city"] in ("Bern", "Genf")

    shape = {"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMA, "strict": True}}
    shaped = litellm.completion(messages=HI, response_format=shape, max_tokens=200, seed=1, **to)
    assert json.loads(shaped.choices[0].message.content)["city"] in ("Bern", "Genf")

    response = litellm.responses(input="Hello", max_output_tokens=20, **to)
    assert response.status == "incomplete" and response.usage.output_tokens == 20

    text = {**to, "model": "text-completion-openai/tiny"}
    assert litellm.text_completion(prompt="Once", max_tokens=5, **text).choices[0].text is not None
    vectors = litellm.embedding(input=["a", "b"], **to).data
    assert [len(one["embedding"]) for one in vectors] == [64, 64]

    for wrong, kind in (
        ({"temperature": 9}, litellm.BadRequestError),
        ({"model": "openai/nope"}, litellm.NotFoundError),
    ):
        try:
            litellm.completion(messages=HI, max_tokens=3, **{**to, **wrong})
        except kind as error:
            assert getattr(error, "status_code", 0) in (400, 404)
        else:
            raise AssertionError(f"{wrong} was accepted")


if __name__ == "__main__":
    main()
