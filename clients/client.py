"""A small client of any OpenAI-compatible server: model list and streamed chats, on the standard library alone."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

_CONNECT_S = 10.0
_SILENCE_S = 600.0
"""A long prompt may keep a server silent for minutes before its first token."""


class ServerError(Exception):
    """The server cannot be reached, or refuses; the message says which, and with what words.

    Args:
        status: HTTP status of a refusal.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of an answer; `thought` when it is reasoning and not the answer itself."""

    text: str
    thought: bool = False


@dataclass(slots=True)
class Measures:
    """What one answer took, by the client's clock."""

    ttft_s: float | None = None
    """From sending the request to the first text."""
    total_s: float = 0.0
    prompt_tokens: int | None = None
    cached_tokens: int = 0
    """Prompt tokens the server had in a stored state."""
    completion_tokens: int | None = None
    chunks: int = 0
    """Text chunks: stands in for the tokens when the server does not count them."""
    finish: str | None = None

    @property
    def tokens_per_s(self) -> float | None:
        """Of the decode alone: tokens after the first over the time after the first."""
        tokens = self.completion_tokens or self.chunks
        if self.ttft_s is None or tokens < 2 or self.total_s <= self.ttft_s:
            return None
        return (tokens - 1) / (self.total_s - self.ttft_s)


class Client:
    """One server.

    Args:
        base_url: with or without `/v1`.
        api_key: sent as a bearer token.
    """

    def __init__(self, base_url: str, api_key: str | None = None) -> None:
        parts = urlsplit(base_url if "://" in base_url else f"http://{base_url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServerError(f"{base_url} is not the address of a server")
        self.base_url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"
        self._headers = {"Content-Type": "application/json", "User-Agent": "rookery-chat"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def models(self) -> list[dict[str, Any]]:
        """The server's models, as it lists them.

        Raises:
            ServerError: it cannot be reached, or lists none.
        """
        with self._open("/models", None, _CONNECT_S) as answer:
            try:
                models: list[dict[str, Any]] = json.load(answer)["data"]
            except (ValueError, KeyError, TypeError) as error:
                raise ServerError(f"{self.base_url}/models is not a list of models") from error
        if not models:
            raise ServerError(f"{self.base_url} has no model")
        return models

    def chat(
        self, model: str, messages: Sequence[Mapping[str, str]], options: Mapping[str, Any], measures: Measures
    ) -> Generator[Piece, None, None]:
        """The answer as it arrives; closing the generator early closes the connection, which cancels the answer.

        Args:
            options: more fields of the request's body.
            measures: filled while the answer is read.

        Raises:
            ServerError: refused, or broken off.
        """
        body = {"model": model, "messages": list(messages), "stream": True, **options}
        start = time.perf_counter()
        with self._stream(body) as answer:
            try:
                for chunk in _events(answer):
                    piece = _read(chunk, measures)
                    measures.total_s = time.perf_counter() - start
                    if piece is not None:
                        measures.chunks += 1
                        if measures.ttft_s is None:
                            measures.ttft_s = measures.total_s
                        yield piece
            except (OSError, HTTPException) as error:
                raise ServerError(f"the connection broke: {error or type(error).__name__}") from error

    def _stream(self, body: dict[str, Any]) -> HTTPResponse:
        try:
            return self._open("/chat/completions", body | {"stream_options": {"include_usage": True}}, _SILENCE_S)
        except ServerError as error:
            if "stream_options" not in str(error):
                raise
            return self._open("/chat/completions", body, _SILENCE_S)  # an older server, which counts nothing

    def _open(self, path: str, body: object, timeout_s: float) -> HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base_url + path, data, self._headers)
        try:
            answer: HTTPResponse = urllib.request.urlopen(request, timeout=timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                raise ServerError(f"HTTP {error.code}: {_message(error.read(65536))}", status=error.code) from error
        except (OSError, HTTPException, ValueError) as error:
            raise ServerError(f"no answer from {self.base_url}: {getattr(error, 'reason', error)}") from error
        return answer


def _message(body: bytes) -> str:
    """The words of an error body, OpenAI's or any other."""
    text = body.decode("utf-8", "replace").strip()
    try:
        value = json.loads(text)
    except ValueError:
        return "a page, not an answer of an OpenAI-compatible API" if text.startswith("<") else text[:500]
    error = value.get("error", value) if isinstance(value, dict) else value
    return str(error.get("message", error) if isinstance(error, dict) else error)[:500]


def _events(answer: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON events of a stream."""
    for line in answer:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        try:
            chunk = json.loads(data)
        except ValueError as error:
            raise ServerError("the stream holds something that is not JSON") from error
        if "error" in chunk:
            raise ServerError(_message(data))
        yield chunk


def _read(chunk: Mapping[str, Any], measures: Measures) -> Piece | None:
    """The text of a chunk, with its counts noted."""
    if usage := chunk.get("usage"):
        measures.prompt_tokens = usage.get("prompt_tokens")
        measures.completion_tokens = usage.get("completion_tokens")
        measures.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    for choice in chunk.get("choices") or ():
        measures.finish = choice.get("finish_reason") or measures.finish
        delta = choice.get("delta") or {}
        if thought := delta.get("reasoning_content") or delta.get("reasoning"):
            return Piece(str(thought), thought=True)
        if content := delta.get("content"):
            return Piece(str(content))
    return None
