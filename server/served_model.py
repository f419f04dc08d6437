"""The loaded model as the HTTP side knows it: its names, its text, and what the engine said of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .config import Config
from .engine.request import EngineInfo
from .text.chat_template import ChatTemplate, load_template
from .text.tokenizer import Tokenizer, load_tokenizer


def served_names(config: Config, model_path: Path) -> tuple[str, ...]:
    """Names clients may use for the model; the first is the one reported."""
    return config.served_model_name or (model_path.stem if model_path.suffix else model_path.name,)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """What requests are checked against, written with and read by."""

    names: tuple[str, ...]
    info: EngineInfo
    tokenizer: Tokenizer
    template: ChatTemplate
    longest_token: int
    """Bytes of the longest token: a text of n characters has at least n / longest_token tokens."""
    uncounted_ids: tuple[int, ...]
    """Tokens that decaying penalties do not count."""

    @classmethod
    def load(cls, config: Config, model_path: Path, info: EngineInfo) -> ServedModel:
        """Read tokenizer and template; takes a moment, so not on the event loop.

        Raises:
            StartupError: a file is missing or unusable.
        """
        tokenizer = load_tokenizer(config.tokenizer, model_path=model_path, vocab_size=info.vocab_size)
        tokenizer.encode(" ")  # has it make now what it makes for its first text
        return cls(
            names=served_names(config, model_path),
            info=info,
            tokenizer=tokenizer,
            template=load_template(
                config.chat_template, model_path=model_path, version=info.version, vocab_size=info.vocab_size
            ),
            longest_token=max(len(tokenizer.token_bytes(id)) for id in range(tokenizer.vocab_size)) or 1,
            uncounted_ids=tuple(id for id in range(tokenizer.vocab_size) if _uncounted(tokenizer.token_bytes(id))),
        )

    @property
    def vocab_size(self) -> int:
        """Ids below it can be drawn: they have text and a row in the head."""
        return min(self.tokenizer.vocab_size, self.info.vocab_size)

    @property
    def system_fingerprint(self) -> str:
        """`system_fingerprint` of every answer: equal weights answer equally."""
        return f"fp_{self.info.fingerprint[:12]}"


def _uncounted(token: bytes) -> bool:
    """Space, tab and digits, as the reference has it (`generate` of the `rwkv` package): numbers and layout repeat."""
    return len(token) > 0 and token in b" \t0123456789"
