"""What `rookery serve` shows at a terminal: how loading goes on, then what is served, where, and how to ask it.

Where stderr is no terminal, log lines say the same.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from rookery import __version__

from .config import Config
from .engine.client import EngineClient
from .engine.request import EngineInfo
from .resolve import ResolvedModel
from .served_model import ServedModel

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
_PHASES = {"loading": "reading the weights", "warming_up": "warming up"}

DEMO = "a small demonstration model: it chats and remembers what it is told, but knows next to nothing of the world"


@dataclass(frozen=True, slots=True)
class Screen:
    """The terminal that the server was started from.

    port: the one that was taken, which need not be the one that was asked for.
    """

    console: Console
    config: Config
    model: ResolvedModel
    port: int

    async def follow(self, engine: EngineClient, loading: asyncio.Task[ServedModel]) -> None:
        """Show how far the model is until it is ready, or never will be."""
        columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
        with Progress(*columns, console=self.console, transient=True, refresh_per_second=4) as progress:
            bar = progress.add_task("starting the engine", total=None)
            while not loading.done():
                status = engine.status
                what = _PHASES.get(status.phase, status.phase)
                progress.update(bar, description=what, total=1.0 if status.progress else None)
                progress.update(bar, completed=status.progress or 0.0)
                await asyncio.wait([loading], timeout=0.1)

    def show(self, info: EngineInfo) -> None:
        """The banner."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold")
        table.add_column()
        for name, value in self._rows(info):
            table.add_row(name, Text(value))
        self.console.print()
        self.console.print(Text(f"Rookery {__version__}", style="bold green"))
        self.console.print(table)
        self.console.print()
        self.console.print(Text(self._curl()), soft_wrap=True)
        self.console.print()

    @property
    def _url(self) -> str:
        host = _WILDCARDS.get(self.config.host.strip("[]"), self.config.host)
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return f"http://{host}:{self.port}"

    @property
    def _needs_key(self) -> bool:
        return bool(self.config.api_key or self.config.api_key_file)

    def _rows(self, info: EngineInfo) -> list[tuple[str, str]]:
        names = ", ".join(self.config.served_model_name)
        all_states = info.max_batch * info.state_bytes
        access = "with an API key" if self._needs_key else "no key needed"
        if self.config.host.strip("[]") in _WILDCARDS:
            access += ", reachable from other machines"
        rows = [
            ("model", f"{names} ({self.model.origin})"),
            ("", f"RWKV-{info.version}, {_count(info.parameters)} parameters, {info.dtype} on {info.device}"),
            ("weights", _size(info.weight_bytes)),
            ("chats", f"{_size(info.state_bytes)} each, at any length; {info.max_batch} at once ({_size(all_states)})"),
            ("API", f"{self._url}/v1 ({access})"),
            ("web chat", f"{self._url}/"),
            ("reference", f"{self._url}/docs"),
            ("terminal", f"{command()} chat --base-url {self._url}"),
        ]
        if self.model.demo:
            rows.insert(1, ("", f"{DEMO}. `{command()} pull` lists real ones"))
        return rows

    def _curl(self) -> str:
        body = {"model": self.config.served_model_name[0], "messages": [{"role": "user", "content": "Hello!"}]}
        quoted = json.dumps(body).replace("'", "'\\''")
        key = ' -H "Authorization: Bearer $ROOKERY_API_KEY"' if self._needs_key else ""
        return f"curl {self._url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{quoted}'"


def command() -> str:
    """How `rookery` is called from here: by its name alone only where the shell finds it."""
    if shutil.which("rookery"):
        return "rookery"
    own = Path(sys.executable).with_name("rookery")
    if not own.is_file():
        return "python -m rookery.server"
    return str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own)


def _count(number: int) -> str:
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return str(number)


def _size(size_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.2f} GiB"
