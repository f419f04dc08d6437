"""A real server whose disk fills up, whose folder is taken away, whose files are damaged."""

from __future__ import annotations

import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from .server_process import MODEL, ServerProcess, server_process
from .test_state_store import DAMAGES


def post(server: ServerProcess, path: str, **body: object) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json={"model": MODEL, **body}, timeout=60)


def turn(server: ServerProcess, prompt: str, **fields: object) -> httpx.Response:
    """A turn of the session "s"; nothing of it is by chance."""
    return post(
        server, "/v1/completions", prompt=prompt, max_tokens=4, temperature=0, ignore_eos=True, session_id="s", **fields
    )


def state(server: ServerProcess) -> tuple[int, bytes]:
    """The session's tokens, and its state as a file."""
    tokens: int = httpx.get(f"{server.url}/v1/sessions/s", timeout=60).json()["tokens"]
    return tokens, httpx.get(f"{server.url}/v1/sessions/s/state", timeout=60).content


@contextmanager
def full_disk(server: ServerProcess, size_bytes: int) -> Iterator[None]:
    """No file of the server's may grow beyond a size: for these, each write fails as on a full disk."""
    pids = [one.pid for one in server.processes()]
    before = [resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids]
    for pid, (_, hard) in zip(pids, before, strict=True):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        for pid, limits in zip(pids, before, strict=True):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


@contextmanager
def lost_folder(folder: Path) -> Iterator[None]:
    """A folder that is not there for a while."""
    aside = folder.with_name("aside")
    folder.rename(aside)
    try:
        yield
    finally:
        aside.rename(folder)


def assert_refused(answer: httpx.Response) -> None:
    error: dict[str, Any] = answer.json()["error"]
    assert answer.status_code == 507 and error["code"] == "storage_failed" and "/" not in error["message"], answer.text


def serves_on(server: ServerProcess) -> None:
    """What needs no disk goes on."""
    assert post(server, "/v1/completions", prompt="rooks and ravens " * 9, max_tokens=3).status_code == 200
    assert post(server, "/v1/responses", input="hello", max_output_tokens=3, store=False).status_code == 200
    assert server.is_ready()


@pytest.mark.timeout(300)
def test_a_disk_that_fails_costs_turns_and_nothing_else(tmp_path: Path) -> None:
    data = tmp_path / "data"
    flags = ("--data-dir", str(data), "--chat-template", "g1")
    with server_process(tmp_path, *flags) as server:
        assert turn(server, "one rook").status_code == 200
        stored = post(server, "/v1/responses", input="hello", max_output_tokens=3).json()["id"]
        before = state(server)
        faults = [full_disk(server, size) for size in (0, 1000, 9000)] + [lost_folder(data / "states")]
        for fault in faults:
            with fault:
                assert_refused(turn(server, "two rooks"))
                with httpx.stream(
                    "POST",
                    f"{server.url}/v1/completions",
                    json={"model": MODEL, "prompt": "x", "max_tokens": 2, "session_id": "s", "stream": True},
                    timeout=60,
                ) as answer:
                    lines = [line for line in answer.iter_lines() if line]
                assert any("storage_failed" in line for line in lines), lines
                serves_on(server)
            assert state(server) == before
        with full_disk(server, 0):
            assert_refused(
                post(server, "/v1/responses", input="more", previous_response_id=stored, max_output_tokens=3)
            )
        assert httpx.get(f"{server.url}/v1/responses/{stored}", timeout=60).status_code == 200
        assert turn(server, "three rooks").status_code == 200
        after = state(server)
        assert after[0] == before[0] + len("three rooks") + 4
        for one in server.processes():
            one.kill()
        server.process.wait(30)
    with server_process(tmp_path, *flags) as server:
        assert state(server) == after
        goes_on = post(server, "/v1/responses", input="more", previous_response_id=stored, max_output_tokens=3)
        assert goes_on.status_code == 200
        assert "damaged" not in server.log and "missing" not in server.log
        assert server.stop() == 0


@pytest.mark.timeout(300)
def test_files_damaged_in_every_way_cost_their_own_sessions(tmp_path: Path) -> None:
    data = tmp_path / "data"
    flags = ("--data-dir", str(data))
    ids = [f"s{number}" for number in range(len(DAMAGES))]
    with server_process(tmp_path, *flags) as server:
        for id in [*ids, "well"]:
            assert (
                post(server, "/v1/completions", prompt=f"this is {id}", max_tokens=2, session_id=id).status_code == 200
            )
        well = exported(server, "well").content
        assert server.stop() == 0
    with sqlite3.connect(data / "index.sqlite") as index:
        blobs = dict(index.execute("select id, blob from sessions").fetchall())
    index.close()
    for id, damage in zip(ids, DAMAGES, strict=True):
        path = data / "states" / blobs[id]
        whole = path.read_bytes()
        path.write_bytes(damage(whole))
        if path.read_bytes() == whole:  # what it would change is not in this model's files
            path.write_bytes(whole[:-1])
    with server_process(tmp_path, *flags) as server:
        for id in ids:
            answer = post(server, "/v1/completions", prompt="go on", max_tokens=2, session_id=id)
            for refused in (answer, exported(server, id)):
                assert refused.status_code == 410 and refused.json()["error"]["code"] == "session_damaged"
        assert exported(server, "well").content == well
        for id in ids[:3]:
            assert httpx.delete(f"{server.url}/v1/sessions/{id}", timeout=60).status_code == 200
            assert post(server, "/v1/completions", prompt="anew", max_tokens=2, session_id=id).status_code == 200
        assert post(server, "/v1/completions", prompt="go on", max_tokens=2, session_id="well").status_code == 200
        assert server.metric("rookery_sessions_damaged_total") >= len(ids)
        assert not Path("/tmp/pickled").exists() and server.stop() == 0


def exported(server: ServerProcess, id: str) -> httpx.Response:
    return httpx.get(f"{server.url}/v1/sessions/{id}/state", timeout=60)
