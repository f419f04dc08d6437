"""Makes the README's pictures of the web chat: `python -m tests.browser.pictures URL`, against a running server.

They show what the model there really says; the built-in one, unless the server was started with another.
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import Page, ViewportSize, expect, sync_playwright

from .conftest import chromium, open_chat

FOLDER = Path(__file__).resolve().parent.parent.parent / "docs" / "images"
SIZE: ViewportSize = {"width": 1280, "height": 800}
TALK = (
    "Hello! My name is Ada.",
    "I live in Oslo and I have a cat.",
    "Where do I live?",
    "What is my name?",
    "Spell rook.",
)


def main(url: str) -> None:
    with sync_playwright() as playwright:
        expect.set_options(timeout=60_000)
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_context(viewport=SIZE, reduced_motion="reduce").new_page()
        chat = open_chat(page, url)
        chat.button("Settings")
        page.get_by_label("Temperature", exact=True).fill("0")
        page.get_by_label("Temperature", exact=True).press("Tab")
        chat.button("Memory")
        page.get_by_label("Keep them on the server").check()
        chat.button("Close memory")
        for text in TALK:
            chat.ask(text)
        take(page, "chat-light.png")
        chat.button("Light or dark")
        chat.button("Memory")
        take(page, "memory-dark.png")
        browser.close()


def take(page: Page, name: str) -> None:
    page.mouse.move(0, 0)
    FOLDER.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=FOLDER / name)


if __name__ == "__main__":
    main(sys.argv[1])
