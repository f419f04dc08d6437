"""Pages of other origins: those of `--cors-origin` may call, and a refusal is an error body like any other."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

from ..errors import InvalidRequest


class Cors(CORSMiddleware):
    """Starlette's, which refuses preflights in plain text."""

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        refusal = InvalidRequest("this origin, method or header is not allowed here; --cors-origin lists the origins")
        headers = {name: value for name, value in answer.headers.items() if not name.startswith("content-")}
        return JSONResponse(refusal.body(), status_code=refusal.status, headers=headers)
