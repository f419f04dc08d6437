"""One Chromium for all tests here, a server over an engine that says what a test tells it to, and a fresh page each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect, sync_playwright

from rookery.server.config import Config
from rookery.server.engine.request import Request as EngineRequest
from rookery.server.engine.request import TokenEvent
from rookery.server.errors import NotFound

from ..api_server import MODEL, ApiServer, api_server
from ..fake_engine import FakeEngine

EXECUTABLES = ("chromium", "chromium-browser", "google-chrome")


class ScriptedEngine(FakeEngine):
    """Says `text` to whatever it is asked, one byte a token, and ends by itself.

    Attributes:
        text: the next reply; `{n}` in it is replaced by the number of the request, from 1.
        hold_at: a stream stops after so many tokens, until `gate` is set again.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(self._say, config=config)
        self.text = "Reply {n}."
        self.hold_at: int | None = None

    @property
    def silent_s(self) -> float:
        return 0.0

    async def ask(self, question: Any) -> NoReturn:
        raise NotFound("this engine keeps no sessions")

    def _say(self, request: EngineRequest, choice: int) -> Sequence[int]:
        return self.text.replace("{n}", str(len(self.submitted))).encode()

    def _event(self, request: EngineRequest, choice: int, step: int, reply: Sequence[int]) -> TokenEvent:
        if step + 1 == self.hold_at:
            self.gate.clear()
        if step < len(reply) - 1:
            return super()._event(request, choice, step, reply)
        return TokenEvent(request.id, choice, reply[-1], "stop")

    def prompt(self, number: int = -1) -> str:
        """What the model was given to read."""
        return bytes(self.submitted[number].prompt_ids).decode()


def release(running: ApiServer, engine: ScriptedEngine) -> None:
    """Let held streams go on."""

    async def go_on() -> None:
        engine.hold_at = None
        engine.gate.set()

    running.run(go_on)


def chromium() -> str:
    """Where this machine's Chromium is."""
    found = next(filter(None, map(shutil.which, EXECUTABLES)), None)
    assert found, "there is no Chromium: run tests/browser/install.sh"
    return found


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Chromium without a window."""
    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright:
        # the sandbox needs rights that containers do not give; the pages are our own
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def running() -> Iterator[ApiServer]:
    config = Config(served_model_name=(MODEL,), chat_template="g1")
    with api_server(ScriptedEngine(config), config) as server:
        yield server


@pytest.fixture
def engine(running: ApiServer) -> ScriptedEngine:
    """The engine behind the page, as new."""
    engine = running.engine
    assert isinstance(engine, ScriptedEngine)
    engine.text, engine.hold_at, engine.refusal, engine.fail_after = "Reply {n}.", None, None, None
    engine.submitted.clear()
    engine.cancelled.clear()
    return engine


class Chat:
    """A page with the web chat, as its user sees it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.turns = page.locator(".turn")
        self.replies = page.locator(".turn.assistant .markdown")
        self.said = page.locator(".turn.user .bubble")
        self.last = page.locator(".turn.last")
        self.box = page.get_by_role("textbox", name="Message", exact=True)

    def write(self, text: str) -> None:
        """Send a message, as soon as the page can."""
        self.box.fill(text)
        expect(self.page.locator(".composer").get_by_role("button", name="Send")).to_be_enabled()
        self.box.press("Enter")

    def done(self) -> None:
        """Wait until the reply is complete."""
        expect(self.last.locator(".facts")).to_be_visible()
        expect(self.page.get_by_role("button", name="Send", exact=True)).to_be_visible()

    def ask(self, text: str) -> None:
        before = self.said.count()
        self.write(text)
        expect(self.said).to_have_count(before + 1)  # until then the page shows the turn before as done
        self.done()

    def button(self, name: str) -> None:
        """Press a button of the page by what it is called."""
        self.page.get_by_role("button", name=name, exact=True).click()


class Watch:
    """What a page must not do: complain, break its policy, or speak to another host."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.expected: list[str] = []
        self.hosts: set[str] = set()

    def attach(self, page: Page) -> None:
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"{message.text} ({message.location['url']})")

    def _request(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme != "blob":  # a file the page itself has made
            self.hosts.add(parts.netloc)

    def check(self, url: str) -> None:
        assert self.hosts <= {urlsplit(url).netloc}
        unexpected = [fault for fault in self.faults if not any(part in fault for part in self.expected)]
        assert not unexpected


@pytest.fixture(scope="package")
def context(browser: Browser) -> Iterator[BrowserContext]:
    """One profile for all tests, so that the page's files come from its cache."""
    context = browser.new_context(viewport={"width": 1280, "height": 860}, reduced_motion="reduce")
    context.set_default_timeout(20_000)
    yield context
    context.close()


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def page(context: BrowserContext, watch: Watch) -> Iterator[Page]:
    """A new tab."""
    page = context.new_page()
    watch.attach(page)
    yield page
    page.close()


def open_chat(page: Page, url: str) -> Chat:
    """The web chat as somebody sees it who has never been there."""
    session = page.context.new_cdp_session(page)
    session.send("Storage.clearDataForOrigin", {"origin": url, "storageTypes": "indexeddb,local_storage"})
    session.detach()
    page.goto(url)
    chat = Chat(page)
    expect(page.locator(".ideas")).to_be_visible()
    return chat


@pytest.fixture
def chat(page: Page, watch: Watch, running: ApiServer, engine: ScriptedEngine) -> Iterator[Chat]:
    """The web chat, opened for the first time. Whatever a test does, the page keeps to its rules."""
    watch.expected.append("/v1/sessions")  # asked once whether there are any
    yield open_chat(page, running.url)
    engine.gate.set()
    watch.check(running.url)
