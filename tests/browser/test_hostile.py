"""What a model may say to harm the reader: it is shown as text, and nothing happens."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import expect

from .conftest import Chat, ScriptedEngine

ATTACKS = r"""
<script>window.pwned = 1</script>
<img src=x onerror="window.pwned = 2"> <svg onload="window.pwned = 3"></svg>
<iframe srcdoc="<script>parent.pwned = 4</script>"></iframe>
<a href="javascript:window.pwned = 5" onclick="window.pwned = 5" class="attack">raw</a>
<style>body { display: none }</style><base href="https://evil.example/"><meta http-equiv="refresh" content="0">
<form action="https://evil.example/"><button class="copy-code">send</button></form><div id="app">clobbered</div>

[script](javascript:window.pwned=6) [encoded](java&#115;cript:window.pwned=7) [data](data:text/html,<script>x</script>)
[vb](vbscript:x) [relative](/v1/sessions) [slashes](//evil.example/x) <javascript:window.pwned=8>
![picture](https://evil.example/spy.png) ![data](data:image/svg+xml;base64,PHN2Zy8+) ![js](javascript:window.pwned=9)
[quote](https://ok.example/"onmouseover="window.pwned=10) [good](https://ok.example/page "title")

```html"><script>window.pwned=11</script>
<script>window.pwned=12</script>
```

| <img src=x onerror=window.pwned=13> | b |
|---|---|
| <script>window.pwned=14</script> | `<b>` |
"""


def test_hostile_markdown_is_inert(chat: Chat, engine: ScriptedEngine) -> None:
    engine.text = ATTACKS
    chat.ask("attack me")
    page = chat.page
    hrefs = page.locator(".markdown a[href]").evaluate_all("links => links.map((link) => link.getAttribute('href'))")
    assert sorted(hrefs) == [
        "https://evil.example/spy.png",
        "https://ok.example/%22onmouseover=%22window.pwned=10",
        "https://ok.example/page",
    ]
    rel = page.locator(".markdown a[href]").last.get_attribute("rel") or ""
    assert "noopener" in rel and "noreferrer" in rel
    for link in page.locator(".markdown a:not([href])").all():
        link.click()
    forbidden = ".markdown :is(script, img, svg, iframe, style, base, meta, form, input, object, embed, [id], [style])"
    assert page.locator(forbidden).count() == 0
    attributes = page.locator(".markdown *").evaluate_all(
        "all => [...new Set(all.flatMap((one) => one.getAttributeNames()))]"
    )
    assert set(attributes) <= {"align", "class", "href", "rel", "start", "tabindex", "target", "title"}
    assert page.evaluate("window.pwned") is None
    expect(chat.replies).to_contain_text("<script>window.pwned = 1</script>")
    expect(page.locator("button.copy-code")).to_have_count(1)


@pytest.mark.parametrize(
    "text",
    [
        "- " * 10_000 + "x",
        "> " * 10_000 + "x",
        "a**b" * 20_000,
        "[" * 60_000,
        "|a" * 3_000 + "|\n" + "|-" * 3_000 + "|\n" + "|x|\n" * 3_000,
        "<b" * 30_000,
        "`" * 50_001,
    ],
    ids=["lists", "quotes", "emphasis", "brackets", "table", "tags", "ticks"],
)
def test_costly_markdown_does_not_hold_up_the_page(chat: Chat, text: str) -> None:
    """Put in place directly: the cost is in the parser, not on the way to it."""
    nodes = chat.page.evaluate(
        """async (text) => {
            const main = document.querySelector('script[type=module]').src;
            const { blocksOf, domOf } = await import(new URL('markdown.js', main));
            const place = document.createElement('div');
            for (const block of blocksOf(text)) place.append(domOf(block));
            return place.querySelectorAll('*').length;
        }""",
        text,
    )
    assert nodes < 25_000
    chat.ask("still there?")
    expect(chat.replies).to_have_text("Reply 1.")


def test_a_hostile_file_is_refused_whole(chat: Chat) -> None:
    turn: dict[str, object] = {"role": "user", "content": "x", "children": [], "chosen": None}
    root = {"role": "root", "content": "", "children": ["__proto__"], "chosen": "__proto__"}
    loop = {"root": {**root, "children": ["feedfacefeed"]}, "feedfacefeed": {**turn, "children": ["feedfacefeed"]}}
    files = [
        "not json",
        "[]",
        '{"format": "rookery-conversations", "version": 1, "conversations": [null]}',
        json.dumps({"format": "rookery-conversations", "version": 1, "conversations": [{"turns": {"root": root}}]}),
        json.dumps({"format": "rookery-conversations", "version": 1, "conversations": [{"turns": loop}]}),
    ]
    for text in files:
        file = {"name": "chats.json", "mimeType": "application/json", "buffer": text.encode()}
        chat.page.locator("input[type=file]").first.set_input_files(file)  # type: ignore[arg-type]
        expect(chat.page.get_by_role("alert")).to_contain_text("Nothing was imported")
        chat.page.evaluate("document.querySelector('.toast').remove()")
    expect(chat.page.locator(".conversations .title")).to_have_text(["New chat"])
