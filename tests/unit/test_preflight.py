"""What only the machine can tell about a configuration is found before anything starts."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pacs_node import preflight, storage
from pacs_node.cli import main
from pacs_node.config import Settings, parse_settings
from pacs_node.errors import ConfigurationError
from pacs_node.serve import PARTS


@pytest.fixture
def busy() -> Any:
    """A loopback port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_PORT_SECONDS", 0.2)


def settings(base: Path, ports: list[int], **tables: Any) -> Settings:
    raw: dict[str, Any] = {"listener": {"port": ports[0]}, "web": {"port": ports[1]}} | tables
    return parse_settings(raw, base=base)


def refusal(given: Settings, parts: Any = PARTS) -> str:
    with pytest.raises(ConfigurationError) as caught:
        preflight.check(given, parts)
    return str(caught.value)


def test_a_configuration_that_can_run_passes(tmp_path: Path, free_ports: Any) -> None:
    ports = free_ports(2)
    preflight.check(settings(tmp_path, ports), PARTS)
    for port in ports:  # and holds no port
        socket.create_server(("127.0.0.1", port)).close()


def test_nobody_can_connect_to_the_question(
    tmp_path: Path, free_ports: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for the node would take it for the node, and its connection would keep the port in use."""

    def listen(*_args: object) -> None:
        raise AssertionError("the question listens")

    given = settings(tmp_path, free_ports(2))
    monkeypatch.setattr(socket.socket, "listen", listen)
    preflight.check(given, PARTS)


@pytest.mark.parametrize("place", [0, 1])
def test_a_port_in_use_is_named(tmp_path: Path, free_port: int, busy: int, place: int) -> None:
    ports = [free_port, free_port]
    ports[place] = busy
    part = ("listener", "web")[place]
    text = refusal(settings(tmp_path, ports))
    assert text.startswith(f"{part}.port = {busy}: ")
    assert "in use" in text
    # a part that doesn't need it may start
    preflight.check(settings(tmp_path, ports), ["delivery"])


@pytest.mark.parametrize(
    ("tables", "first", "second"),
    [
        ({"web": {"port": 11112}}, "listener", "web"),
        ({"mllp": {"enabled": True, "port": 11112}}, "listener", "mllp"),
        ({"mllp": {"enabled": True, "port": 8080}, "web": {"port": 8080}}, "web", "mllp"),
        (
            {"listener": {"host": "0.0.0.0", "allow_plaintext": True}, "web": {"port": 11112}},
            "listener",
            "web",
        ),
    ],
)
def test_two_doors_at_one_port_are_named(
    tmp_path: Path, tables: dict[str, Any], first: str, second: str
) -> None:
    if "mllp" in tables:
        tables["mllp"]["senders"] = ["127.0.0.1"]
    text = refusal(parse_settings(tables, base=tmp_path), ["delivery"])
    assert f"{second}.port = " in text
    assert f"is {first}.port too; give each a port of its own" in text


def test_a_page_that_is_not_served_needs_no_port(tmp_path: Path, free_port: int, busy: int) -> None:
    given = settings(tmp_path, [free_port, busy], web={"enabled": False, "port": busy})
    preflight.check(given, [name for name in PARTS if name != "web"])


def test_an_address_of_another_machine_is_named(tmp_path: Path, free_ports: Any) -> None:
    listener = {"host": "192.0.2.1", "port": 11112, "allow_plaintext": True}
    text = refusal(settings(tmp_path, free_ports(2), listener=listener))
    assert text.startswith("listener.host = '192.0.2.1': ")


def test_an_unknown_profile_is_named(tmp_path: Path, free_ports: Any) -> None:
    text = refusal(settings(tmp_path, free_ports(2), pipeline={"profile": "fool"}))
    assert text.startswith("pipeline.profile = 'fool': no model card names the profile")
    assert text.endswith("known: classical, full, reference")


def test_a_profile_whose_models_are_missing_is_named(tmp_path: Path, free_ports: Any) -> None:
    text = refusal(settings(tmp_path, free_ports(2), pipeline={"profile": "full"}))
    assert text.startswith("pipeline.profile = 'full': the profile full needs a folder of published models")


def test_a_language_that_is_no_table_is_named(tmp_path: Path, free_ports: Any) -> None:
    (tmp_path / "de.toml").write_text('[language]\ntag = "de-DE"\nname = "German"\n[sentences]\n')
    text = refusal(settings(tmp_path, free_ports(2), pipeline={"wording": str(tmp_path / "de.toml")}))
    assert text.startswith("pipeline.wording = ")
    assert "one_nodule is missing" in text


def test_a_gpu_that_is_not_there_is_named(
    tmp_path: Path, free_ports: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    text = refusal(settings(tmp_path, free_ports(2), pipeline={"device": "cuda"}))
    assert text.startswith("pipeline.device = 'cuda': ")
    assert "cpu" in text


def test_a_missing_password_or_certificate_file_is_named(tmp_path: Path, free_ports: Any) -> None:
    web = {"name": "web", "kind": "dicomweb", "url": "https://pacs.example/dicom-web", "user": "node"}
    for key in ("password_file", "ca_file"):
        text = refusal(settings(tmp_path, free_ports(2), destinations=[{**web, key: "nowhere"}]))
        assert f"{key} = '{tmp_path}/nowhere': can't be read" in text


def test_every_problem_has_its_line(tmp_path: Path, free_port: int, busy: int) -> None:
    text = refusal(settings(tmp_path, [free_port, busy], pipeline={"profile": "full"}))
    assert len(text.splitlines()) == 2


@pytest.mark.parametrize(
    "command", [["serve"], ["listen"], ["work"], ["status"], ["requeue", "1"], ["send", "1"]]
)
def test_a_storage_that_cannot_be_written_is_named_whoever_asks(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # this process keeps its log and its signals
    monkeypatch.setattr("pacs_node.logs.configure", lambda: None)
    monkeypatch.setattr("pacs_node.serve.signal.signal", lambda *_args: None)
    (tmp_path / "file").write_text("not a folder")
    config = tmp_path / "pacs-node.toml"
    config.write_text('[storage]\ndirectory = "file/data"\n')
    done = CliRunner().invoke(main, [*command, "--config", str(config)])
    assert done.exit_code == 1
    assert f"storage.directory = '{tmp_path}/file/data': " in done.output
    assert isinstance(done.exception, SystemExit)


def test_a_storage_whose_disk_is_not_mounted_is_no_new_node(tmp_path: Path) -> None:
    given = parse_settings({"storage": {"directory": str(tmp_path / "mount" / "data")}}, base=tmp_path)
    with pytest.raises(ConfigurationError, match=r"isn't there: is its disk mounted\?"):
        storage.open_database(given)
    assert not (tmp_path / "mount").exists()
    (tmp_path / "mount").mkdir()
    storage.open_database(given).dispose()


def test_a_database_that_is_none_is_named(tmp_path: Path) -> None:
    config = tmp_path / "pacs-node.toml"
    config.write_text("")
    (tmp_path / "pacs-node-data").mkdir()
    (tmp_path / "pacs-node-data" / "node.db").write_bytes(b"no database at all" * 100)
    done = CliRunner().invoke(main, ["status", "--config", str(config)])
    assert done.exit_code == 1
    assert f"sqlite:///{tmp_path}/pacs-node-data/node.db" in done.output
    assert isinstance(done.exception, SystemExit)


def test_init_into_a_folder_that_is_not_there(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["init", "--output", str(tmp_path / "no" / "x.toml")])
    assert done.exit_code == 1
    assert "can't be written" in done.output
    assert isinstance(done.exception, SystemExit)


def test_files_of_the_syslog_server_are_read(tmp_path: Path, free_ports: Any) -> None:
    audit = {"syslog_host": "log.example", "syslog_ca_file": "missing.pem"}
    given = settings(tmp_path, free_ports(2), audit=audit)
    assert f"audit: '{tmp_path}/missing.pem'" in refusal(given)
    preflight.check(given, ["delivery"])
