"""GET /: the web chat of `clients/web`, under a policy that lets it talk to this server only.

The files lie in memory. All but the page itself are reached under a digest of the whole folder, so that a browser may
keep them for ever and never mixes two versions; the page names them by relative paths, so that it also works behind a
proxy that serves it under a prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from fastapi import APIRouter, Request, Response

from ..errors import NotFound, StartupError

FOLDER = Path(__file__).parent.parent.parent / "clients" / "web"
PREFIX = "/web/"
"""Where the page's files are; open without a key, as the page is."""
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Only such files are served."""
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_ASK_AGAIN = "no-cache"
_FOR_EVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class File:
    """One file as it is sent."""

    body: bytes
    type: str
    tag: str

    @classmethod
    def of(cls, body: bytes, suffix: str) -> File:
        return cls(body, TYPES[suffix], f'"{sha256(body).hexdigest()[:32]}"')

    def answer(self, request: Request, caching: str) -> Response:
        """The file, or 304 when the client holds it."""
        headers = HEADERS | {"Cache-Control": caching, "ETag": self.tag}
        known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if known & {self.tag, "*"}:
            return Response(status_code=304, headers=headers)
        return Response(self.body, media_type=self.type, headers=headers)


def page_router(folder: Path = FOLDER) -> APIRouter:
    """Routes of the page and of its files.

    Raises:
        StartupError: the folder is missing from this installation.
    """
    try:
        raw = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.suffix in TYPES
        }
        index = raw.pop("index.html")
    except (OSError, KeyError) as error:
        raise StartupError("the files of the web page are missing", "install Rookery again") from error
    digest = sha256()
    for name, body in raw.items():
        digest.update(b"%s\0%d\0%s" % (name.encode(), len(body), body))
    version = digest.hexdigest()[:16]
    files = {f"{version}/{name}": File.of(body, Path(name).suffix) for name, body in raw.items()}
    page = File.of(index.replace(b'"web/', b'"web/%s/' % version.encode()), ".html")

    router = APIRouter(include_in_schema=False)

    @router.api_route("/", methods=["GET", "HEAD"])
    async def get_page(request: Request) -> Response:
        return page.answer(request, _ASK_AGAIN)

    @router.api_route(PREFIX + "{name:path}", methods=["GET", "HEAD"])
    async def get_file(name: str, request: Request) -> Response:
        if name not in files:
            raise NotFound("the page has no such file; load it again")
        return files[name].answer(request, _FOR_EVER)

    return router
