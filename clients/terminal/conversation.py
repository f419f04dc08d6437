"""A conversation as a list of messages, with branches; kept by the client, so that it works with any server."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path

_FORMAT = "rookery-chat"
_ROLES = ("system", "user", "assistant")


class ConversationError(Exception):
    """What was asked for is not possible; the message says why."""


@dataclass(slots=True)
class Conversation:
    """Branches by name, one of them current; a branch is its messages in OpenAI's shape."""

    branches: dict[str, list[dict[str, str]]] = field(default_factory=lambda: {"main": []})
    current: str = "main"

    @property
    def messages(self) -> list[dict[str, str]]:
        """Of the current branch; to be changed in place."""
        return self.branches[self.current]

    @property
    def system(self) -> str | None:
        """The system prompt."""
        first = self.messages[:1]
        return first[0]["content"] if first and first[0]["role"] == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        rest = [message for message in self.messages if message["role"] != "system"]
        self.messages[:] = ([{"role": "system", "content": text}] if text else []) + rest

    @property
    def turns(self) -> int:
        """Questions asked in the current branch."""
        return sum(message["role"] == "user" for message in self.messages)

    def say(self, role: str, content: str) -> None:
        """Add a message."""
        self.messages.append({"role": role, "content": content})

    def undo(self) -> str:
        """Take back the last question and its answer; the question.

        Raises:
            ConversationError: nothing was asked yet.
        """
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index]["role"] == "user":
                question = self.messages[index]["content"]
                del self.messages[index:]
                return question
        raise ConversationError("there is nothing to take back")

    def reset(self) -> None:
        """Forget the messages of this branch, but not the system prompt."""
        self.messages[:] = [message for message in self.messages if message["role"] == "system"]

    def fork(self, name: str | None = None) -> str:
        """Go on in a copy, which leaves this branch as it is; the copy's name.

        Raises:
            ConversationError: the name is taken.
        """
        if name is None:
            name = next(free for n in range(1, 10**9) if (free := f"fork-{n}") not in self.branches)
        if name in self.branches:
            raise ConversationError(f"there is a branch {name} already")
        self.branches[name] = copy.deepcopy(self.messages)
        self.current = name
        return name

    def switch(self, name: str) -> None:
        """Make another branch the current one.

        Raises:
            ConversationError: there is none of this name.
        """
        if name not in self.branches:
            raise ConversationError(f"there is no branch {name}; there are: {', '.join(self.branches)}")
        self.current = name

    def save(self, path: Path) -> None:
        """Write every branch to a JSON file; an existing file is replaced whole or not at all.

        Raises:
            ConversationError: it cannot be written.
        """
        document = {"format": _FORMAT, "current": self.current, "branches": self.branches}
        draft = path.with_name(f"{path.name}.part")
        try:
            draft.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            draft.replace(path)
        except OSError as error:
            raise ConversationError(f"{path} cannot be written: {error.strerror}") from error

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """Read what `save` wrote.

        Raises:
            ConversationError: it cannot be read, or is something else.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConversationError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ConversationError(f"{path} is not a saved conversation") from error
        if not _is_saved(document):
            raise ConversationError(f"{path} is not a saved conversation")
        return cls(document["branches"], document["current"])


def _is_saved(document: object) -> bool:
    """Whether this is what `save` writes."""
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        return False
    branches = document.get("branches")
    return (
        isinstance(branches, dict)
        and document.get("current") in branches
        and all(
            isinstance(messages, list)
            and all(
                isinstance(message, dict)
                and message.get("role") in _ROLES
                and isinstance(message.get("content"), str)
                and len(message) == 2
                for message in messages
            )
            for messages in branches.values()
        )
    )
