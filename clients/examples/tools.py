"""Tools: the model asks for a function, the program runs it and gives the result back. The arguments always fit the
function's schema, because the server lets the model write nothing else."""

import json
import os

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
model = client.models.list().data[0].id


def temperature(city: str, unit: str) -> str:
    celsius = {"Paris": 18, "Oslo": 7}[city]
    return f"{celsius if unit == 'celsius' else celsius * 9 / 5 + 32:g} degrees {unit}"


tools = [
    {
        "type": "function",
        "function": {
            "name": "temperature",
            "description": "The temperature in a city right now.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"enum": ["Paris", "Oslo"]},
                    "unit": {"enum": ["celsius", "fahrenheit"]},
                },
                "required": ["city", "unit"],
                "additionalProperties": False,
            },
        },
    }
]
messages = [{"role": "user", "content": "How warm is it in Oslo?"}]
reply = client.chat.completions.create(
    model=model, messages=messages, tools=tools, tool_choice="required", parallel_tool_calls=False, temperature=0
)
message = reply.choices[0].message
messages.append({"role": "assistant", "tool_calls": [call.model_dump() for call in message.tool_calls]})
for call in message.tool_calls:
    result = temperature(**json.loads(call.function.arguments))
    print(f"{call.function.name}({call.function.arguments}) = {result}")
    messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
reply = client.chat.completions.create(model=model, messages=messages, max_tokens=64)
print(reply.choices[0].message.content)
