"""`serve`: takes the port, runs the application until a signal, and says how it ended.

SIGTERM or SIGINT: new requests are refused at once, running ones get `shutdown_grace` seconds and then end with an
error event, the engine stops, exit code 0. A second signal cuts the rest short.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import resource
import socket
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI
from rich.console import Console

from .app import create_app
from .banner import Screen
from .config import Config
from .edge.host import HostGuard, is_loopback
from .edge.limits import Limits
from .edge.protocol import edge_protocol
from .engine.client import EngineClient
from .engine.spawn import EngineProcess
from .errors import NotReady, StartupError
from .resolve import ResolvedModel
from .telemetry import traced

log = logging.getLogger("rookery.server")

_LAST_WORDS_S = 2.0
"""After the grace: how long the last events may take to be written out."""


def serve(config: Config, model: ResolvedModel, listener: socket.socket, first: EngineProcess) -> int:
    """Serve `model` until SIGTERM or SIGINT; the exit code.

    Args:
        listener: of `config`'s address.
        first: the engine process, started with `config` and `model`; it is ended in any case.

    Raises:
        StartupError: the keys cannot be read, or the model cannot be loaded.
    """
    config = dataclasses.replace(config, served_model_name=config.served_model_name or (model.name,))
    engine = EngineClient(config, model.path, first)
    try:
        return _serve(config, model, listener, engine)
    finally:
        engine.discard()


def _serve(config: Config, model: ResolvedModel, listener: socket.socket, engine: EngineClient) -> int:
    app = create_app(config, engine, demo=model.demo)
    keyed = bool(config.api_key) or config.api_key_file is not None
    allow_descriptors(config.max_connections)
    with traced(app if keyed else HostGuard(app, config.allowed_host)) as handler:
        settings = uvicorn.Config(
            handler,
            http=edge_protocol(Limits.of(config)),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=config.max_connections,
        )
        host, port = listener.getsockname()[:2]
        screen = Screen(Console(stderr=True), config, model, port) if sys.stderr.isatty() else None
        server = Server(settings, app, config.shutdown_grace, screen if config.log_format == "text" else None)
        address = f"[{host}]" if ":" in host else host
        log.info("listening on http://%s:%d, model %s (%s)", address, port, config.served_model_name[0], model.origin)
        if not is_loopback(config.host) and not keyed:
            log.warning("%s is reachable by others and no API key is set", config.host)
        server.run(sockets=[listener])
    if server.failure is not None:
        raise server.failure
    return 0


def allow_descriptors(connections: int) -> None:
    """Raise the soft limit of open files, usually 1024, to what so many connections need; as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + 256
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Server(uvicorn.Server):
    """uvicorn's server with our way to stop.

    Attributes:
        failure: why the engine could not start; the server stops with it.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, grace_s: float, screen: Screen | None = None) -> None:
        super().__init__(config)
        self.failure: StartupError | None = None
        self._state = app.state
        self._grace_s = grace_s
        self._screen = screen

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal stops in order, the second at once. uvicorn would raise it again and so spoil the exit
        code."""
        self.force_exit = self.should_exit
        self.should_exit = True
        self._state.gate.closed = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # what is loaded stays: no collection in the middle of a stream need look at it again
        self._watch = asyncio.create_task(self._watch_loading())

    async def _watch_loading(self) -> None:
        """Stop when the model cannot be loaded."""
        try:
            if self._screen is not None:
                await self._screen.follow(self._state.engine, self._state.loading)
            info = (await self._state.loading).info
        except StartupError as error:
            self.failure = error
            self.should_exit = True
        except NotReady:
            log.info("stopped before the model was loaded")
        else:
            log.info(
                "ready: RWKV-%s, %.3g parameters, %s on %s, %d slots of %d bytes of state",
                info.version, info.parameters, info.dtype, info.device, info.max_batch, info.state_bytes,
            )  # fmt: skip
            if self._screen is not None:
                self._screen.show(info)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse, let finish, end the rest with an error event, close what is left."""
        log.info("stopping: new requests are refused, %d connections are open", len(self.server_state.connections))
        self._state.gate.closed = True
        for connection in list(self.server_state.connections):
            connection.shutdown()
        closing = asyncio.create_task(self._state.engine.close(0.0 if self.failure else self._grace_s))
        while not closing.done():
            await asyncio.wait([closing], timeout=0.1)
            if self.force_exit:
                await self._state.engine.close(0.0)
        await self._settle(_LAST_WORDS_S)
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()  # idle or half-sent since the start, or a client that does not read
        await self._settle(_LAST_WORDS_S)
        for task in list(self.server_state.tasks):
            task.cancel()
        self._watch.cancel()
        await self.lifespan.shutdown()
        log.info("stopped")

    async def _settle(self, seconds: float) -> None:
        """Wait until no request is under way; for so long at most, and not after a second signal."""
        deadline = asyncio.get_running_loop().time() + seconds
        while (tasks := list(self.server_state.tasks)) and not self.force_exit:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return
            await asyncio.wait(tasks, timeout=min(left, 0.1))
