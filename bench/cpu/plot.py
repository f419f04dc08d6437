"""The medians of a report as bars, one panel a figure: plain SVG that brings its own background."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

COLOURS = {"rookery": "#2f6f5e", "official": "#b9b3a6", "llama.cpp": "#c9803a"}
SERVERS = {"rookery": "rookery", "llama-server": "llama.cpp", "llama-cpp-python": "llama.cpp"}
COLUMNS, WIDTH, BAR, LABEL = 3, 330, 17, 128
HEADING, GAP, MARGIN = 30, 18, 16


def panels(report: dict[str, Any]) -> Iterator[tuple[str, list[tuple[str, str, float]]]]:
    """(title, [(colour, label, tokens a second)])."""
    engines, servers = report["medians"]["engine"], report["medians"]["http"]
    prompt = report["settings"]["prefill_tokens"]
    for streams in report["settings"]["streams"]:
        plural = "" if streams == 1 else "s"
        yield (
            f"decode, {streams} stream{plural}",
            _bars(engines, lambda row, n=str(streams): row["decode_tok_s"].get(n)),
        )
    yield f"prompt of {prompt} tokens", _bars(engines, lambda row: row["prefill_tok_s"])
    for clients in report["settings"]["streams"][1:]:
        bars = _bars(servers, lambda row, n=str(clients): row["clients"].get(n, {}).get("tok_s"))
        yield f"over HTTP, {clients} clients", bars


def _bars(rows: dict[str, Any], figure: Any) -> list[tuple[str, str, float]]:
    found = []
    for name, row in rows.items():
        value = figure(row)
        if value is not None:
            peer = name.split()[0]
            found.append((COLOURS[SERVERS.get(peer, peer)], name, value))
    return found


def draw(report: dict[str, Any]) -> str:
    """The whole picture."""
    shown = [(title, bars) for title, bars in panels(report) if bars]
    rows = [shown[i : i + COLUMNS] for i in range(0, len(shown), COLUMNS)]
    parts, top = [], MARGIN + HEADING
    for row in rows:
        for column, (title, bars) in enumerate(row):
            parts.append(_panel(title, bars, MARGIN + column * (WIDTH + GAP), top))
        top += HEADING + BAR * max(len(bars) for _, bars in row) + GAP
    width = 2 * MARGIN + COLUMNS * WIDTH + (COLUMNS - 1) * GAP
    machine = report["machine"]
    heading = f"{report['shape']}, tokens per second: {machine['threads']} threads of {machine['cpu']}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}" viewBox="0 0 {width} {top}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#26241f">\n'
        f'<rect width="{width}" height="{top}" rx="8" fill="#faf8f3"/>\n'
        f'<text x="{MARGIN}" y="{MARGIN + 12}" font-size="14" font-weight="600">{escape(heading)}</text>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _panel(title: str, bars: list[tuple[str, str, float]], left: int, top: int) -> str:
    most = max(value for _, _, value in bars)
    room = WIDTH - LABEL - 46
    lines = [f'<text x="{left}" y="{top + 14}" font-weight="600">{escape(title)}</text>']
    for number, (colour, name, value) in enumerate(bars):
        y = top + HEADING - 6 + number * BAR
        length = max(1.0, room * value / most)
        lines += [
            f'<text x="{left + LABEL - 6}" y="{y + 11}" text-anchor="end" font-size="11">{escape(name)}</text>',
            f'<rect x="{left + LABEL}" y="{y + 1}" width="{length:.1f}" height="{BAR - 4}" rx="2" fill="{colour}"/>',
            f'<text x="{left + LABEL + length + 4:.1f}" y="{y + 11}" font-size="11">{value:.4g}</text>',
        ]
    return "\n".join(lines)
