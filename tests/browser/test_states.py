"""States kept by a real server: saved, forked, gone back to, taken away and brought back from the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from ..server_process import ServerProcess, server_process
from .conftest import Chat, Watch, open_chat


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("states")
    with server_process(folder, "--data-dir", str(folder / "data")) as server:
        yield server


@pytest.fixture
def chat(page: Page, watch: Watch, server: ServerProcess) -> Iterator[Chat]:
    chat = open_chat(page, server.url)
    chat.button("Settings")
    for name, value in (("Temperature", "0"), ("Longest reply", "12")):
        page.get_by_label(name, exact=True).fill(value)
        page.get_by_label(name, exact=True).press("Tab")
    chat.button("Memory")
    page.get_by_label("Keep them on the server").check()
    yield chat
    watch.check(server.url)


def sessions(server: ServerProcess) -> dict[str, int]:
    """Tokens that each session of the server holds."""
    data = httpx.get(f"{server.url}/v1/sessions", timeout=30).json()["data"]
    return {session["id"]: session["tokens"] for session in data}


def turns(chat: Chat) -> Locator:
    return chat.page.get_by_role("list", name="Turns").get_by_role("listitem")


def test_each_turn_is_kept_and_costs_its_own_words(chat: Chat, server: ServerProcess) -> None:
    before = sessions(server)
    homes: list[str | None] = []
    chat.page.on("request", lambda request: homes.append(request.headers.get("x-session-id")))
    chat.ask("one")
    chat.ask("two")
    assert len(homes) > 2 and len(set(homes)) == 1 and homes[0]  # a proxy sends them all to one server
    made = sorted(tokens for id, tokens in sessions(server).items() if id not in before)
    assert len(made) == 2
    expect(turns(chat)).to_have_count(2)
    expect(turns(chat).nth(1)).to_contain_text(f"{made[0]} remembered")

    first, second = chat.replies.all_inner_texts()
    chat.button("Rewind to reply 1")
    expect(chat.said).to_have_text(["one"])
    chat.ask("two")
    expect(chat.replies).to_have_text([first, second])
    expect(chat.turns.nth(2).locator(".branches")).to_have_text("2/2")

    chat.page.reload()
    chat.button("Memory")
    chat.button("Fork after reply 1")
    expect(chat.said).to_have_text(["one"])
    chat.ask("two")
    expect(chat.replies).to_have_text([first, second])
    expect(turns(chat).nth(1)).to_contain_text(f"{made[0]} remembered")


def test_states_are_saved_taken_away_and_brought_back(
    chat: Chat, server: ServerProcess, watch: Watch, tmp_path: Path
) -> None:
    watch.expected.append("400")  # of the damaged file
    page = chat.page
    chat.ask("one")
    chat.button("Save the state after reply 1")
    page.get_by_label("Name of the saved state").fill("my-rook")
    page.keyboard.press("Enter")
    saved = page.get_by_role("list", name="Saved states")
    expect(saved).to_contain_text("my-rook")
    assert "my-rook" in sessions(server)
    with page.expect_download() as download:
        chat.button("Download the state after reply 1")
    file = tmp_path / "state.safetensors"
    download.value.save_as(file)
    chat.ask("two")
    second = chat.replies.all_inner_texts()[1]

    page.get_by_label("State to upload").set_input_files(file)
    expect(page.get_by_text("This chat goes on from a stored state")).to_be_visible()
    chat.ask("two")
    expect(chat.replies).to_have_text([second])

    saved.locator(".saved").click()
    expect(chat.turns).to_have_count(0)
    chat.ask("two")
    expect(chat.replies).to_have_text([second])
    chat.button("Delete the state my-rook")
    expect(saved).to_have_count(0)
    assert "my-rook" not in sessions(server)

    file.write_bytes(file.read_bytes()[:1000])
    page.get_by_label("State to upload").set_input_files(file)
    expect(page.get_by_role("alert")).to_be_visible()


def test_a_lost_state_is_read_again(chat: Chat, server: ServerProcess, watch: Watch) -> None:
    watch.expected.append("404")
    chat.ask("one")
    for id in sessions(server):
        httpx.delete(f"{server.url}/v1/sessions/{id}", timeout=30)
    chat.ask("two")
    expect(turns(chat)).to_have_count(2)
    expect(turns(chat).nth(1)).to_contain_text("tokens")
    assert len(sessions(server)) == 1
