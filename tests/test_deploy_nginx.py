"""A real nginx, with the configuration of the compose file, in front of two real servers."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from .server_process import MODEL, ServerProcess, server_process
from .test_deploy_files import ROOT

pytestmark = pytest.mark.deploy


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def nginx(folder: Path, servers: list[ServerProcess]) -> Iterator[str]:
    """Its address; the configuration differs from the shipped one in names and ports only."""
    text = (ROOT / "docker/nginx/nginx.conf").read_text()
    for name, server in zip(("rookery", "rookery-2"), servers, strict=True):
        text = text.replace(f"server {name}:8000 ", f"server 127.0.0.1:{server.port} ")
    port = free_port()
    text = text.replace("listen 8080;", f"listen 127.0.0.1:{port};").replace("/tmp/", f"{folder}/")
    config = folder / "nginx.conf"
    config.write_text(text)
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    process = subprocess.Popen([program, "-e", "stderr", "-c", str(config), "-g", "daemon off;"])
    try:
        while process.poll() is None:
            try:
                httpx.get(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except httpx.TransportError:
                time.sleep(0.05)
        assert process.poll() is None, "nginx does not start"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[ServerProcess]]]:
    with ExitStack() as stack:
        servers = [
            stack.enter_context(server_process(tmp_path_factory.mktemp("server"), "--max-batch", "8")) for _ in range(2)
        ]
        yield stack.enter_context(nginx(tmp_path_factory.mktemp("nginx"), servers)), servers


def completions(server: ServerProcess) -> float:
    return server.metric("rookery_requests_total", endpoint="/v1/completions", status="200")


def complete(url: str, session: str | None) -> None:
    headers = {"x-session-id": session} if session else {}
    body = {"model": MODEL, "prompt": "hi", "max_tokens": 1}
    httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=60).raise_for_status()


def test_a_session_stays_on_one_server(setup: tuple[str, list[ServerProcess]]) -> None:
    url, servers = setup
    homes = []
    for session in (f"s{number}" for number in range(8)):
        before = [completions(server) for server in servers]
        for _ in range(4):
            complete(url, session)
        gained = [completions(server) - was for server, was in zip(servers, before, strict=True)]
        assert sorted(gained) == [0, 4]
        homes.append(gained.index(4))
    assert set(homes) == {0, 1}  # not all on the same


def test_a_session_and_its_forks_are_on_one_server(setup: tuple[str, list[ServerProcess]]) -> None:
    """The header leads there and names the session; a fork is named in the body, under the same header."""
    url, _ = setup
    for home in (f"home{number}" for number in range(6)):
        complete(url, home)
        with httpx.Client(base_url=f"{url}/v1", headers={"x-session-id": home}, timeout=60) as client:
            client.post(f"/sessions/{home}/fork", json={"id": f"{home}-fork"}).raise_for_status()
            body = {"model": MODEL, "prompt": "hi", "max_tokens": 1, "session_id": f"{home}-fork"}
            for _ in range(2):
                client.post("/completions", json=body).raise_for_status()
            turns = [client.get(f"/sessions/{id}").raise_for_status().json()["turns"] for id in (home, f"{home}-fork")]
        assert turns == [1, 3]


def test_requests_without_a_session_go_to_both(setup: tuple[str, list[ServerProcess]]) -> None:
    url, servers = setup
    before = [completions(server) for server in servers]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: complete(url, None), range(40)))
    assert all(completions(server) > was for server, was in zip(servers, before, strict=True))


def test_tokens_pass_as_they_come(setup: tuple[str, list[ServerProcess]]) -> None:
    """The first ones are here while the answer is far from its end."""
    url, servers = setup
    body = {"model": MODEL, "prompt": "hi", "max_tokens": 20_000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
        assert answer.status_code == 200
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        for _ in range(5):
            next(lines)
        assert sum(server.metric("rookery_requests_running") for server in servers) == 1
        assert sum(server.metric("rookery_generated_tokens_total") for server in servers) < 20_000
    for server in servers:
        server.wait_idle(within_s=15)  # nginx tells the server that the client has left


def test_errors_and_ids_pass_unchanged(setup: tuple[str, list[ServerProcess]]) -> None:
    url, _ = setup
    answer = httpx.get(f"{url}/v1/nothing", headers={"x-request-id": "mine-1"}, timeout=60)
    assert answer.status_code == 404 and answer.json()["error"]["message"]
    assert answer.headers["x-request-id"] == "mine-1"
    assert httpx.get(f"{url}/metrics", timeout=60).status_code == 404
    assert re.fullmatch(r"nginx", answer.headers["server"])


def test_a_server_that_is_gone_costs_no_request(setup: tuple[str, list[ServerProcess]]) -> None:
    url, servers = setup
    servers[1].stop()
    for number in range(8):
        complete(url, f"s{number}")
