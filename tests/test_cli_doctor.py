"""`rookery doctor`: finds what is wrong, says how to mend it, and fails only where the server could not run."""

from __future__ import annotations

import importlib.metadata
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rookery.server import doctor
from rookery.server.cli import main

from .api_server import api_server


def found(name: str, findings: list[doctor.Finding]) -> doctor.Finding:
    return next(finding for finding in findings if finding.name == name)


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = probe.getsockname()[1]
    yield free


def test_everything_is_looked_at(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--port", str(port), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["healthy"] is True
    names = {finding["name"] for finding in report["findings"]}
    assert {"Python", "Rookery", "packages", "torch", "GPU", "compiler", "CPU", "memory", "port", "open files"} <= names
    assert {"temporary folder", "model cache", "built-in model"} <= names
    assert all(finding["mend"] for finding in report["findings"] if finding["level"] != "ok")


def test_a_taken_port_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["doctor", "--port", str(taken.getsockname()[1])]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "Address already in use" in out and "mend: choose another --port" in out


def test_a_port_that_a_rookery_server_has_is_no_error() -> None:
    with api_server() as server:
        (finding,) = doctor._port("127.0.0.1", int(server.url.rpartition(":")[2]))
    assert finding.level == "warning" and "a Rookery server is there (ready)" in finding.found


def test_missing_and_wrong_packages(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["no-such-package>=1", "pytest<1", 'fantasy>=1; extra == "otel"', "rich>=13"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: needs)
    wrong = [finding for finding in doctor.examine("127.0.0.1", port) if finding.name == "packages"]
    assert [finding.level for finding in wrong] == ["error", "error"]
    assert wrong[0].found == "no-such-package is missing" and 'pip install "pytest<1"' in wrong[1].mend


def test_a_temporary_folder_that_is_too_deep_for_a_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    finding = found("temporary folder", list(doctor._folders()))
    assert finding.level == "error" and "TMPDIR" in finding.mend


def test_a_data_folder_that_cannot_be_made(tmp_path: Path) -> None:
    assert found("data folder", list(doctor._folders(tmp_path / "new"))).level == "ok"
    file = tmp_path / "file"
    file.touch()
    assert found("data folder", list(doctor._folders(file / "data"))).level == "error"


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "_has_driver", lambda: False)
    assert found("compiler", list(doctor._compiler())).level == "ok"
    monkeypatch.setattr(doctor, "_has_driver", lambda: True)
    finding = found("compiler", list(doctor._compiler()))
    assert finding.level == "warning" and "install gcc" in finding.mend


def test_without_the_native_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "server" / "doctor.py"))
    finding = found("native library", list(doctor._compiler()))
    assert finding.level == "warning" and "install Rookery again" in finding.mend


def test_a_full_disk_and_little_memory_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_LITTLE_DISK", 2**80)
    monkeypatch.setattr(doctor, "_LITTLE_MEMORY", 2**80)
    assert found("model cache", list(doctor._folders())).level == "warning"
    assert found("memory", list(doctor._memory())).level == "warning"
