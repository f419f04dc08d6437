"""`rookery sessions`: what a running server holds, over its own HTTP routes."""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from .errors import StartupError

app = App(name="sessions", help="List, copy, move and delete the sessions of a running server.")

PAGE = 1000


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where the server is."""

    base_url: str = "http://127.0.0.1:8000"
    """Where it listens."""
    api_key: Annotated[str | None, Parameter(env_var="OPENAI_API_KEY")] = None
    """Whose sessions; sent as a bearer token."""

    def ask(self, method: str, path: str, body: bytes | None = None, *, kind: str = "application/json") -> bytes:
        """The body of a successful answer.

        Raises:
            StartupError: the server refuses, or there is none.
        """
        request = urllib.request.Request(f"{self.base_url.rstrip('/')}{path}", data=body, method=method)
        if body is not None:
            request.add_header("Content-Type", kind)
        if self.api_key is not None:
            request.add_header("Authorization", f"Bearer {self.api_key}")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                data: bytes = answer.read()
                return data
        except urllib.error.HTTPError as error:
            with error:
                raise StartupError(_reason(error), "rookery sessions list shows what there is") from error
        except OSError as error:
            raise StartupError(f"no server at {self.base_url}: {error}", "give --base-url") from error

    def json(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """The same as JSON."""
        data = None if body is None else json.dumps(body).encode()
        answer: dict[str, Any] = json.loads(self.ask(method, path, data))
        return answer


@app.command(name="list")
def list_sessions(*, server: Server | None = None) -> int:
    """List all sessions of the key.

    Args:
        server: Server.
    """
    server = server or Server()
    table = Table("id", "turns", "tokens", "bytes", "updated", "forked from")
    after, more = "", True
    while more:
        page = server.json("GET", f"/v1/sessions?{urlencode({'limit': PAGE, 'after': after})}")
        for one in page["data"]:
            updated = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["updated"]))
            numbers = (str(one[name]) for name in ("turns", "tokens", "bytes"))
            table.add_row(one["id"], *numbers, updated, one["forked_from"] or "")
        after, more = page["last_id"], page["has_more"]
    Console().print(table)
    return 0


@app.command
def show(session: str, /, *, server: Server | None = None) -> int:
    """Print what is known of a session, as JSON.

    Args:
        session: Its id.
        server: Server.
    """
    print(json.dumps((server or Server()).json("GET", _path(session)), indent=2))
    return 0


@app.command
def export(session: str, file: Path, /, *, server: Server | None = None) -> int:
    """Write a session's state to a safetensors file.

    Args:
        session: Its id.
        file: Where to; "-" is standard output.
        server: Server.
    """
    data = (server or Server()).ask("GET", f"{_path(session)}/state")
    if str(file) == "-":
        sys.stdout.buffer.write(data)
    else:
        file.write_bytes(data)
    return 0


@app.command(name="import")
def import_session(session: str, file: Path, /, *, server: Server | None = None) -> int:
    """Make an exported state a session; one of that name is replaced.

    Args:
        session: Its id.
        file: What `export` wrote.
        server: Server.
    """
    if not file.is_file():
        raise StartupError(f"there is no file {file}", "give a file that `rookery sessions export` wrote")
    answer = (server or Server()).ask(
        "PUT", f"{_path(session)}/state", file.read_bytes(), kind="application/octet-stream"
    )
    print(json.dumps(json.loads(answer), indent=2))
    return 0


@app.command
def fork(session: str, new: str | None = None, /, *, server: Server | None = None) -> int:
    """Copy a session; prints the new one.

    Args:
        session: Its id.
        new: Id of the copy; default: the server makes one.
        server: Server.
    """
    body = {} if new is None else {"id": new}
    print(json.dumps((server or Server()).json("POST", f"{_path(session)}/fork", body), indent=2))
    return 0


@app.command
def delete(session: str, /, *, server: Server | None = None) -> int:
    """Delete a session.

    Args:
        session: Its id.
        server: Server.
    """
    (server or Server()).json("DELETE", _path(session))
    return 0


def _path(session: str) -> str:
    return f"/v1/sessions/{quote(session, safe='')}"


def _reason(error: urllib.error.HTTPError) -> str:
    """The server's own words."""
    try:
        return f"HTTP {error.code}: {json.loads(error.read(10_000))['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"HTTP {error.code}"
