"""LangChain's chat model for OpenAI, pointed at this server: pip install langchain-openai"""

import os

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

base_url = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
api_key = os.environ.get("OPENAI_API_KEY", "none")
chat = ChatOpenAI(base_url=base_url, api_key=api_key, model=os.environ.get("MODEL", "gosling"), max_tokens=64)

messages = [SystemMessage("You are friendly and brief."), HumanMessage("Hello! My name is Ada.")]
for chunk in chat.stream(messages):
    print(chunk.content, end="", flush=True)
print()

answers = chat.batch(["What is 2 + 2?", "Count to three."])
print(*(answer.content for answer in answers), sep="\n")
