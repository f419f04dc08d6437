"""The engine process: loads the model, then steps while there is work and sleeps on its socket while there is none.

`python -m rookery.server.engine.process`, started by `spawn.py` with the settings as one line of JSON on standard
input. That pipe stays open as the lifeline: when it closes, the parent is gone and this process ends at once, in the
middle of whatever it does. SIGINT and SIGTERM are the parent's business: a terminal or a service manager sends them to
every process of the group, and streams must be able to finish.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Literal, cast

import msgspec
import zmq

from ..errors import InvalidRequest, NotReady, RookeryError, StartupError
from ..logs import configure_logging
from .heap import Heap
from .messages import (
    HEARTBEAT_S,
    Accepted,
    Answered,
    Ask,
    Cancel,
    Failed,
    FromEngine,
    Hello,
    Progress,
    Ready,
    Refused,
    Settings,
    Step,
    Stop,
    Submit,
    ToEngine,
    decode_to_engine,
    encode,
)
from .questions import Question, Told
from .request import TokenEvent

if TYPE_CHECKING:  # what loads takes a while to import: the socket answers before it is there
    from .engine import Engine

logger = logging.getLogger("rookery.engine")

_IDLE_MS = int(HEARTBEAT_S * 500)
"""With nothing to run the process sleeps on its socket, and wakes to see whether a heartbeat is due."""
_HELD_MS = 5
"""Pause between steps that find nothing to run: a request waits for its grammar to compile."""


@dataclass(slots=True)
class _Owner:
    """Where a request came from, and how many of its choices have not ended."""

    peer: bytes
    choices: int


class EngineServer:
    """An engine, or one that is still loading, behind a ROUTER socket."""

    def __init__(self, endpoint: str) -> None:
        self.engine: Engine | None = None
        self.stopped = False
        self._announcement: FromEngine = Progress("loading")
        """What is told to a peer that says hello."""
        self._peers: set[bytes] = set()
        self._owners: dict[str, _Owner] = {}
        """By request id."""
        self._beat_at = monotonic()
        self._heap = Heap()
        self._rested_at = 0
        """Steps made when it last shrank."""
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # sending to a peer that is gone is an error, not silence
        self._socket.setsockopt(zmq.SNDHWM, 0)  # nothing is dropped; requests in flight bound what can pile up
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.LINGER, 1000)
        self._socket.bind(endpoint)

    def close(self) -> None:
        self._socket.close()
        self._context.term()

    def announce(self, message: FromEngine) -> None:
        """Tell every peer where the engine stands, and those that come later."""
        self._announcement = message
        self.poll(0)
        for peer in tuple(self._peers):
            self._send(peer, message)

    def run(self) -> None:
        """Serve until a peer says stop.

        Raises:
            Exception: the engine is beyond repair (`Engine.step`).
        """
        wait_ms = _IDLE_MS
        while True:
            self.poll(wait_ms)
            if self.stopped:
                return
            assert self.engine is not None
            steps = self.engine.steps
            events = self.engine.step()
            self._report(events)
            wait_ms = _IDLE_MS
            if self.engine.busy:
                wait_ms = 0 if events or self.engine.steps != steps else _HELD_MS

    def wait_for_stop(self, timeout_s: float) -> None:
        end = monotonic() + timeout_s
        while not self.stopped and monotonic() < end:
            self.poll(100)

    def poll(self, wait_ms: int) -> None:
        """Handle every message that is there; wait so long for the first."""
        if not self._socket.poll(wait_ms):
            return
        while True:
            try:
                peer, data = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._peers.add(peer)
            try:
                message = decode_to_engine(data)
            except msgspec.DecodeError as error:
                logger.error("a message could not be read: %s", error)
                continue
            self._handle(peer, message)

    def _handle(self, peer: bytes, message: ToEngine) -> None:
        match message:
            case Hello():
                self._send(peer, self._announcement)
            case Submit(request):
                try:
                    if self.engine is None:
                        raise NotReady("the model is still loading", retry_after_s=1)
                    if request.id in self._owners:  # also where it has ended, but its events are not sent yet
                        raise InvalidRequest(f"a request with the id {request.id!r} is running")
                    self.engine.submit(request)
                except RookeryError as error:
                    self._send(peer, Refused.because(request.id, error))
                else:
                    self._owners[request.id] = _Owner(peer, request.choices)
                    self._send(peer, Accepted(request.id))
            case Cancel(request_id, choice):
                owner = self._owners.get(request_id)
                if self.engine is not None and owner is not None and owner.peer == peer:
                    self.engine.cancel(request_id, choice)
            case Ask(number, question):
                self._ask(peer, number, question)
            case Stop():
                self.stopped = True

    def _ask(self, peer: bytes, number: int, question: Question) -> None:
        """Have a question answered, now or later."""

        def answer(told: Told | RookeryError) -> None:
            if isinstance(told, RookeryError):
                self._send(peer, Answered(number, refused=Refused.because("", told)))
            else:
                self._send(peer, Answered(number, told))

        if self.engine is None or self.engine.sessions is None:
            answer(NotReady("the model is still loading", retry_after_s=1))
        else:
            self.engine.sessions.ask(question, answer, owner=peer)

    def _report(self, events: list[TokenEvent]) -> None:
        """Give each peer the events of its requests in one message; all of them a heartbeat when it is due."""
        assert self.engine is not None
        due = monotonic() - self._beat_at >= HEARTBEAT_S
        if not events and not due:
            return
        by_peer: defaultdict[bytes, list[TokenEvent]] = defaultdict(list)
        for event in events:
            owner = self._owners[event.request_id]
            by_peer[owner.peer].append(event)
            if event.finish is not None:
                owner.choices -= 1
                if not owner.choices:
                    del self._owners[event.request_id]
        if due:
            self._beat_at = monotonic()
        stats = self.engine.stats()
        if due:
            self._heap.give_back(stats.cache_evictions + stats.session_evictions)
            self._rest()
        for peer in tuple(self._peers) if due else tuple(by_peer):
            self._send(peer, Step.pack(stats, by_peer[peer]))

    def _rest(self) -> None:
        """Once there is nothing to do any more, shrink: a server may wait for hours."""
        assert self.engine is not None
        if not self.engine.busy and self.engine.steps != self._rested_at:
            self._rested_at = self.engine.steps
            self.engine.rest()
            self._heap.trim()

    def _send(self, peer: bytes, message: FromEngine) -> None:
        if peer not in self._peers:
            return
        try:
            self._socket.send_multipart([peer, encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self._forget(peer)

    def _forget(self, peer: bytes) -> None:
        """A peer is gone: nobody will read what its requests would get."""
        self._peers.discard(peer)
        mine = [request_id for request_id, owner in self._owners.items() if owner.peer == peer]
        logger.warning("an API process is gone; its %d requests are cancelled", len(mine))
        for request_id in mine:
            if self.engine is not None:
                self.engine.cancel(request_id)
        if self.engine is not None and self.engine.sessions is not None:
            self.engine.sessions.forget(peer)


def load(settings: Settings, server: EngineServer) -> None:
    """Load the model into the server's engine, with progress to whoever listens.

    Raises:
        StartupError: the model, a state or the tokenizer cannot be used.
    """
    from rookery import __version__
    from rookery.kernels.cpu.threads import set_threads
    from rookery.server.text.grammar import grammar_limits
    from rookery.server.text.tokenizer import load_tokenizer

    from ..model.load import exactly, load_model
    from ..model.native import NativeModel
    from ..state.disk import DiskTier
    from ..state.snapshot import StateFormat
    from ..state.store import StateStore
    from ..state.worker import Worker
    from .constraint import Constraints
    from .engine import Engine

    if settings.threads is not None:
        set_threads(settings.threads)
    told = 0.0

    def progress(share: float) -> None:
        nonlocal told
        if share - told >= 0.01:
            told = share
            server.announce(Progress("loading", share))

    path = Path(settings.model_path)
    model, info = load_model(
        path,
        dtype=settings.dtype,
        quantize=settings.quantize,
        device=settings.device,
        slot_dtype=settings.slot_dtype,
        states={name: Path(file) for name, file in settings.states.items()},
        progress=progress,
    )
    native = isinstance(model, NativeModel)
    if settings.exact:
        model = exactly(model)
    info = replace(info, max_batch=settings.max_batch)
    server.announce(Progress("warming_up", info=info))
    tokenizer_path = Path(settings.tokenizer) if settings.tokenizer is not None else None
    tokenizer = load_tokenizer(tokenizer_path, model_path=path, vocab_size=info.vocab_size)
    made_by = info.fingerprint, info.dtype, info.device, str(settings.exact and not native)
    constraints = Constraints(lambda: tokenizer.llguidance, limits=grammar_limits())
    try:
        engine = Engine(
            model,
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            prefill_budget=settings.prefill_budget,
            step_target_s=settings.step_target_s,
            constraints=constraints,
            cache_bytes=settings.cache_bytes,
            identity=" ".join([*made_by, tokenizer.fingerprint, settings.state_dtype, __version__]),
        )
    except (MemoryError, RuntimeError) as error:  # torch says RuntimeError when an allocation fails
        needed = settings.max_batch * info.state_bytes
        raise StartupError(
            f"no memory for the states of {settings.max_batch} sequences ({needed / 2**20:.0f} MiB)",
            "set a smaller --max-batch",
        ) from error
    engine.forward.check()
    if not native:
        from .warm_up import warm_up

        warm_up(engine, lambda share: server.announce(Progress("warming_up", share)))
    format = StateFormat.of(model.shape, fingerprint=info.fingerprint, tokenizer=tokenizer.fingerprint)
    store = StateStore(
        Path(settings.data_dir) if settings.data_dir is not None else None,
        format,
        dtype=settings.state_dtype,
        memory_bytes=settings.session_memory_bytes,
    )
    engine.attach(
        store,
        max_sessions=settings.max_sessions,
        hot_bytes=settings.session_memory_bytes if settings.data_dir is not None else 0,
        session_ttl_s=settings.session_ttl_s,
    )
    if settings.data_dir is not None and settings.cache_disk_bytes:
        engine.keep_on(  # the store, which came first, has the folder's lease
            DiskTier(
                Path(settings.data_dir) / "prefixes",
                settings.cache_disk_bytes,
                format,
                dtype=settings.state_dtype,
                worker=Worker("prefix states"),
            )
        )
    server.engine = engine
    server.announce(Ready(info, engine.stats()))


def main() -> int:
    gc.disable()  # until all is loaded, of which nothing is garbage
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    settings = msgspec.json.decode(sys.stdin.buffer.readline(), type=Settings)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    configure_logging(cast(Literal["text", "json"], settings.log_format))
    server = EngineServer(settings.endpoint)
    try:
        load(settings, server)
        gc.collect()
        gc.enable()
        gc.freeze()  # what is loaded stays: no collection in the middle of a stream need look at it again
        server.run()
    except StartupError as error:
        server.announce(Failed(error.cause, error.mend, error.exit_code))
        server.wait_for_stop(10)
        return error.exit_code
    finally:
        if server.engine is not None:
            server.engine.close()
        server.close()
    return 0


def _end_with_parent() -> None:
    """Block until the lifeline closes."""
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # all is closed: what the interpreter would now spend on taking all apart is wasted
