"""Threads shared between tenants: nobody waits for more than his own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future

import pytest

from rookery.server.engine.lanes import Lanes


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    made = Lanes(2, "test")
    yield made
    made.close()


def test_what_one_tenant_has_piled_up_does_not_delay_another(lanes: Lanes) -> None:
    gate = threading.Event()
    piled = [lanes.submit("a", gate.wait) for _ in range(20)]
    assert lanes.submit("b", lambda: 7).result(timeout=60) == 7
    assert not any(future.done() for future in piled)
    gate.set()
    assert all(future.result(timeout=60) for future in piled)


def test_tenants_take_turns_and_each_keeps_its_order(lanes: Lanes) -> None:
    """With a third tenant on the other thread, what the two wait for runs one by one."""
    gates = {tenant: threading.Event() for tenant in "xy"}
    held = [lanes.submit(tenant, gates[tenant].wait) for tenant in "xy"]
    done: list[str] = []
    waiting: list[Future[None]] = []
    for tenant, name in [("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("c", "c1"), ("b", "b2")]:
        waiting.append(lanes.submit(tenant, lambda name=name: done.append(name)))  # type: ignore[misc]
    gates["x"].set()
    for future in waiting:
        future.result(timeout=60)
    assert done == ["a1", "b1", "c1", "a2", "b2", "a3"]
    gates["y"].set()
    assert all(future.result(timeout=60) for future in held)


def test_errors_reach_who_waits_and_the_threads_go_on(lanes: Lanes) -> None:
    with pytest.raises(ZeroDivisionError):
        lanes.submit("a", lambda: 1 // 0).result(timeout=60)
    assert lanes.submit("a", lambda: 1).result(timeout=60) == 1


def test_closing_cancels_what_waits(lanes: Lanes) -> None:
    begun, gate = threading.Event(), threading.Event()

    def work() -> bool:
        begun.set()
        return gate.wait()

    running, waiting = lanes.submit("a", work), lanes.submit("a", lambda: 1)
    assert begun.wait(timeout=60)
    closing = threading.Thread(target=lanes.close)
    closing.start()
    with pytest.raises(CancelledError):
        waiting.result(timeout=60)
    gate.set()
    closing.join()
    assert running.result() is True
    assert lanes.submit("a", lambda: 1).cancelled()
