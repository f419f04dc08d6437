"""The engine behind its socket, in a thread of this process with the toy model: peers, heartbeat, clean-up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from rookery.server.engine.engine import Engine
from rookery.server.engine.messages import (
    Accepted,
    Cancel,
    Failed,
    FromEngine,
    Hello,
    Ready,
    Refused,
    Step,
    Stop,
    Submit,
    ToEngine,
    decode_from_engine,
    decode_to_engine,
    encode,
)
from rookery.server.engine.process import EngineServer
from rookery.server.engine.request import EngineStats, Request, SamplingParams, TokenEvent, TokenLogprobs
from rookery.server.errors import InvalidRequest, QueueFull

from .fake_engine import BYTE_MODEL
from .tiny_model import ToyModel


class Peer:
    """An API process, as the engine sees it."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)
        self.say(Hello())

    def say(self, message: ToEngine) -> None:
        self.socket.send(encode(message))

    def hear(self) -> FromEngine:
        if not self.socket.poll(20_000):
            raise AssertionError("the engine says nothing")
        return decode_from_engine(self.socket.recv())

    def hear_until(self, done: Callable[[FromEngine], bool]) -> list[FromEngine]:
        heard = [self.hear()]
        while not done(heard[-1]):
            heard.append(self.hear())
        return heard

    def events_until(self, *request_ids: str) -> list[TokenEvent]:
        """Every event up to the one with which the last of the requests ends."""
        events: list[TokenEvent] = []
        missing = set(request_ids)
        while missing:
            message = self.hear()
            if isinstance(message, Step):
                events += message.unpack()
                missing -= {event.request_id for event in events if event.finish}
        return events


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[], Peer]]:
    """A server with two slots in a thread; calling it gives a new peer."""
    server = EngineServer(f"ipc://{tmp_path}/engine")
    context = zmq.Context()
    peers = [Peer(context, f"ipc://{tmp_path}/engine")]

    def main() -> None:
        server.engine = Engine(ToyModel(), max_batch=2, max_queue=2, prefill_budget=16)
        server.announce(Ready(BYTE_MODEL, server.engine.stats()))
        server.run()
        server.close()

    def peer() -> Peer:
        peers.append(Peer(context, f"ipc://{tmp_path}/engine"))
        return peers[-1]

    thread = threading.Thread(target=main)
    thread.start()
    yield peer
    peers[0].say(Stop())
    thread.join(30)
    assert not thread.is_alive()
    context.destroy(linger=0)


def request(id: str, max_tokens: int = 3, **more: object) -> Request:
    return Request(id=id, prompt_ids=(1, 2, 3), sampling=SamplingParams(max_tokens=max_tokens, temperature=0), **more)  # type: ignore[arg-type]


def test_each_peer_hears_of_its_own_requests(serve: Callable[[], Peer]) -> None:
    peers = [serve(), serve()]
    for name, peer in zip("ab", peers, strict=True):
        assert isinstance(peer.hear_until(lambda message: isinstance(message, Ready))[-1], Ready)
        peer.say(Submit(request(name)))
    for name, peer in zip("ab", peers, strict=True):
        events = peer.events_until(name)
        assert [event.request_id for event in events] == [name] * 3
        assert [event.finish for event in events] == [None, None, "length"]


def test_an_idle_engine_keeps_speaking(serve: Callable[[], Peer]) -> None:
    peer = serve()
    heard = peer.hear_until(lambda message: isinstance(message, Step))
    assert heard[-1] == Step(EngineStats(slots_free=2))


def test_refusals_name_the_error(serve: Callable[[], Peer]) -> None:
    peer = serve()
    peer.say(Submit(request("three", choices=3)))
    (refused,) = [m for m in peer.hear_until(lambda m: isinstance(m, Refused)) if isinstance(m, Refused)]
    error = refused.error()
    assert type(error) is InvalidRequest and error.param == "n" and "1 to 2" in error.message
    for index in range(4):
        peer.say(Submit(request(f"r{index}", 10_000)))
    peer.say(Submit(request("full")))
    refused = next(m for m in peer.hear_until(lambda m: isinstance(m, Refused)) if isinstance(m, Refused))
    assert type(refused.error()) is QueueFull and refused.request_id == "full"
    assert refused.error().retry_after_s == 1


def test_a_peer_cancels_its_own_requests_only(serve: Callable[[], Peer]) -> None:
    owner, other = serve(), serve()
    owner.say(Submit(request("r", 2**30)))
    owner.hear_until(lambda message: isinstance(message, Accepted))
    other.say(Cancel("r"))
    other.say(Submit(request("r", 1)))  # the id is taken
    other.hear_until(lambda message: isinstance(message, Refused))
    owner.say(Cancel("r"))
    assert owner.events_until("r")[-1].finish == "cancelled"
    other.say(Submit(request("r", 1)))
    assert other.events_until("r")[-1].finish == "length"


def test_a_peer_that_is_gone_leaves_no_request_behind(serve: Callable[[], Peer]) -> None:
    gone, stays = serve(), serve()
    gone.say(Submit(request("r", 2**30, choices=2)))
    gone.hear_until(lambda message: isinstance(message, Accepted))
    gone.socket.close(linger=0)
    stays.say(Submit(request("next", 1)))  # runs as soon as the slots are free
    assert stays.events_until("next")[-1].finish == "length"


def test_what_is_no_message_is_ignored(serve: Callable[[], Peer], caplog: pytest.LogCaptureFixture) -> None:
    peer = serve()
    for nonsense in (b"\x00", b"\xc1", b"\x92\xa4Stop", encode(Hello())[:-1], b"\x91\xa5Shell"):
        peer.socket.send(nonsense)
    peer.say(Submit(request("r", 1)))
    assert peer.events_until("r")[-1].finish == "length"
    assert caplog.text.count("could not be read") == 5


def test_messages_survive_the_wire() -> None:
    sampling = SamplingParams(max_tokens=3, logit_bias={5: -100.0}, seed=2**63, stop_token_ids=(0, 261))
    submit = Submit(Request(id="r", prompt_ids=(1, 65535), sampling=sampling, choices=2, tenant="t"))
    assert decode_to_engine(encode(submit)) == submit
    events = [
        TokenEvent("r", 0, 17),
        TokenEvent("r", 1, 18, "stop", TokenLogprobs(-0.5, ((18, -0.5), (3, -2.0)))),
        TokenEvent("s", 0, 4, cached_tokens=12, prompt_logprobs=(None, TokenLogprobs(-1.0))),
        TokenEvent("s", 1, None, "error", error="the step failed"),
    ]
    step = Step.pack(EngineStats(running=2), events)
    assert len(step.tokens) == 1
    got = decode_from_engine(encode(step))
    assert isinstance(got, Step) and list(got.unpack()) == events
    failed = decode_from_engine(encode(Failed("cause", "mend", 2)))
    assert isinstance(failed, Failed)
    error = failed.error()
    assert (error.cause, error.mend, error.exit_code) == ("cause", "mend", 2)
    with pytest.raises(msgspec.DecodeError):
        decode_to_engine(encode(step))
