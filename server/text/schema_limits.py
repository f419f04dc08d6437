"""Bounds on a JSON schema before anything is made of it, and the keywords that cannot be enforced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidRequest

MAX_SCHEMA_CHARS = 64 * 1024
MAX_DEPTH = 48
MAX_PROPERTIES = 500
"""Of one object: each may come in any subset, so their number counts twice."""
MAX_COMBINED_PATTERNS = 6
"""Patterns and formats of a schema that combines schemas: each more may double the work of compiling it."""

UNSUPPORTED = frozenset(
    (
        "not if then else contains minContains maxContains uniqueItems dependentRequired dependentSchemas dependencies "
        "propertyNames unevaluatedProperties unevaluatedItems $dynamicRef $recursiveRef"
    ).split()
)
"""Keywords that restrict values in ways a grammar cannot."""
REFUSED = frozenset(("x-guidance",))
"""A keyword that would steer the compiler."""
_HOLDS_NAMES = frozenset(("properties", "patternProperties", "$defs", "definitions"))
_HOLDS_VALUES = frozenset(("const", "enum", "default", "examples", "example"))
_COMBINERS = ("anyOf", "oneOf", "$ref")


def check_schema(schema: Mapping[str, Any], *, param: str) -> None:
    """Refuse a schema that is too large, too deep, or uses what cannot be enforced.

    Raises:
        InvalidRequest: names the keyword, or the limit and the value.
    """
    _check_values(schema, param)
    size = len(json.dumps(schema))
    if size > MAX_SCHEMA_CHARS:
        raise InvalidRequest(f"{param} has {size} characters; at most {MAX_SCHEMA_CHARS} are served", param=param)
    patterns = 0
    combines = False
    for node in _schemas(schema):
        bad = sorted((UNSUPPORTED | REFUSED) & node.keys())
        if bad:
            raise InvalidRequest(
                f"{param} uses keywords that cannot be enforced: {', '.join(bad)}",
                param=param,
                code="unsupported_keyword",
            )
        properties = _table(node, "properties", param)
        if len(properties) > MAX_PROPERTIES:
            raise InvalidRequest(
                f"{param} has an object of {len(properties)} properties; at most {MAX_PROPERTIES} are served",
                param=param,
            )
        if not isinstance(node.get("required", []), list):
            raise InvalidRequest(f"{param}: required must be an array", param=param)
        reference = node.get("$ref")
        if reference is not None and not (isinstance(reference, str) and reference.startswith("#")):
            raise InvalidRequest(f"{param}: $ref must point into the schema itself (#/…)", param=param)
        limits = ("pattern" in node) + ("format" in node) + len(_table(node, "patternProperties", param))
        patterns += limits
        combines |= "allOf" in node or (limits > 0 and any(key in node for key in _COMBINERS))
    if combines and patterns > MAX_COMBINED_PATTERNS:
        raise InvalidRequest(
            f"{param} combines schemas and has {patterns} patterns and formats; "
            f"together at most {MAX_COMBINED_PATTERNS} are served",
            param=param,
        )


def check_arguments(schema: Mapping[str, Any], *, param: str) -> None:
    """The same for a tool's parameters, which are an object by name.

    Raises:
        InvalidRequest: as `check_schema`, or for arguments that are no object.
    """
    check_schema(schema, param=param)
    kinds = schema.get("type", "object")
    if "object" not in (kinds if isinstance(kinds, list) else [kinds]):
        raise InvalidRequest(f"{param}: a tool's arguments are an object, not {str(kinds)[:100]}", param=param)


def _table(node: Mapping[str, Any], key: str, param: str) -> Mapping[str, Any]:
    """A keyword that holds schemas by name."""
    table = node.get(key, {})
    if not isinstance(table, Mapping):
        raise InvalidRequest(f"{param}: {key} must be an object", param=param)
    return table


def _check_values(schema: Any, param: str) -> None:
    """Depth, and integers: a schema is stored with its response and sent back, and others read 64 bits."""
    level = [schema]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ())
        ]
        if any(isinstance(value, int) and not -(2**63) <= value < 2**63 for value in level):
            raise InvalidRequest(f"{param} has an integer of more than 64 bits", param=param)
        if not level:
            return
    raise InvalidRequest(f"{param} is nested more than {MAX_DEPTH} deep", param=param)


def _schemas(root: Any) -> list[Mapping[str, Any]]:
    """Every object of the schema that is itself a schema: not the tables of names, not constants."""
    found: list[Mapping[str, Any]] = []
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting.extend(node)
        elif isinstance(node, Mapping):
            found.append(node)
            for key, value in node.items():
                if key in _HOLDS_NAMES and isinstance(value, Mapping):
                    waiting.extend(value.values())
                elif key not in _HOLDS_VALUES:
                    waiting.append(value)
    return found
