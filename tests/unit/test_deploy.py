"""deploy/ is held against the real configuration, command line and listener."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.routing import Route

from pacs_node import audit, audit_chain, cli, serve
from pacs_node.config import DicomDestination, DicomWebDestination, Settings, load_settings
from pacs_node.db import AuditEvent, Database, sqlite_url
from pacs_node.listener import Listener
from pacs_node.spool import Spool
from pacs_node.web.app import make_app

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
STATE = "/var/lib/pacs-node"
CONFIG = "/etc/pacs-node/pacs-node.toml"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return parsed


@pytest.fixture(scope="module")
def compose_settings() -> Settings:
    return load_settings(DEPLOY / "pacs-node.compose.toml")


@pytest.fixture(scope="module")
def orthanc() -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((DEPLOY / "orthanc.json").read_text())
    return parsed


def _instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile, continuation lines joined."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def _last(instruction: str) -> str:
    return [value for name, value in _instructions() if name == instruction][-1]


def _health_check() -> list[str]:
    command: list[str] = json.loads(_last("HEALTHCHECK").split("CMD", 1)[1])
    return command


def _unit() -> dict[str, list[str]]:
    """Keys of the service section, each with all its values."""
    parser = configparser.RawConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign] # systemd's keys have capitals
    parser.read(DEPLOY / "pacs-node.service")
    return {key: value.split() for key, value in parser["Service"].items()}


# the configurations


@pytest.mark.parametrize("name", ["pacs-node.example.toml", "pacs-node.compose.toml"])
def test_configuration_loads_and_has_both_ends(name: str) -> None:
    settings = load_settings(DEPLOY / name)
    assert settings.callers
    assert settings.destinations
    assert settings.storage.directory == STATE


def test_example_starts_as_it_is_and_shows_both_ways_of_delivery(tmp_path: Path) -> None:
    (only,) = load_settings(DEPLOY / "pacs-node.example.toml").destinations
    assert isinstance(only, DicomDestination)
    text = (DEPLOY / "pacs-node.example.toml").read_text()
    file = tmp_path / "pacs-node.toml"
    file.write_text(re.sub(r"(?m)^#(?=[a-z\[])", "", text))
    kinds = {type(item) for item in load_settings(file).destinations}
    assert kinds == {DicomDestination, DicomWebDestination}


def test_the_other_way_in_the_compose_configuration_loads_too(tmp_path: Path) -> None:
    text = (DEPLOY / "pacs-node.compose.toml").read_text()
    head, tail = text.split("#[[destinations]]", 1)
    block, rest = tail.split("\n\n", 1)
    file = tmp_path / "pacs-node.toml"
    file.write_text(head + "[[destinations]]" + block.replace("\n#", "\n") + "\n\n" + rest)
    names = [item.name for item in load_settings(file).destinations]
    assert names == ["orthanc", "orthanc-web"]


# systemd


def test_unit_starts_a_real_verb_with_the_installed_configuration() -> None:
    program, verb, *arguments = _unit()["ExecStart"]
    assert program == "/opt/pacs-node/.venv/bin/pacs-node"
    command = cli.main.commands[verb]
    assert verb == "serve"
    (option,) = (parameter for parameter in command.params if "--config" in parameter.opts)
    assert _unit()["Environment"] == [f"{option.envvar}={CONFIG}"]
    assert arguments == []


def test_unit_is_hardened_and_comes_back() -> None:
    unit = _unit()
    expected = {
        "User": "pacs-node",
        "Restart": "always",
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "PrivateTmp": "yes",
        # an analysis that is killed for memory must not take the listener with it
        "OOMPolicy": "continue",
        "StateDirectoryMode": "0700",
        "UMask": "0077",
    }
    assert {key: unit[key] for key in expected} == {key: [value] for key, value in expected.items()}
    assert unit["CapabilityBoundingSet"] == []
    assert "MemoryMax" in unit


def test_unit_lets_the_node_write_where_the_example_stores() -> None:
    unit = _unit()
    assert f"/var/lib/{unit['StateDirectory'][0]}" == STATE
    assert unit["WorkingDirectory"] == [STATE]
    assert f"/etc/{unit['ConfigurationDirectory'][0]}" == str(Path(CONFIG).parent)


def test_unit_waits_longer_than_the_node_needs_to_stop() -> None:
    assert float(_unit()["TimeoutStopSec"][0]) > serve._STOP_SECONDS


# the image


def test_image_runs_a_real_verb_without_root() -> None:
    assert json.loads(_last("ENTRYPOINT")) == ["pacs-node"]
    verb, *arguments = json.loads(_last("CMD"))
    assert verb in cli.main.commands
    assert arguments == ["--config", CONFIG]
    assert _last("USER") == "pacs-node"
    assert _last("VOLUME") == STATE


def test_image_is_built_from_the_locks_only() -> None:
    installs = [value for name, value in _instructions() if name == "RUN" and "pip install" in value]
    assert len(installs) == 3
    assert all("--no-deps" in command.split() for command in installs)
    assert "--require-hashes --no-deps --only-binary :all: -r requirements.lock" in installs[0]
    assert "--require-hashes --no-deps --no-build-isolation" in installs[1]
    assert installs[1].endswith("-r requirements-sdist.lock")
    assert "--no-build-isolation" in installs[2]
    assert installs[2].endswith("pip check")


def test_image_gets_everything_that_the_build_needs_and_nothing_else() -> None:
    copied = {
        source
        for name, value in _instructions()
        if name == "COPY" and not value.startswith("--from")
        for source in value.split()[:-1]
    }
    assert all((REPOSITORY / source).exists() for source in copied)
    admitted = {
        line[1:].rstrip("/")
        for line in (REPOSITORY / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert copied == admitted
    packages = re.search(r"^packages = (\[.*\])", (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert packages is not None
    assert set(json.loads(packages.group(1))) < copied


def test_image_and_unit_use_a_python_that_the_project_supports() -> None:
    found = re.findall(r"FROM python:(\d+)\.(\d+)-slim", (DEPLOY / "Dockerfile").read_text())
    assert len(set(found)) == 1
    assert tuple(map(int, found[0])) >= (3, 11)


# compose: one set of names and ports in four files


def test_compose_publishes_on_loopback_only(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service["ports"]]
    assert ports
    assert all(re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port) for port in ports)


def test_ports_and_names_agree(
    compose: dict[str, Any], compose_settings: Settings, orthanc: dict[str, Any]
) -> None:
    listener = compose_settings.listener
    assert compose["services"]["node"]["ports"] == [f"127.0.0.1:{listener.port}:{listener.port}"]
    assert _last("EXPOSE") == str(listener.port)
    assert orthanc["DicomModalities"] == {"ctnode": [listener.ae_title, "node", listener.port]}
    ports = [orthanc["DicomPort"], orthanc["HttpPort"]]
    assert compose["services"]["orthanc"]["ports"] == [f"127.0.0.1:{port}:{port}" for port in ports]
    destination = compose_settings.destinations[0]
    assert isinstance(destination, DicomDestination)
    assert destination.host in compose["services"]
    assert (destination.port, destination.ae_title) == (orthanc["DicomPort"], orthanc["DicomAet"])
    url = re.search(r'^#url = "(.*)"', (DEPLOY / "pacs-node.compose.toml").read_text(), re.MULTILINE)
    assert url is not None
    assert url.group(1) + "/" == f"http://orthanc:{orthanc['HttpPort']}{orthanc['DicomWeb']['Root']}"


def test_compose_mounts_the_files_where_they_are_read(
    compose: dict[str, Any], orthanc: dict[str, Any]
) -> None:
    mounts = {
        name: dict(volume.split(":")[:2] for volume in service["volumes"])
        for name, service in compose["services"].items()
    }
    assert mounts["node"]["./pacs-node.compose.toml"] == CONFIG
    assert mounts["node"]["node-data"] == STATE
    assert mounts["orthanc"]["orthanc-data"] == orthanc["StorageDirectory"]
    files = [source for service in mounts.values() for source in service if source.startswith("./")]
    assert all((DEPLOY / source).is_file() for source in files)
    named = {source for service in mounts.values() for source in service if not source.startswith("./")}
    assert named == set(compose["volumes"])


def test_compose_builds_our_dockerfile(compose: dict[str, Any]) -> None:
    build = compose["services"]["node"]["build"]
    context = (DEPLOY / build["context"]).resolve()
    assert context == REPOSITORY
    assert (context / build["dockerfile"]).is_file()


def test_callers_come_from_the_compose_network(compose: dict[str, Any], compose_settings: Settings) -> None:
    subnet = compose["networks"]["default"]["ipam"]["config"][0]["subnet"]
    addresses = {caller.ae_title: caller.address for caller in compose_settings.callers}
    assert addresses == {"ORTHANC": subnet, "STORESCU": subnet, "HEALTHCHECK": "127.0.0.1/32"}


# the health check, against a real listener with the callers of the compose configuration


@pytest.fixture
def listener_port(tmp_path: Path, free_port: int, compose_settings: Settings) -> Iterator[int]:
    database = Database(sqlite_url(tmp_path))
    database.upgrade()
    settings = compose_settings.listener.model_copy(update={"host": "127.0.0.1", "port": free_port})
    listener = Listener(settings, compose_settings.callers, database, Spool(tmp_path, 1))
    yield listener.start()
    listener.stop()
    database.dispose()


def _run_health_check(port: int, **changes: str) -> int:
    command = [changes.get(word, word) for word in _health_check()]
    assert command[0] == "python"
    assert command[-2] == "127.0.0.1"
    return subprocess.run(
        [sys.executable, *command[1:-1], str(port)], capture_output=True, timeout=60, check=False
    ).returncode


def test_health_check_finds_a_listener_well(listener_port: int) -> None:
    assert _health_check()[-1] == _last("EXPOSE")
    assert _run_health_check(listener_port) == 0


def test_health_check_notices_a_refusal(listener_port: int) -> None:
    assert _run_health_check(listener_port, HEALTHCHECK="SOMEBODY") != 0


def test_health_check_notices_silence(free_port: int) -> None:
    assert _run_health_check(free_port) != 0


# the runbook


def test_commands_in_the_runbook_exist() -> None:
    text = (DEPLOY / "RUNBOOK.md").read_text()
    verbs = set(re.findall(r"(?:ctnode|exec node pacs-node) ([a-z]+)", text))
    assert {"status", "requeue", "send", "echo"} <= verbs <= set(cli.main.commands)
    for match in re.finditer(r"ctnode ([a-z]+)((?: --[a-z-]+)*)", text):
        options = {
            option for parameter in cli.main.commands[match.group(1)].params for option in parameter.opts
        }
        assert set(shlex.split(match.group(2))) <= options


def test_the_runbook_gives_every_command_its_configuration() -> None:
    text = (DEPLOY / "RUNBOOK.md").read_text()
    assert f"alias ctnode='sudo -u pacs-node env PACS_NODE_CONFIG={CONFIG} " in text
    used = set(re.findall(r"ctnode ([a-z]+)", text))
    for name in used - {"audit", "users"}:
        (option,) = (item for item in cli.main.commands[name].params if "--config" in item.opts)
        assert option.envvar == "PACS_NODE_CONFIG", name


def test_settings_in_the_runbook_exist() -> None:
    sections = Settings.model_fields
    named = re.findall(r"`([a-z]+)\.([a-z_]+)`", (DEPLOY / "RUNBOOK.md").read_text())
    named = [(section, key) for section, key in named if section in sections]
    assert len(named) > 5
    defaults = Settings()
    assert [pair for pair in named if not hasattr(getattr(defaults, pair[0]), pair[1])] == []


def test_addresses_of_the_page_in_the_runbook_exist(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path))
    settings = Settings()
    routes = {route.path for route in make_app(database, settings).routes if isinstance(route, Route)}
    database.dispose()
    named = re.findall(r"http://127\.0\.0\.1:(\d+)(/[a-z/]*)?", (DEPLOY / "RUNBOOK.md").read_text())
    assert len(named) > 1
    assert {int(port) for port, _ in named} == {settings.web.port}
    assert {path or "/" for _, path in named} <= routes


def test_backup_of_a_node_that_writes_can_be_restored(tmp_path: Path) -> None:
    """The runbook's ``.backup`` in the middle of a write transaction: everything committed, nothing else."""
    database = Database(sqlite_url(tmp_path))
    database.upgrade()
    copy = tmp_path / "restored" / "node.db"
    copy.parent.mkdir()
    with database.write() as session:
        audit.record(session, audit.Event.NODE_STARTED, at=datetime.now(UTC), actor="test")
    with database.write() as session:
        audit.record(session, audit.Event.NODE_STOPPED, at=datetime.now(UTC), actor="test")
        source, target = sqlite3.connect(tmp_path / "node.db"), sqlite3.connect(copy)
        source.backup(target)
        source.close()
        target.close()
    database.dispose()
    restored = Database(sqlite_url(copy.parent))
    restored.upgrade()
    assert restored.check() == "ok"
    with restored.read() as session:
        events = [row.event for row in session.query(AuditEvent).order_by(AuditEvent.seq)]
        assert audit_chain.first_bad_row(session) is None
    restored.dispose()
    assert events == [audit.Event.NODE_STARTED.value[0]]
