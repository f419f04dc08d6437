"""The Responses API: an answer goes on from an earlier one, named by its id, so a request holds the new message alone.
The server keeps each answer with its state; two questions to the same answer are two branches."""

import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
model = client.models.list().data[0].id

first = client.responses.create(model=model, input="Hello! My name is Ada.", max_output_tokens=64)
print(f"> Hello! My name is Ada.\n{first.output_text}")

answers = [first.id]
for question in ("What is my name?", "Tell me about rooks."):
    print(f"> {question}")
    stream = client.responses.create(
        model=model, input=question, previous_response_id=first.id, max_output_tokens=64, stream=True
    )
    for event in stream:
        if event.type == "response.output_text.delta":
            print(event.delta, end="", flush=True)
        elif event.type in ("response.completed", "response.incomplete"):  # incomplete: it came to its last token
            answers.append(event.response.id)
            usage = event.response.usage
            cached = usage.input_tokens_details.cached_tokens
            print(f"\n({usage.input_tokens} tokens of context, {cached} of them from a stored state)")

for id in answers:
    client.responses.delete(id)
