"""Sessions: the server keeps the state of a conversation, so a request holds the new message alone. A session can be
forked, saved to a file and loaded again; its state has the same size at any length."""

import os
import uuid

import httpx
from openai import OpenAI

base_url = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
api_key = os.environ.get("OPENAI_API_KEY", "none")
name = f"ada-{uuid.uuid4().hex[:8]}"
home = {"x-session-id": name}  # for a proxy before several servers: the session and its forks are on one of them
client = OpenAI(base_url=base_url, api_key=api_key, default_headers=home)
sessions = httpx.Client(
    base_url=f"{base_url}/sessions", headers={"Authorization": f"Bearer {api_key}", **home}, timeout=60
)
model = client.models.list().data[0].id


def ask(session: str, question: str) -> None:
    reply = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=32,
        extra_body={"session_id": session},
    )
    cached = reply.usage.prompt_tokens_details.cached_tokens
    print(f"{session}> {question}\n{reply.choices[0].message.content}")
    print(f"({reply.usage.prompt_tokens} tokens of context, {cached} of them in the state)")


ask(name, "Hello! My name is Ada.")
ask(name, "What is my name?")

fork = f"{name}-fork"
sessions.post(f"/{name}/fork", json={"id": fork}).raise_for_status()
ask(fork, "Forget that. Call me Grace.")  # the first session does not hear of it

state = sessions.get(f"/{name}/state").raise_for_status().content
for session in (name, fork):
    shown = sessions.get(f"/{session}").raise_for_status().json()
    print(f"{session}: {shown['turns']} turns, {shown['tokens']} tokens, {shown['bytes']} bytes")
    sessions.delete(f"/{session}").raise_for_status()

kind = {"Content-Type": "application/octet-stream"}
sessions.put(f"/{name}/state", content=state, headers=kind).raise_for_status()  # on this server or another
ask(name, "Who am I?")
sessions.delete(f"/{name}").raise_for_status()
