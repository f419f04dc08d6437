"""`rookery chat`: talk to any OpenAI-compatible server from a terminal.

The conversation lives here and is sent in full with every question, as the API asks for; a server that keeps states
finds its own again. Ctrl-C stops the answer, Ctrl-D leaves.
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .client import Client, Measures, ServerError
from .terminal.conversation import Conversation, ConversationError
from .terminal.markdown import AnswerView, printable
from .terminal.prompt import line_reader, read_question

_SETTINGS = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "max_tokens": int,
    "seed": int,
    "presence_penalty": float,
    "frequency_penalty": float,
    "reasoning_effort": str,
}
"""What `/set` takes, and its type."""
_LOADING_S = 300.0


class Chat:
    """One run of the program.

    Args:
        model: None takes the server's first.
        options: fields of every request beside the messages.
        read_line: shows a prompt and returns a line; raises EOFError at the end.
    """

    def __init__(
        self,
        client: Client,
        console: Console,
        read_line: Callable[[str], str],
        *,
        model: str | None = None,
        system: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._client = client
        self._console = console
        self._read_line = read_line
        self._models = _models(client)
        names = [printable(str(entry.get("id"))) for entry in self._models]
        if model is not None and model not in names:
            raise ServerError(f"{client.base_url} has no model {model}; it has: {', '.join(names)}")
        self._names = names
        self._model = model or names[0]
        self._options = dict(options or {})
        self._conversation = Conversation()
        self._conversation.system = system
        self._last = Measures()
        self._tokens = 0
        self._commands = {
            name.removeprefix("_do_"): method
            for name, method in inspect.getmembers(self, inspect.ismethod)
            if name.startswith("_do_")
        }

    def run(self) -> None:
        """Ask and answer until the input ends."""
        if self._console.is_terminal:
            self._say(f"{self._model} at {self._client.base_url}. /help shows the commands, Ctrl-D leaves.")
        while True:
            try:
                question = read_question(self._read_line, self._prompt()).strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                self._console.print()
                continue
            if question in ("/quit", "/exit"):
                return
            if question.startswith("/"):
                self._command(question)
            elif question:
                self.ask(question)

    def ask(self, question: str) -> bool:
        """One question and its answer; false when the server gave none, and then the question is taken back."""
        self._conversation.say("user", question)
        self._last = measures = Measures()
        answer: list[str] = []
        try:
            pieces = self._client.chat(self._model, self._conversation.messages, self._options, measures)
            with closing(pieces), AnswerView(self._console) as view:
                for piece in pieces:
                    view.show(piece.text, thought=piece.thought)
                    if not piece.thought:
                        answer.append(piece.text)
        except KeyboardInterrupt:
            measures.finish = "stopped"
            self._say("stopped")
        except ServerError as error:
            self._complain(str(error))
            self._conversation.undo()
            return False
        self._tokens += measures.completion_tokens or measures.chunks
        if answer:
            self._conversation.say("assistant", "".join(answer))
        else:
            self._conversation.undo()
            self._complain("the answer is empty; the question is taken back")
        if measures.finish == "length":
            self._say("cut at the token limit; /set max_tokens=… raises it")
        return True

    def _prompt(self) -> str:
        branch = self._conversation.current
        return "> " if branch == "main" else f"{branch}> "

    def _say(self, text: str) -> None:
        self._console.print(Text(printable(text), style="dim"))

    def _complain(self, text: str) -> None:
        self._console.print(Text(printable(text), style="red"))

    def _command(self, line: str) -> None:
        """Run `/name argument`."""
        name, _, argument = line[1:].partition(" ")
        command = self._commands.get(name)
        if command is None:
            self._complain(f"there is no command /{name}; /help shows them")
            return
        try:
            command(argument.strip())
        except (ConversationError, ServerError) as error:
            self._complain(str(error))

    def _do_help(self, argument: str) -> None:
        """show this"""
        table = Table.grid(padding=(0, 2))
        for name, method in self._commands.items():
            table.add_row(f"/{name}", inspect.getdoc(method) or "")
        table.add_row("/quit", "leave; Ctrl-D does too")
        table.add_row("\\", 'at the end of a line goes on in the next one; so does text between two """')
        table.add_row("Ctrl-C", "stops the answer; what has come of it stays in the conversation")
        self._console.print(table)

    def _do_system(self, argument: str) -> None:
        """[TEXT | -]: set the system prompt; - removes it, nothing shows it"""
        if argument:
            self._conversation.system = None if argument == "-" else argument
        self._say(f"system prompt: {self._conversation.system or 'none'}")

    def _do_reset(self, argument: str) -> None:
        """forget this branch's messages; the system prompt stays"""
        self._conversation.reset()
        self._say("forgotten")

    def _do_undo(self, argument: str) -> None:
        """take back the last question and its answer"""
        self._say(f"taken back: {self._conversation.undo()}")

    def _do_retry(self, argument: str) -> None:
        """ask the last question again"""
        self.ask(self._conversation.undo())

    def _do_fork(self, argument: str) -> None:
        """[NAME]: go on in a copy; this branch stays as it is"""
        self._say(f"now in {self._conversation.fork(argument or None)}")

    def _do_branches(self, argument: str) -> None:
        """list the branches"""
        for name in self._conversation.branches:
            self._say(f"{'*' if name == self._conversation.current else ' '} {name}")

    def _do_switch(self, argument: str) -> None:
        """NAME: go on in another branch"""
        self._conversation.switch(argument)
        self._say(f"now in {argument}, after {self._conversation.turns} questions")

    def _do_save(self, argument: str) -> None:
        """FILE: write every branch as JSON"""
        if not argument:
            raise ConversationError("/save needs a file name")
        self._conversation.save(Path(argument).expanduser())
        self._say(f"saved to {argument}")

    def _do_load(self, argument: str) -> None:
        """FILE: take a saved conversation in place of this one"""
        if not argument:
            raise ConversationError("/load needs a file name")
        self._conversation = Conversation.load(Path(argument).expanduser())
        self._say(f"{len(self._conversation.branches)} branches, {self._conversation.turns} questions in this one")

    def _do_model(self, argument: str) -> None:
        """[NAME]: change the model, or list them"""
        if argument and argument not in self._names:
            raise ConversationError(f"there is no model {argument}; there are: {', '.join(self._names)}")
        self._model = argument or self._model
        for name in self._names:
            self._say(f"{'*' if name == self._model else ' '} {name}")

    def _do_set(self, argument: str) -> None:
        """[NAME=VALUE]: a sampling setting; without a value the server's default again"""
        name, _, value = (part.strip() for part in argument.partition("="))
        if name and name not in _SETTINGS:
            raise ConversationError(f"there is no setting {name}; there are: {', '.join(_SETTINGS)}")
        if name:
            self._options.pop(name, None)
            if value:
                self._options[name] = _value(name, value)
        self._say(", ".join(f"{name}={value}" for name, value in self._options.items()) or "the server's defaults")

    def _do_stats(self, argument: str) -> None:
        """what the last answer took, and what the server keeps of this chat"""
        table = Table.grid(padding=(0, 2))
        for name, value in self._stats():
            table.add_row(name, printable(value))
        self._console.print(table)

    def _stats(self) -> list[tuple[str, str]]:
        last = self._last
        counted = last.completion_tokens is not None
        rows = [
            ("time to first token", "-" if last.ttft_s is None else f"{last.ttft_s * 1000:.0f} ms"),
            ("speed", "-" if last.tokens_per_s is None else f"{last.tokens_per_s:.1f} tokens/s"),
            ("answer", f"{last.completion_tokens if counted else last.chunks} {'tokens' if counted else 'pieces'}"),
        ]
        if last.prompt_tokens is not None:
            rows.append(("prompt", f"{last.prompt_tokens} tokens, {last.cached_tokens} from a stored state"))
        rows += [("ended by", last.finish or "-"), ("answers so far", f"{self._tokens} tokens")]
        entry = next((entry for entry in self._models if entry.get("id") == self._model), {})
        meta = entry.get("meta")
        if isinstance(meta, dict) and isinstance(meta.get("state_bytes"), int):
            rows.append(("memory of this chat", f"{meta['state_bytes'] / 1e6:.2f} MB on the server, at any length"))
        return rows


def _models(client: Client) -> list[dict[str, Any]]:
    """The server's models; one that was just started says 503 until it has loaded them, and is waited for.

    Raises:
        ServerError: it cannot be reached, lists none, or takes too long.
    """
    deadline = time.monotonic() + _LOADING_S
    told = False
    while True:
        try:
            return client.models()
        except ServerError as error:
            if error.status != 503 or time.monotonic() > deadline:
                raise
            if not told:
                print(f"{printable(str(error))}; waiting for it", file=sys.stderr)
            told = True
        time.sleep(0.5)


def _value(name: str, text: str) -> object:
    kind = _SETTINGS[name]
    try:
        return kind(text)
    except ValueError as error:
        raise ConversationError(f"{name} is a number, not {text}") from error


def talk(
    base_url: str,
    api_key: str | None,
    *,
    question: str | None = None,
    model: str | None = None,
    system: str | None = None,
    options: Mapping[str, Any],
) -> int:
    """The program: one question when there is one, else questions until the input ends; the exit code.

    Raises:
        ServerError: there is no such server, or it has no such model.
    """
    reader = line_reader(sys.stdin.isatty() and sys.stdout.isatty())
    chat = Chat(Client(base_url, api_key), Console(), reader, model=model, system=system, options=options)
    if question is not None:
        return 0 if chat.ask(question) else 1
    chat.run()
    return 0
