"""LangChain: chat, streaming, structured output, tools, embeddings."""

from __future__ import annotations

import asyncio
import os

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

URL = f"{os.environ['ROOKERY_URL']}/v1"
MODEL = "tiny"


class Weather(BaseModel):
    """The weather of a city."""

    city: str = Field(pattern="^(Bern|Genf)$")
    degrees: int = Field(ge=-9, le=40)


def report(city: str) -> str:
    """Tell the weather of a city."""
    return f"rain in {city}"


def main() -> None:
    chat = ChatOpenAI(base_url=URL, model=MODEL, max_tokens=40, seed=1, stream_usage=True)
    answer = chat.invoke("Hello")
    assert isinstance(answer.content, str) and answer.content
    assert answer.usage_metadata is not None and answer.usage_metadata["output_tokens"] > 0
    chunks = list(chat.stream("Hello"))
    assert "".join(str(chunk.content) for chunk in chunks) == answer.content
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) > 0
    assert len(asyncio.run(chat.abatch(["a", "b", "c"]))) == 3

    limited = ChatOpenAI(base_url=URL, model=MODEL, max_tokens=300, seed=1)
    # strict: an open object is one that a model without sense never closes
    for method in ("json_schema", "function_calling"):
        found = limited.with_structured_output(Weather, method=method, strict=True).invoke("Weather?")
        assert isinstance(found, Weather), found

    forced = limited.bind_tools([Weather], tool_choice="Weather", strict=True, parallel_tool_calls=False)
    said = forced.invoke("Weather?")
    assert isinstance(said, AIMessage) and said.tool_calls[0]["name"] == "Weather", said
    history = [HumanMessage("Weather?"), said, ToolMessage("noted", tool_call_id=said.tool_calls[0]["id"])]
    assert chat.bind_tools([Weather, tool(report)]).invoke(history).content is not None

    scored = chat.bind(logprobs=True, top_logprobs=2).invoke("Hello")
    assert scored.response_metadata["logprobs"]["content"]

    assert OpenAI(base_url=URL, model=MODEL, max_tokens=8, seed=1).invoke("Once") != ""

    responding = ChatOpenAI(base_url=URL, model=MODEL, max_tokens=20, use_responses_api=True)
    first = responding.invoke("Hello")
    assert first.text and first.usage_metadata is not None and first.usage_metadata["output_tokens"] == 20
    assert "".join(chunk.text for chunk in responding.stream("Hello"))
    assert responding.invoke("And now?", previous_response_id=first.response_metadata["id"]).text

    embeddings = OpenAIEmbeddings(base_url=URL, model=MODEL, check_embedding_ctx_length=False)
    vectors = embeddings.embed_documents([f"text {number}" for number in range(70)])
    assert len(vectors) == 70 and len(vectors[0]) == 64
    assert max(abs(a - b) for a, b in zip(embeddings.embed_query("text 3"), vectors[3], strict=True)) < 1e-4


if __name__ == "__main__":
    main()
