"""Answers that fit a schema: the server lets the model write nothing that does not."""

import json
import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
schema = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["glad", "sad", "angry", "calm"]},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
        "urgent": {"type": "boolean"},
    },
    "required": ["mood", "stars", "urgent"],
    "additionalProperties": False,
}
reply = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[{"role": "user", "content": "Rate this review: The parcel came late, but the lamp is lovely."}],
    response_format={"type": "json_schema", "json_schema": {"name": "rating", "schema": schema, "strict": True}},
    temperature=0,
)
rating = json.loads(reply.choices[0].message.content)
print(f"{rating['mood']}, {rating['stars']} stars{', urgent' if rating['urgent'] else ''}")
