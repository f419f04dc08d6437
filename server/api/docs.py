"""GET /docs: the routes and their fields as one page, made from the OpenAPI document; works without the internet."""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h2{margin-top:2.5rem;font:600 1.1rem ui-monospace,monospace}h2 b{color:#06c}
table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #ddd;padding:.3rem .5rem;text-align:left;
vertical-align:top}code{font:0.9em ui-monospace,monospace}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}h2 b{color:#6bf}td,th{border-color:#444}}
"""


@router.get("/docs")
async def page(request: Request) -> HTMLResponse:
    html = render(request.app.openapi())
    return HTMLResponse(html, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})


def render(spec: dict[str, Any]) -> str:
    """A page of an OpenAPI document: each operation with the fields of its JSON body."""
    title = escape(f"{spec['info']['title']} {spec['info']['version']}")
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>",
        f"<h1>{title}</h1><p>{escape(spec['info'].get('description', ''))} ",
        "The same as data: <a href=openapi.json>openapi.json</a>.</p>",
    ]
    for path, operations in spec["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h2><b>{method.upper()}</b> {escape(path)}</h2>")
            text = operation.get("description") or operation.get("summary", "")
            parts.append(f"<p>{escape(text)}</p>")
            parts.append(_fields(operation, spec))
    return "".join(parts) + "</html>\n"


def _fields(operation: dict[str, Any], spec: dict[str, Any]) -> str:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    schema = _resolve(content.get("schema", {}), spec)
    required = set(schema.get("required", ()))
    rows = [
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(_type(field))}</td>"
        f"<td>{'required' if name in required else escape(str(field.get('default', '')))}</td>"
        f"<td>{escape(field.get('description', ''))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    ]
    if not rows:
        return ""
    return f"<table><tr><th>field<th>type<th>default<th>meaning</tr>{''.join(rows)}</table>"


def _resolve(schema: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return spec["components"]["schemas"][name] if name else schema


def _type(field: dict[str, Any]) -> str:
    """A field's type in a few words."""
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if "enum" in field or "const" in field:
        return " | ".join(map(str, field.get("enum", [field.get("const")])))
    for key in ("anyOf", "oneOf"):
        if key in field:
            return " | ".join(dict.fromkeys(_type(option) for option in field[key]))
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    return str(field.get("type", "any"))
