"""`openapi.json` against the server it describes: whatever is sent, the answer is one that the document foresees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from rookery.server.app import create_app
from rookery.server.config import Config

from .fake_engine import FakeEngine
from .server_process import MODEL, ServerProcess, server_process

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
SPEC: dict[str, Any] = create_app(Config(served_model_name=(MODEL,)), FakeEngine()).openapi()
SCHEMA = schemathesis.openapi.from_dict(SPEC, config=SchemathesisConfig())
OPERATIONS = {found.ok().label: found.ok() for found in SCHEMA.get_all_operations() if isinstance(found, Ok)}
WITH_BODY = [label for label, operation in OPERATIONS.items() if operation.body]
FEW, MANY = 8, 200
"""Cases of one operation and kind; there are 10 kinds with a body."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(tmp_path_factory.mktemp("model"), "--max-completion-tokens", "4") as server:
        yield server


def send_cases(server: ServerProcess, label: str, mode: GenerationMode, cases: int) -> None:
    """Send generated requests of one operation; bodies that fit the schema name the served model."""
    checks = CHECKS if mode is GenerationMode.POSITIVE else [*CHECKS, negative_data_rejection]

    @settings(
        max_examples=cases, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(case=OPERATIONS[label].as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = MODEL
        case.call_and_validate(base_url=server.url, session=session, checks=checks, timeout=30)

    with requests.Session() as session:
        send()


@pytest.mark.parametrize("label", OPERATIONS)
def test_requests_that_fit_the_document(server: ServerProcess, label: str) -> None:
    send_cases(server, label, GenerationMode.POSITIVE, FEW if label in WITH_BODY else 3)


@pytest.mark.parametrize("label", WITH_BODY)
def test_requests_that_do_not_fit_are_refused(server: ServerProcess, label: str) -> None:
    send_cases(server, label, GenerationMode.NEGATIVE, FEW)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("label", WITH_BODY)
def test_two_thousand_requests(server: ServerProcess, label: str, mode: GenerationMode) -> None:
    send_cases(server, label, mode, MANY)


def test_every_route_says_how_it_fails() -> None:
    for path, operations in SPEC["paths"].items():
        for method, operation in operations.items():
            assert f"{method.upper()} {path}" in OPERATIONS
            answers = operation["responses"]
            assert {"200", "4XX", "5XX"} <= set(answers) and "422" not in answers, (method, path)
            shape = answers["4XX"]["content"]["application/json"]["schema"]
            assert shape == {"$ref": "#/components/schemas/ErrorBody"}


def test_the_page_lists_every_route(server: ServerProcess) -> None:
    page = httpx.get(f"{server.url}/docs").text
    for path, operations in httpx.get(f"{server.url}/openapi.json").json()["paths"].items():
        assert all(f"<b>{method.upper()}</b> {path}" in page for method in operations)
