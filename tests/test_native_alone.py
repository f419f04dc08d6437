"""A server on a processor does all it can do without PyTorch: from the file to the answer, in neither process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from rookery.kernels.cpu.library import library
from rookery.server.model.convert import convert

from .server_process import launched, write_world

if library() is None:
    pytest.skip("the native library is not built here", allow_module_level=True)

MESSAGES = [{"role": "user", "content": "What is 2 + 3?"}]
SCHEMA = {"type": "object", "properties": {"n": {"type": "boolean"}}, "required": ["n"], "additionalProperties": False}
REQUESTS: dict[str, dict[str, Any]] = {
    "completions": {
        "prompt": "Once",
        "max_tokens": 8,
        "logprobs": 5,
        "n": 2,
        "typical_p": 0.9,
        "frequency_penalty": 0.5,
    },
    "completions, echoed": {"prompt": "Once upon", "max_tokens": 8, "echo": True, "logprobs": 1},
    "chat/completions": {"messages": MESSAGES, "max_tokens": 8, "logprobs": True, "top_logprobs": 20, "top_p": 0.8},
    "chat/completions, in a form": {
        "messages": MESSAGES,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}},
        "max_tokens": 40,
    },
    "chat/completions, of a session": {"messages": MESSAGES, "session_id": "s", "max_tokens": 8},
    "chat/completions, and its next turn": {"messages": MESSAGES, "session_id": "s", "max_tokens": 8},
    "responses": {"input": "Hello", "max_output_tokens": 8},
    "embeddings": {"input": ["one", "two"]},
}


@pytest.mark.parametrize("model", ["the built-in one", "packed"])
def test_no_process_of_a_server_loads_torch(model: str, tmp_path: Path) -> None:
    path = tmp_path / "packed.safetensors"
    if model == "packed":
        convert(write_world(tmp_path), path, packed="int8")
    arguments = ["serve", *([str(path)] if model == "packed" else []), "--served-model-name", "m"]
    with launched(tmp_path, *arguments, "--port", "0", "--data-dir", str(tmp_path / "data")) as server:
        server.wait_ready()
        with httpx.Client(base_url=f"{server.url}/v1", timeout=60) as http:
            for request, body in REQUESTS.items():
                answer = http.post(f"/{request.partition(',')[0]}", json={"model": "m", **body})
                assert answer.status_code == 200, (request, answer.text)
            assert http.get("/sessions/s/state").status_code == 200
        for process in server.processes():
            mapped = Path(f"/proc/{process.pid}/maps").read_text()
            assert "python" in mapped and "libtorch" not in mapped
