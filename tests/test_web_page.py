"""The page's files: what is sent with them, what may lie in them, and that vendored ones are unchanged."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from rookery.server.api.page import FOLDER, TYPES, page_router
from rookery.server.config import Config
from rookery.server.errors import StartupError

from .api_server import MODEL, api_in_process

FILES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.suffix in TYPES)
OURS = [name for name in FILES if not name.startswith("vendor/")]
KEYED = Config(served_model_name=(MODEL,), api_key=("a-key",))
LATER = "vendor/highlight/"
"""Files that are loaded when there is code to colour: the first, and a grammar for each language."""
MAX_PAGE_BYTES, MAX_CODE_BYTES = 300_000, 22_000


async def versioned(client: httpx.AsyncClient) -> str:
    """The folder that the page's files have now."""
    match = re.search(r'"(web/[0-9a-f]{16}/)main\.js"', (await client.get("/")).text)
    assert match
    return match[1]


async def test_page_and_files_are_open_and_cached() -> None:
    async with api_in_process(config=KEYED) as api:
        page = await api.client.get("/")
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["cache-control"] == "no-cache"
        again = await api.client.get("/", headers={"if-none-match": f'"other", W/{page.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")
        prefix = await versioned(api.client)
        for name in FILES:
            if name == "index.html":
                continue
            answer = await api.client.get(f"/{prefix}{name}")
            assert answer.status_code == 200, name
            assert answer.content == (FOLDER / name).read_bytes()
            assert answer.headers["content-type"] == TYPES[Path(name).suffix]
            assert "immutable" in answer.headers["cache-control"]
        head = await api.client.head(f"/{prefix}main.js")
        assert (head.status_code, head.content) == (200, b"")
        assert (await api.client.get("/v1/models")).status_code == 401


async def test_policy_lets_the_page_speak_to_its_server_only() -> None:
    async with api_in_process() as api:
        for path in ("/", f"/{await versioned(api.client)}main.js"):
            headers = (await api.client.get(path)).headers
            policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
            assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
            assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
            assert policy["img-src"] == "'self' data:"
            assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    ["index.html", "vendor/VERSIONS", "vendor/licences/htm.txt", "../../pyproject.toml", "%2e%2e/%2e%2e/LICENSE", ""],
)
async def test_nothing_else_is_served(path: str) -> None:
    async with api_in_process(config=KEYED) as api:
        for prefix in ("web/", await versioned(api.client)):
            answer = await api.client.get(
                httpx.URL(f"http://api/{prefix}").copy_with(raw_path=f"/{prefix}{path}".encode())
            )
            assert answer.status_code in (401, 404)
            assert set(answer.json()) == {"error"}


def test_the_page_is_light() -> None:
    sizes = {name: (FOLDER / name).stat().st_size for name in FILES}
    assert sum(size for name, size in sizes.items() if not name.startswith(LATER)) < MAX_PAGE_BYTES
    assert all(size < MAX_CODE_BYTES for name, size in sizes.items() if name.startswith(LATER))


def test_vendored_files_are_as_published() -> None:
    rows = [line.split() for line in (FOLDER / "vendor/VERSIONS").read_text().splitlines() if line[0] != "#"]
    assert {f"vendor/{row[0]}" for row in rows} == set(FILES) - set(OURS)
    for name, package, _, _, digest in rows:
        assert sha256((FOLDER / "vendor" / name).read_bytes()).hexdigest() == digest, name
        assert (FOLDER / f"vendor/licences/{licence_of(package)}.txt").is_file()


def licence_of(package: str) -> str:
    """`name` of `name@version`, `scope-name` of `@scope/name@version`."""
    return package.rpartition("@")[0].removeprefix("@").replace("/", "-")


def test_every_language_has_its_grammar() -> None:
    table = re.search(r"GRAMMARS = .*?\(\{(.*?)\}\)", (FOLDER / "highlight.js").read_text(), re.DOTALL)
    assert table
    grammars = set(re.findall(r': "(\w+)"', table[1]))
    assert {f"{LATER}{name}.js" for name in (*grammars, "core")} == {name for name in FILES if name.startswith(LATER)}


@pytest.mark.parametrize("name", OURS)
def test_files_need_nothing_from_outside(name: str) -> None:
    """No inline script or style (the policy forbids them), no address of another host, imports by relative path."""
    text = (FOLDER / name).read_text()
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", text)) - {"http://www.w3.org"}
    assert not addresses
    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=[\"']|\beval\(|innerHTML", text)
    if name.endswith(".js"):
        imports = re.findall(r'^(?:import|export)\b[^;]*? from "([^"]+)"|^import "([^"]+)"', text, re.M)
        for found in {one or other for one, other in imports} - {"openai"}:  # in a snippet to be copied
            assert found.startswith(("./", "../")), found
            assert (FOLDER / name).parent.joinpath(found).resolve().is_file(), found
        assert len(text.splitlines()) <= 400


def test_a_missing_page_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="files of the web page"):
        page_router(tmp_path)
