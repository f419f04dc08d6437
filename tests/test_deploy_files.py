"""The container files against what they speak of: sources, settings, metrics and limits that exist."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client.parser import text_string_to_metric_families

from rookery.server.config import Config

from .api_server import api_in_process

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
GPU: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text())
OURS = ("rookery", "rookery-2")


def copied() -> list[str]:
    """What the Dockerfile copies from the checkout."""
    sources = []
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        sources += line.split()[:-1]
    return sources


def ignore_rules() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_every_copied_source_exists_and_is_not_ignored() -> None:
    allowed = {rule.removeprefix("!") for rule in ignore_rules() if rule.startswith("!")}
    assert copied()
    for source in copied():
        assert (ROOT / source).exists(), source
        assert source in allowed, source


def test_the_build_sees_nothing_but_what_it_copies() -> None:
    assert ignore_rules()[0] == "*"
    assert {rule.removeprefix("!") for rule in ignore_rules() if rule.startswith("!")} == set(copied())


def test_stages_are_named_and_used() -> None:
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert len(stages) == DOCKERFILE.count("\nFROM ")
    names = [name for _, name in stages]
    used = {base for base, _ in stages} | set(re.findall(r"--from=(\S+)", DOCKERFILE))
    assert used <= {*names, "${PYTHON_IMAGE}"}
    assert set(names) - used == {"gpu", "cpu"} and names[-1] == "cpu"
    assert COMPOSE["services"]["rookery"]["build"]["target"] == "cpu"
    assert GPU["services"]["rookery"]["build"]["target"] == "gpu"


def test_the_base_image_is_pinned_and_the_user_is_not_root() -> None:
    assert re.search(r"^ARG PYTHON_IMAGE=python:\d+\.\d+\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)
    for target in ("gpu", "server"):
        stage = DOCKERFILE.split(f" AS {target}\n")[1].split("\nFROM ")[0]
        assert re.findall(r"^USER (\S+)$", stage, re.MULTILINE)[-1] == "10001:10001"


def test_no_secret_in_a_layer() -> None:
    arguments = re.findall(r"^(?:ARG|ENV)\s+(\w+)", DOCKERFILE, re.MULTILINE)
    assert not [name for name in arguments if re.search("KEY|TOKEN|SECRET|PASSWORD", name)]
    assert not any(rule in ("!.env", "!.git") for rule in ignore_rules())


@pytest.mark.parametrize(
    "name", ["docker/Dockerfile", "docker-compose.yml", "docker-compose.gpu.yml", "docs/deployment.md", "README.md"]
)
def test_every_variable_is_a_setting(name: str) -> None:
    settings = {field.name.upper() for field in dataclasses.fields(Config)} | {"MODEL", "CONFIG"}
    for variable in re.findall(r"\bROOKERY_([A-Z_]+)", (ROOT / name).read_text()):
        assert variable in settings, f"ROOKERY_{variable}"


def test_bind_mounts_exist() -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
            elif not source.startswith("${"):
                assert source in COMPOSE["volumes"]


@pytest.mark.parametrize("name", OURS)
def test_our_containers_may_do_nothing_they_need_not(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True and service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    targets = {re.sub(r"\$\{.*?\}", "weights", volume).partition(":")[2] for volume in service["volumes"]}
    assert targets == {"/models:ro", "/cache", "/data"}


def test_ports_are_for_this_machine_only() -> None:
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_two_servers_never_share_a_data_folder() -> None:
    folders = [v.split(":")[0] for name in OURS for v in COMPOSE["services"][name]["volumes"] if v.endswith(":/data")]
    assert len(set(folders)) == len(OURS)


def test_the_grace_of_the_container_is_longer_than_the_servers() -> None:
    for name in OURS:
        grace_s = int(COMPOSE["services"][name]["stop_grace_period"].removesuffix("s"))
        assert grace_s > Config().shutdown_grace + 5


def test_the_servers_answer_to_their_names_in_the_network() -> None:
    for name in OURS:
        assert set(OURS) <= set(COMPOSE["services"][name]["environment"]["ROOKERY_ALLOWED_HOST"].split())


def test_profiles_start_what_they_promise() -> None:
    profiles: dict[str, set[str]] = {}
    for name, service in COMPOSE["services"].items():
        for profile in service.get("profiles", ["always"]):
            profiles.setdefault(profile, set()).add(name)
    assert profiles == {
        "always": {"rookery"},
        "observe": {"prometheus", "grafana"},
        "ui": {"open-webui"},
        "scale": {"rookery-2", "nginx"},
    }


def test_the_gpu_override_reserves_a_gpu_for_every_server() -> None:
    assert set(GPU["services"]) == set(OURS)
    for service in GPU["services"].values():
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_nginx_allows_what_the_server_allows() -> None:
    text = (ROOT / "docker/nginx/nginx.conf").read_text()
    assert f"client_max_body_size {Config().max_body // 2**20}m;" in text
    assert f"proxy_read_timeout {Config().request_timeout:.0f}s;" in text
    assert "proxy_buffering off;" in text
    for name in OURS:
        assert f"server {name}:8000 " in text


def metrics_asked_for() -> set[str]:
    """Every metric that the dashboard and the alerts read."""
    dashboard = (ROOT / "docker/grafana/dashboards/rookery.json").read_text()
    alerts = (ROOT / "docker/prometheus/alerts.yml").read_text()
    return set(re.findall(r"\brookery_[a-z_]+\b", dashboard + alerts))


async def test_every_metric_a_dashboard_reads_exists() -> None:
    async with api_in_process() as api:
        text = (await api.client.get("/metrics")).text
    known: set[str] = set()
    for family in text_string_to_metric_families(text):
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        known |= {family.name + suffix for suffix in suffixes}
    asked = metrics_asked_for()
    assert len(asked) > 12
    assert asked <= known, asked - known


def test_the_dashboard_is_whole() -> None:
    dashboard = json.loads((ROOT / "docker/grafana/dashboards/rookery.json").read_text())
    source = yaml.safe_load((ROOT / "docker/grafana/provisioning/datasources/prometheus.yml").read_text())
    uid = source["datasources"][0]["uid"]
    cells: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        assert panel["datasource"]["uid"] == uid and panel["title"] and panel["targets"]
        place = panel["gridPos"]
        area = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & area and all(x < 24 for x, _ in area)
        cells |= area
    provider = yaml.safe_load((ROOT / "docker/grafana/provisioning/dashboards/rookery.yml").read_text())
    path = provider["providers"][0]["options"]["path"]
    assert any(volume.split(":")[1] == path for volume in COMPOSE["services"]["grafana"]["volumes"])


def test_prometheus_scrapes_the_servers() -> None:
    config = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert set(job["dns_sd_configs"][0]["names"]) == set(OURS)
    for file in config["rule_files"]:
        assert (ROOT / "docker/prometheus" / file).is_file()


def test_ignored_patterns_hide_no_tracked_source() -> None:
    patterns = [rule.removeprefix("**/") for rule in ignore_rules() if rule.startswith("**/")]
    for source in ("server", "kernels", "clients"):
        for path in (ROOT / source).rglob("*"):
            if path.suffix in (".py", ".c", ".h", ".js", ".html", ".toml"):
                parts = path.relative_to(ROOT).parts
                hidden = any(fnmatch.fnmatch(part, pattern) for part in parts for pattern in patterns)
                assert not hidden, path
