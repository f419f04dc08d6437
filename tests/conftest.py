"""Shared by all tests: their order, where the fixtures are, and which certificates are read."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BESIDE, INSIDE = ROOT.parent / "shared" / "fixtures", ROOT / "shared" / "fixtures"
SHARED = INSIDE if INSIDE.is_dir() else BESIDE
"""Inside the checkout where only that is taken along, as to a machine with a GPU."""
_END = "-----END CERTIFICATE-----\n"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file goes first: begun last, it would leave one of two workers without work."""
    items.sort(key=lambda item: item.path.name != "test_triton_interpreter.py")


@pytest.fixture(scope="session", autouse=True)
def few_certificates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One certificate for httpx to read, which reads all it knows for each client it makes: 60 ms, a thousand times
    in these tests, which speak plain HTTP to this machine."""
    if importlib.util.find_spec("httpx") is None:  # a machine for kernels alone
        yield
        return
    import certifi

    known = Path(certifi.where()).read_text()
    one = tmp_path_factory.mktemp("certificates") / "one.pem"
    one.write_text(known[: known.index(_END)] + _END)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SSL_CERT_FILE", str(one))
        yield


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of real and random small checkpoints with golden outputs; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the fixtures folder is not beside this checkout (../shared/fixtures)")
    return SHARED
