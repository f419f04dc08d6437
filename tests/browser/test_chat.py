"""Chats in a real browser: sending, streaming, stopping, branches, what is kept, and what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

from playwright.sync_api import expect

from rookery.server.errors import QueueFull

from ..api_server import ApiServer
from .conftest import Chat, ScriptedEngine, Watch, release


def test_a_reply_streams_and_says_how_fast_it_was(chat: Chat, running: ApiServer, engine: ScriptedEngine) -> None:
    engine.text, engine.hold_at = "Rooks nest in **tall** trees.", 12
    chat.write("Where do rooks live?")
    expect(chat.replies).to_have_text("Rooks nest i")
    expect(chat.page.get_by_role("button", name="Stop")).to_be_visible()
    release(running, engine)
    chat.done()
    expect(chat.replies).to_have_text("Rooks nest in tall trees.")
    expect(chat.replies.locator("strong")).to_have_text("tall")
    facts = chat.last.locator(".facts")
    expect(facts).to_contain_text("tokens/s")
    expect(facts).to_contain_text("first after")
    expect(facts).to_contain_text(f"{len(engine.submitted[0].prompt_ids)} + {len(engine.text)} tokens")
    expect(chat.page.get_by_role("heading", level=1)).to_have_text("Where do rooks live?")
    expect(chat.page.get_by_role("status")).to_contain_text("Reply: Rooks nest")
    expect(chat.box).to_be_focused()


def test_a_chat_resends_its_history(chat: Chat, engine: ScriptedEngine) -> None:
    chat.ask("first")
    chat.ask("second")
    assert "first" in engine.prompt() and "Reply 1." in engine.prompt() and "second" in engine.prompt()


def test_stopping_keeps_what_came_and_ends_the_servers_work(chat: Chat, engine: ScriptedEngine) -> None:
    engine.text, engine.hold_at = "word " * 50, 100
    chat.write("go on")
    expect(chat.replies).to_have_text(("word " * 20).strip())
    chat.page.keyboard.press("Escape")
    expect(chat.last.locator(".facts")).to_contain_text("stopped")
    expect(chat.replies).to_have_text(("word " * 20).strip())
    engine.text, engine.hold_at = "And on.", None
    engine.gate.set()
    chat.ask("now then")
    expect(chat.replies.last).to_have_text("And on.")
    assert engine.cancelled[0][0] == engine.submitted[0].id


def test_editing_and_asking_again_make_branches(chat: Chat, engine: ScriptedEngine) -> None:
    chat.ask("one")
    chat.ask("two")
    chat.turns.nth(0).hover()
    chat.turns.nth(0).get_by_role("button", name="Edit").click()
    editor = chat.page.get_by_role("textbox", name="Edit message")
    expect(editor).to_be_focused()
    editor.fill("uno")
    editor.press("Enter")
    expect(chat.said).to_have_text(["uno"])
    chat.done()
    expect(chat.replies).to_have_text(["Reply 3."])
    assert "one" not in engine.prompt()

    chat.last.get_by_role("button", name="Ask again").click()
    expect(chat.replies).to_have_text(["Reply 4."])
    chat.done()
    expect(chat.last.locator(".branches")).to_have_text("2/2")
    chat.last.get_by_role("button", name="Branch before").click()
    expect(chat.replies).to_have_text(["Reply 3."])

    chat.turns.nth(0).get_by_role("button", name="Branch before").click()
    expect(chat.said).to_have_text(["one", "two"])
    expect(chat.replies).to_have_text(["Reply 1.", "Reply 2."])
    chat.page.reload()
    expect(chat.said).to_have_text(["one", "two"])
    expect(chat.turns.nth(0).locator(".branches")).to_have_text("1/2")
    chat.ask("three")
    assert "uno" not in engine.prompt() and "two" in engine.prompt()


def test_conversations_are_kept_renamed_searched_and_deleted(chat: Chat, engine: ScriptedEngine) -> None:
    page = chat.page
    chat.ask("about ravens")
    page.keyboard.press("Control+Shift+O")
    expect(chat.turns).to_have_count(0)
    chat.ask("about jackdaws")
    titles = page.locator(".conversations .title")
    expect(titles).to_have_text(["about jackdaws", "about ravens"])
    page.reload()
    expect(titles).to_have_text(["about jackdaws", "about ravens"])
    expect(chat.said).to_have_text(["about jackdaws"])

    titles.nth(1).dblclick()
    page.get_by_role("textbox", name="Title").fill("Corvids")
    page.keyboard.press("Enter")
    expect(titles).to_have_text(["about jackdaws", "Corvids"])

    page.keyboard.press("Control+k")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("RAVENS")
    expect(titles).to_have_text(["Corvids"])
    page.get_by_role("searchbox").fill("")

    titles.nth(0).hover()
    chat.button("Delete about jackdaws")
    expect(titles).to_have_text(["Corvids"])
    chat.button("Undo")
    expect(titles).to_have_text(["about jackdaws", "Corvids"])
    titles.nth(0).hover()
    chat.button("Delete about jackdaws")
    page.reload()
    expect(titles).to_have_text(["Corvids"])


def test_conversations_leave_and_come_back_as_a_file(chat: Chat, tmp_path: Path) -> None:
    chat.ask("a first question")
    chat.last.get_by_role("button", name="Ask again").click()
    expect(chat.replies).to_have_text(["Reply 2."])
    chat.done()
    with chat.page.expect_download() as download:
        chat.button("Export")
    file = tmp_path / "chats.json"
    download.value.save_as(file)
    exported = json.loads(file.read_text())
    assert [one["title"] for one in exported["conversations"]] == ["a first question"]

    chat.page.locator("input[type=file]").first.set_input_files(file)
    expect(chat.page.locator(".conversations .title")).to_have_text(["a first question"] * 2)
    expect(chat.last.locator(".branches")).to_have_text("2/2")

    exported["conversations"][0]["turns"]["root"]["children"].append("feedfacefeed")
    file.write_text(json.dumps(exported))
    chat.page.locator("input[type=file]").first.set_input_files(file)
    expect(chat.page.get_by_role("alert")).to_contain_text("Nothing was imported: a turn is missing")


def test_thinking_is_apart_from_the_reply(chat: Chat, running: ApiServer, engine: ScriptedEngine) -> None:
    chat.button("Settings")
    chat.page.get_by_label("Reasoning effort").select_option("medium")
    engine.text, engine.hold_at = "> Two and two.</think>\n\nIt is 4.", 15
    chat.write("How much is 2 + 2?")
    expect(chat.last.locator("summary")).to_contain_text("Thinking")
    expect(chat.last.locator(".thought")).to_contain_text("Two and two")
    release(running, engine)
    chat.done()
    expect(chat.replies).to_have_text("It is 4.")
    expect(chat.last.locator("summary")).to_contain_text("Thought for")
    expect(chat.last.locator(".thought")).to_be_hidden()
    chat.last.locator("summary").click()
    expect(chat.last.locator(".thought")).to_have_text("Two and two.")


def test_settings_reach_the_model(chat: Chat, engine: ScriptedEngine) -> None:
    page = chat.page
    page.keyboard.press("Control+.")
    page.get_by_label("System prompt").fill("Answer like a rook.")
    page.get_by_label("Temperature", exact=True).fill("0.25")
    page.get_by_label("Top k", exact=True).fill("7")
    page.get_by_label("Seed", exact=True).fill("42")
    page.get_by_label("Longest reply", exact=True).fill("5")
    page.get_by_label("Longest reply", exact=True).press("Tab")
    engine.text = "Kaah! Kaah!"
    chat.ask("Hello")
    expect(chat.replies).to_have_text("Kaah!")
    sampling = engine.submitted[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.seed, sampling.max_tokens) == (0.25, 7, 42, 5)
    assert "Answer like a rook." in engine.prompt()
    page.reload()
    chat.button("Settings")
    expect(page.get_by_label("Temperature", exact=True)).to_have_value("0.25")
    chat.button("Back to the server's defaults")
    expect(page.get_by_label("Temperature", exact=True)).to_have_value("")
    chat.ask("Hello again")
    assert engine.submitted[-1].sampling.temperature == 1


def test_errors_are_said_in_the_servers_words(chat: Chat, engine: ScriptedEngine, watch: Watch) -> None:
    watch.expected.append("429")
    engine.refusal = QueueFull("256 requests are waiting", retry_after_s=3)
    chat.write("hello")
    failure = chat.last.get_by_role("alert")
    expect(failure).to_contain_text("256 requests are waiting. Try again in 3 s.")
    engine.refusal, engine.fail_after = None, 4
    failure.get_by_role("button", name="Try again").click()
    expect(chat.replies).to_have_text("Repl")
    expect(chat.last.get_by_role("alert")).to_contain_text("The step failed")
    engine.fail_after = None
    chat.last.get_by_role("button", name="Try again").click()
    expect(chat.replies).to_have_text("Reply 2.")
    expect(chat.last.locator(".branches")).to_have_text("3/3")
