"""A chat with OpenAI's Python package, unchanged: the answer streams, and the next question builds on it."""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
model = client.models.list().data[0].id
messages = []

for question in ("Hello! My name is Ada.", "What is my name?"):
    print(f"> {question}")
    messages.append({"role": "user", "content": question})
    answer = ""
    stream = client.chat.completions.create(
        model=model, messages=messages, max_tokens=64, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        if chunk.choices and (text := chunk.choices[0].delta.content):
            answer += text
            print(text, end="", flush=True)
        if chunk.usage:
            cached = chunk.usage.prompt_tokens_details.cached_tokens
            print(f"\n({chunk.usage.prompt_tokens} prompt tokens, {cached} of them from a stored state)")
    messages.append({"role": "assistant", "content": answer})
