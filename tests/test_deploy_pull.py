"""`rookery pull` and `rookery serve hf:…` against a hub of our own on the loopback address."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from rookery.server.pull import aliases

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """The few routes that a download takes.

    Attributes:
        files: bytes by `org/repo/name`.
        broken_after: a download is cut off once after so many bytes.
        ranges: `Range` headers seen.
        lie: the digest it gives is another file's.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Routes)
        self.files: dict[str, bytes] = {}
        self.broken_after: int | None = None
        self.ranges: list[str] = []
        self.lie = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Routes(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0]).strip("/")
        if match := re.fullmatch(r"api/models/([^/]+/[^/]+)(/revision/[^/]+)?", path):
            self._info(match[1])
        elif match := re.fullmatch(r"([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            self._file(f"{match[1]}/{match[2]}")
        elif match := re.fullmatch(r"api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            self._tree(match[1])
        else:
            self._missing("RepoNotFound")

    def _tree(self, repository: str) -> None:
        prefix = f"{repository}/"
        entries = [
            {"type": "file", "path": name.removeprefix(prefix), "size": len(content), "oid": "0" * 40}
            for name, content in self.server.files.items()
            if name.startswith(prefix)
        ]
        self._send(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})

    def _info(self, repository: str) -> None:
        prefix = f"{repository}/"
        names = [name.removeprefix(prefix) for name in self.server.files if name.startswith(prefix)]
        if not names:
            self._missing("RepoNotFound")
            return
        siblings = [{"rfilename": name, "size": len(self.server.files[prefix + name])} for name in names]
        document = {"id": repository, "sha": COMMIT, "siblings": siblings}
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str) -> None:
        content = self.server.files.get(name)
        if content is None:
            known = any(other.rsplit("/", 1)[0] == name.rsplit("/", 1)[0] for other in self.server.files)
            self._missing("EntryNotFound" if known else "RepoNotFound")
            return
        digest = hashlib.sha256(content + b"x" * self.server.lie).hexdigest()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        if self.command == "GET" and (given := self.headers.get("Range")):
            self.server.ranges.append(given)
            start = int(given.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._send(206, content[start:], headers)
        else:
            self._send(200, content, headers)

    def _missing(self, code: str) -> None:
        self._send(404, b"", {"X-Error-Code": code})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if "ETag" in headers and (cut := self.server.broken_after) is not None:
            self.server.broken_after = None
            self.wfile.write(body[:cut])
            self.close_connection = True
            return
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def rookery(hub: Hub, home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "ROOKERY_"))}
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        [sys.executable, "-m", "rookery.server", *arguments],
        capture_output=True, text=True, timeout=120, env=inherited | settings | environment,
    )  # fmt: skip


def test_an_alias_is_the_latest_file_that_matches(hub: Hub, tmp_path: Path) -> None:
    for name in ("rwkv7-g1a-0.4b-20250905-ctx4096.pth", "rwkv7-g1-0.4b-20250324-ctx4096.pth", "README.md"):
        hub.files[f"BlinkDL/rwkv7-g1/{name}"] = name.encode()
    done = rookery(hub, tmp_path, "pull", "rwkv7-g1-0.4b")
    assert done.returncode == 0, done.stderr
    path, command = done.stdout.splitlines()
    assert path.endswith("(SHA-256 checked)")
    assert Path(path.removesuffix(" (SHA-256 checked)")).read_text() == "rwkv7-g1a-0.4b-20250905-ctx4096.pth"
    assert command == "rookery serve hf:BlinkDL/rwkv7-g1/rwkv7-g1a-0.4b-20250905-ctx4096.pth"


def test_a_broken_download_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.files["o/r/model.pth"] = content = os.urandom(21 * 2**20)
    hub.broken_after = 15 * 2**20  # the hub's client writes pieces of 10 MiB
    done = rookery(hub, tmp_path, "pull", "o/r")
    assert done.returncode == 0, done.stderr
    assert hub.ranges and int(hub.ranges[-1].removeprefix("bytes=").rstrip("-")) > 0
    assert Path(done.stdout.splitlines()[0].removesuffix(" (SHA-256 checked)")).read_bytes() == content


def test_a_file_that_is_not_what_the_hub_promised_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.files["o/r/model.pth"] = b"weights"
    hub.lie = True
    done = rookery(hub, tmp_path, "pull", "o/r")
    assert done.returncode == 1
    assert "is damaged" in done.stderr and "mend: delete" in done.stderr


def test_several_checkpoints_are_listed_and_not_guessed_at(hub: Hub, tmp_path: Path) -> None:
    hub.files |= {"o/r/a.pth": b"1", "o/r/b.pth": b"2", "o/r/config.json": b"{}"}
    done = rookery(hub, tmp_path, "pull", "o/r")
    assert done.returncode == 2
    assert "rookery pull o/r/a.pth" in done.stderr and "rookery pull o/r/b.pth" in done.stderr
    done = rookery(hub, tmp_path, "serve", "hf:o/r")
    assert done.returncode == 2
    assert "rookery serve hf:o/r/a.pth" in done.stderr
    assert rookery(hub, tmp_path, "pull", "o/r/b.pth", "--revision", "main").stdout.endswith("hf:o/r/b.pth@main\n")


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("no-such-alias", "neither an alias nor org/repo"),
        ("o/nothing", "the hub has no o/nothing"),
        ("o/r/nothing.pth", "the hub has no o/r/nothing.pth"),
        ("rwkv7-g1-0.1b", "has no rwkv7-g1*-0.1b-*.pth any more"),
        ("o/--bad..name", "names no repository"),
    ],
)
def test_wrong_names_say_what_to_do(hub: Hub, tmp_path: Path, name: str, cause: str) -> None:
    hub.files |= {"o/r/a.pth": b"1", "BlinkDL/rwkv7-g1/rwkv7-g9-0.1b-20990101.pth": b"1"}
    done = rookery(hub, tmp_path, "pull", name)
    assert done.returncode == 2, done.stderr
    assert cause in done.stderr and "mend:" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["pull", "o/r"], ["pull", "o/r/a.pth"], ["serve", "hf:o/r/a.pth"]])
def test_without_a_hub(hub: Hub, tmp_path: Path, arguments: list[str]) -> None:
    done = rookery(hub, tmp_path, *arguments, HF_HUB_OFFLINE="1")
    assert done.returncode == 1, done.stderr
    assert "mend: check the network" in done.stderr and "Traceback" not in done.stderr


def test_a_hub_that_is_not_there(hub: Hub, tmp_path: Path) -> None:
    done = rookery(hub, tmp_path, "pull", "o/r", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1 and "could not be fetched" in done.stderr and "Traceback" not in done.stderr


def test_aliases_are_listed(hub: Hub, tmp_path: Path) -> None:
    done = rookery(hub, tmp_path, "pull")
    assert done.returncode == 0
    assert all(name in done.stdout for name in aliases())


def test_aliases_are_well_formed() -> None:
    for name, alias in aliases().items():
        assert re.fullmatch(r"rwkv[4-7]-[a-z0-9.-]+", name) and "/" not in name
        assert re.fullmatch(r"BlinkDL/rwkv[a-z0-9-]+", alias.repository)
        assert alias.files.endswith(".pth") and alias.about.startswith(f"RWKV-{name[4]}")
