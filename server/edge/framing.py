"""Heads of requests that parse and must be refused all the same."""

from __future__ import annotations


def framing_fault(url: bytes, headers: list[tuple[bytes, bytes]], version: str) -> str | None:
    """What makes a head ambiguous or improper although it parses: the cause, or None.

    A proxy before this server may read it in another way, so that one request hides a second (request smuggling).
    """
    values: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        values.setdefault(name, []).append(value)
    encodings = values.get(b"transfer-encoding", [])
    if not url.startswith((b"/", b"http://", b"https://")):
        return "the request target must be a path"
    if version not in ("1.0", "1.1"):
        return "only HTTP/1.1 and HTTP/1.0 are spoken here"
    if len(values.get(b"host", ())) != 1 and version == "1.1":
        return "there must be exactly one Host header"
    if len(values.get(b"content-length", ())) > 1:
        return "there is more than one Content-Length header"
    if encodings and b"content-length" in values:
        return "Content-Length and Transfer-Encoding exclude each other"
    if encodings and ([value.strip().lower() for value in encodings] != [b"chunked"] or version == "1.0"):
        return "the only Transfer-Encoding taken is chunked"
    return None
