"""The page around the chat: keys, memory, dialogs, small screens, looks, and what assistive technology is told."""

from __future__ import annotations

from playwright.sync_api import BrowserContext, Page, expect

from rookery.server.config import Config

from ..api_server import MODEL, ApiServer, api_server
from .conftest import Chat, ScriptedEngine, Watch, open_chat, release


def test_a_server_with_keys_asks_for_one(page: Page, watch: Watch) -> None:
    watch.expected += ["401", "/v1/sessions"]
    config = Config(served_model_name=(MODEL,), api_key=("correct-key",))
    with api_server(ScriptedEngine(config), config, demo=True) as server:
        page.goto(server.url)
        page.get_by_role("dialog", name="API key").get_by_role("button", name="Close").click()
        page.get_by_role("button", name="Enter the API key").click()
        key = page.get_by_label("This server asks for an API key.")
        key.fill("wrong-key")
        key.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("The server does not know this key.")
        key.fill("correct-key")
        key.press("Enter")
        expect(page.get_by_role("dialog")).to_have_count(0)
        expect(page.get_by_text("This is the small built-in model")).to_be_visible()
        chat = Chat(page)
        chat.ask("hello")
        expect(chat.replies).to_have_text("Reply 1.")
        page.reload()
        expect(chat.said).to_have_text(["hello"])
        chat.ask("again")
        chat.button("Connect your app")
        expect(page.get_by_role("dialog")).to_contain_text('-H "Authorization: Bearer $OPENAI_API_KEY"')
        expect(page.get_by_role("dialog")).not_to_contain_text("correct-key")
        watch.check(server.url)


def test_memory_is_shown_against_tokens(chat: Chat, engine: ScriptedEngine) -> None:
    chat.ask("one")
    chat.ask("two")
    chat.button("Memory")
    panel = chat.page.get_by_role("complementary", name="Memory")
    expect(panel.get_by_role("heading", name="Memory")).to_be_focused()
    figures = panel.locator(".figures dd:not(.hint)")
    tokens = len(engine.submitted[-1].prompt_ids) + len("Reply 2.")
    # one layer of 64 channels: 1 x 64 x 2 x 2 bytes a token
    expect(figures).to_have_text(["1.02 kB", str(tokens), f"{tokens * 256 / 1000:.3g} kB"])
    expect(panel.locator("circle.state")).to_have_count(2)
    heights = panel.locator("circle.state").evaluate_all("all => all.map((one) => one.getAttribute('cy'))")
    assert len(set(heights)) == 1
    chat.page.keyboard.press("Escape")
    expect(panel).to_have_count(0)
    expect(chat.page.get_by_role("button", name="Memory")).to_be_focused()


def test_snippets_name_this_server(chat: Chat) -> None:
    chat.button("Connect your app")
    dialog = chat.page.get_by_role("dialog")
    address = f"{chat.page.url}v1"
    for language, part in (("curl", "/chat/completions"), ("Python", "from openai import"), ("Node", "import OpenAI")):
        dialog.get_by_role("button", name=language).click()
        expect(dialog.locator("pre")).to_contain_text(part)
        expect(dialog.locator("pre")).to_contain_text(address)
        expect(dialog.locator("pre")).to_contain_text(MODEL)
    chat.page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    expect(chat.page.get_by_role("button", name="Connect your app")).to_be_focused()


def test_code_can_be_copied(chat: Chat, engine: ScriptedEngine, context: BrowserContext) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    engine.text = "See:\n\n```python\nprint('<rook>')\n```"
    chat.ask("code")
    chat.page.locator("button.copy-code").click()
    expect(chat.page.locator("button.copy-code")).to_have_text("Copied")
    assert chat.page.evaluate("navigator.clipboard.readText()") == "print('<rook>')"


def test_code_is_coloured_and_stays_the_text_it_is(chat: Chat, engine: ScriptedEngine) -> None:
    code = 'def f(x):\n    return "<b>" + x  # a comment'
    engine.text = f"```python\n{code}\n```\n\n```klingon\n{code}\n```\n\n```js\nconst a = `${{1}}`;\n```\n"
    chat.ask("code?")
    blocks = chat.last.locator(".code code")
    expect(blocks.nth(0).locator(".hljs-keyword")).to_have_text(["def", "return"])
    expect(blocks.nth(0).locator(".hljs-comment")).to_have_text("# a comment")
    expect(blocks.nth(2).locator(".hljs-keyword")).to_have_text("const")
    assert blocks.nth(1).locator("span").count() == 0
    assert [blocks.nth(i).text_content() for i in (0, 1)] == [code] * 2


def test_everything_has_a_name_and_shortcuts_are_listed(chat: Chat) -> None:
    chat.ask("hello")
    page = chat.page
    page.keyboard.press("Control+/")
    expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_contain_text("New chat")
    page.keyboard.press("Escape")
    chat.button("Settings")
    nameless = """() => {
        const all = document.querySelectorAll('button, input:not([hidden]), textarea, select, a[href], [role=img]');
        const named = (one) => one.ariaLabel || one.textContent.trim() || one.labels?.length;
        return [...all].filter((one) => !named(one)).map((one) => one.outerHTML);
    }"""
    assert page.evaluate(nameless) == []
    assert page.evaluate("document.documentElement.lang") == "en"


def test_dark_and_light(chat: Chat) -> None:
    page = chat.page
    colour = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(colour)
    page.emulate_media(color_scheme="dark")
    expect(page.locator(":root[data-theme=dark]")).to_have_count(1)
    assert page.evaluate(colour) != light
    page.keyboard.press("Control+Shift+L")
    assert page.evaluate(colour) == light
    page.reload()
    expect(page.locator(":root[data-theme=light]")).to_have_count(1)


def test_it_fits_a_phone(chat: Chat, engine: ScriptedEngine) -> None:
    page = chat.page
    page.set_viewport_size({"width": 360, "height": 740})
    engine.text = f"{'x' * 300}\n\n```\n{'y' * 300}\n```\n\n| {'a | ' * 20}\n|{'---|' * 20}\n| {'b | ' * 20}"
    chat.ask("wide things")
    too_wide = (
        "document.scrollingElement.scrollWidth > innerWidth || document.querySelector('main').scrollWidth > innerWidth"
    )
    assert not page.evaluate(too_wide)
    expect(page.get_by_role("searchbox")).not_to_be_visible()
    page.get_by_role("button", name="Chats").click()
    expect(page.get_by_role("searchbox")).to_be_visible()
    page.locator(".conversations .title").click()
    expect(page.get_by_role("searchbox")).not_to_be_visible()
    page.get_by_role("button", name="Memory").click()
    assert not page.evaluate(too_wide)


def test_a_reader_who_scrolled_up_is_left_alone(chat: Chat, engine: ScriptedEngine) -> None:
    engine.text = "line\n\n" * 120
    chat.ask("much")
    thread = chat.page.locator(".thread")
    at_end = "one => one.scrollHeight - one.scrollTop - one.clientHeight < 5"
    assert thread.evaluate(at_end)
    thread.evaluate("one => one.scrollTo(0, 0)")
    expect(chat.page.get_by_role("button", name="To the end")).to_be_visible()
    engine.text = "short"
    chat.last.get_by_role("button", name="Ask again").dispatch_event("click")
    expect(chat.replies).to_have_text("short")


def test_the_smallest_step_up_leaves_a_growing_reply(chat: Chat, running: ApiServer, engine: ScriptedEngine) -> None:
    thread = chat.page.locator(".thread")
    engine.text, engine.hold_at = "line\n\n" * 120, 400
    chat.write("much")
    expect(chat.replies.locator("p")).to_have_count(67)  # all that came before the stream was held
    thread.hover()
    before: float = thread.evaluate("one => one.scrollTop")
    assert before > 0
    chat.page.mouse.wheel(0, -20)
    chat.page.wait_for_function("(before) => document.querySelector('.thread').scrollTop < before", arg=before)
    release(running, engine)
    chat.done()
    assert thread.evaluate("one => one.scrollTop") < before
    chat.button("To the end")
    expect(chat.page.get_by_role("button", name="To the end")).to_have_count(0)


def test_markdown_keeps_its_form_and_can_be_reached_by_keyboard(chat: Chat, engine: ScriptedEngine) -> None:
    engine.text = "3. three\n4. four\n\n| n | word |\n|--:|:--:|\n| 1 | one |\n\n```\ncode\n```"
    chat.ask("form")
    expect(chat.replies.locator("ol")).to_have_attribute("start", "3")
    expect(chat.replies.locator("td").first).to_have_css("text-align", "right")
    expect(chat.replies.locator("td").last).to_have_css("text-align", "center")
    for scrollable in (".table", "pre"):
        expect(chat.replies.locator(scrollable)).to_have_attribute("tabindex", "0")


def test_enter_that_chooses_characters_sends_nothing(chat: Chat, engine: ScriptedEngine) -> None:
    chat.box.fill("ルーク")
    for marks in ({"isComposing": True}, {"keyCode": 229}):  # Safari marks its last key in the second way only
        chat.box.dispatch_event("keydown", {"key": "Enter", "bubbles": True, **marks})
    expect(chat.box).to_have_value("ルーク")
    chat.box.press("Enter")
    expect(chat.said).to_have_text(["ルーク"])
    assert len(engine.submitted) == 1


def test_what_lies_over_the_chat_takes_the_keyboard(chat: Chat) -> None:
    page = chat.page
    page.set_viewport_size({"width": 375, "height": 740})
    page.get_by_role("button", name="Chats").click()
    expect(page.get_by_role("button", name="Close", exact=True)).to_be_focused()
    for _ in range(12):
        page.keyboard.press("Tab")
        assert not page.evaluate("document.querySelector('main').contains(document.activeElement)")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Chats")).to_be_focused()
    page.get_by_role("button", name="Memory").click()
    expect(page.get_by_role("heading", name="Memory")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Memory")).to_be_focused()
    page.get_by_role("button", name="Memory").click()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Escape")
    expect(page.get_by_role("complementary", name="Memory")).to_have_count(0)


def test_the_page_waits_for_the_model(page: Page, watch: Watch, running: ApiServer, engine: ScriptedEngine) -> None:
    watch.expected += ["503", "ERR_FAILED", "/v1/sessions"]
    page.route("**/ready", lambda route: route.abort())
    page.goto(running.url)
    expect(page.get_by_role("heading", name="The server does not answer; trying again …")).to_be_visible()
    loading = '{"status": "not_ready", "phase": "loading", "progress": 0.4}'
    page.unroute("**/ready")
    page.route("**/ready", lambda route: route.fulfill(status=503, body=loading))
    expect(page.get_by_role("heading", name="The model is loading: 40 %")).to_be_visible()
    expect(page.get_by_role("progressbar")).to_have_attribute("value", "0.4")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_disabled()
    page.unroute("**/ready")
    expect(page.get_by_role("heading", name="What shall we talk about?")).to_be_visible()
    watch.check(running.url)


def test_two_pages_over_one_server_are_apart(chat: Chat, context: BrowserContext) -> None:
    """Conversations are the browser's: another profile sees none of them."""
    chat.ask("mine")
    browser = context.browser
    assert browser is not None
    other = browser.new_context()
    expect(open_chat(other.new_page(), chat.page.url).turns).to_have_count(0)
    other.close()
