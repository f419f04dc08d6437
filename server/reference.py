"""Writes `docs/reference.md` from the code, so that it cannot say anything else: settings, routes, errors, metrics.

`python -m rookery.server.reference` prints it; `make docs` writes it; a test fails when the committed file is stale.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import typing
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from fastapi import FastAPI

from . import config as settings
from . import errors
from .app import create_app
from .config import Config
from .engine.client import EngineClient


def reference() -> str:
    """The whole page, as Markdown."""
    config = Config(served_model_name=("model",))
    app = create_app(config, EngineClient(config, Path("model.safetensors")))
    parts = [
        "# Reference",
        "Made from the code by `make docs`; do not edit.",
        "## Settings of `rookery serve`",
        "Each is a flag, an environment variable and a key of the TOML file given by `--config`; a flag wins over the "
        "environment, the environment over the file.",
        _table(["flag", "environment", "TOML key", "default", "meaning"], _settings()),
        "## Routes",
        _table(["route", "does"], _routes(app)),
        "## Errors",
        'Every error has the body `{"error": {"message", "type", "param", "code"}}`; 429 and 503 carry `Retry-After`.',
        _table(["status", "`type`", "`code`", "when"], _errors()),
        "## Metrics",
        "`GET /metrics`, in Prometheus' text form.",
        _table(["name", "type", "meaning"], _metrics(app)),
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: list[str], rows: Iterator[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _settings() -> Iterator[list[str]]:
    texts = _field_texts()
    hints = typing.get_type_hints(Config)
    for field in dataclasses.fields(Config):
        name = field.name
        default = "" if field.default in (None, ()) else f"`{field.default}`"
        choices = typing.get_args(hints[name]) if typing.get_origin(hints[name]) is typing.Literal else ()
        meaning = texts[name] + (f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else "")
        yield [f"`--{name.replace('_', '-')}`", f"`ROOKERY_{name.upper()}`", f"`{name}`", default, meaning]


def _field_texts() -> dict[str, str]:
    """The string below each field of `Config`."""
    tree = ast.parse(inspect.getsource(settings))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Config")
    texts = {}
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            texts[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return texts


def _routes(app: FastAPI) -> Iterator[list[str]]:
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            text = operation.get("description") or operation["summary"]
            yield [f"`{method.upper()} {path}`", text.split("\n\n")[0].replace("\n", " ")]


def _errors() -> Iterator[list[str]]:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.RookeryError)]
    for kind in sorted(kinds, key=lambda kind: (kind.status, kind.__name__)):
        if kind is not errors.RookeryError:
            text = inspect.getdoc(kind) or ""
            yield [str(kind.status), f"`{kind.kind}`", f"`{kind.code}`", text.split("\n\n")[0].replace("\n", " ")]


def _metrics(app: FastAPI) -> Iterator[list[str]]:
    for metric in sorted(app.state.metrics.registry.collect(), key=lambda metric: metric.name):
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        yield [f"`{name}`", metric.type, metric.documentation]


if __name__ == "__main__":
    print(reference(), end="")
