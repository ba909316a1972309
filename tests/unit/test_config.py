"""The configuration: defaults, refusals that say what would be right, and the file that `init` writes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_sr.profiles import PROFILES
from pacs_node.config import Caller, DicomDestination, DicomWebDestination, Settings, load_settings
from pacs_node.config import parse_settings as parse
from pacs_node.config_template import render_settings
from pacs_node.errors import ConfigurationError

BASE = Path("/etc/node")
DICOM = {"name": "pacs", "kind": "dicom", "host": "10.0.0.1", "port": 104, "ae_title": "PACS"}
WEB = {"name": "web", "kind": "dicomweb", "url": "https://pacs.example/dicom-web"}


def refusal(raw: dict[str, Any]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parse(raw, base=BASE)
    return str(caught.value)


def test_an_empty_file_is_the_defaults() -> None:
    settings = parse({}, base=BASE)
    usual = Settings()
    with_paths = {"storage": usual.storage, "pipeline": usual.pipeline, "audit": usual.audit}
    assert settings.model_copy(update=with_paths) == usual
    assert settings.pipeline.models == "/etc/node/pacs-node-models"
    assert settings.storage.directory == "/etc/node/pacs-node-data"
    assert settings.audit.heads_file == "/etc/node/pacs-node-data/audit-heads.jsonl"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().listener.port = 1  # type: ignore[misc] # that is the test


def test_the_template_shows_the_defaults_and_sets_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pacs-node.toml"
    path.write_text(render_settings(), encoding="utf-8")
    assert load_settings(path) == parse({}, base=tmp_path)
    assert not any(tomllib.loads(path.read_text(encoding="utf-8")).values())
    sections = re.split(r"(?m)^(?=\[[a-z]+\]$)", render_settings())
    shown = [re.sub(r"(?m)^#(?=[a-z0-9_]+ = )", "", one.partition("\n\n")[0]) for one in sections[1:]]
    raw = tomllib.loads("\n".join(shown))
    assert parse(raw, base=tmp_path) == parse({}, base=tmp_path)
    assert all(raw.values())


def test_the_template_explains_every_setting() -> None:
    text = render_settings()
    for section, field in Settings.model_fields.items():
        if section in {"callers", "destinations"}:
            assert f"#[[{section}]]" in text
            continue
        assert isinstance(field.annotation, type)
        for name, item in field.annotation.model_fields.items():
            assert item.description
            assert f"# {item.description}\n#{name} = " in text


@pytest.mark.parametrize("which", [0, 1, 2])
def test_each_commented_example_is_valid_once_uncommented(tmp_path: Path, which: int) -> None:
    tables: list[list[str]] = []
    for line in render_settings().splitlines():
        if line.startswith("#[["):
            tables.append([line[1:]])
        elif line.startswith("["):
            tables.append([])
        elif line.startswith("#") and not line.startswith("# "):
            tables[-1].append(line[1:])
    tables = [lines for lines in tables if lines and lines[0].startswith("[[")]
    assert len(tables) == 3
    path = tmp_path / "pacs-node.toml"
    path.write_text("\n".join(tables[which]), encoding="utf-8")
    settings = load_settings(path)
    assert len(settings.callers) + len(settings.destinations) == 1


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"callers": {"ae_title": "PACS", "address": "10.1.2.3"}}, "write [[callers]], with double brackets"),
        ({"destinations": [{"name": "pacs"}]}, 'write kind = "dicom" or kind = "dicomweb"'),
        ({"destinations": [DICOM | {"name": "My PACS"}]}, "lower case letters, digits, - and _"),
    ],
)
def test_what_would_be_right_is_said_for_people(raw: dict[str, Any], says: str) -> None:
    assert says in refusal(raw)


def test_the_template_takes_tables_and_values() -> None:
    caller = Caller(ae_title="PACS", address="10.1.0.0/16")
    dicom, web = DicomDestination.model_validate(DICOM), DicomWebDestination.model_validate(WEB)
    text = render_settings(
        callers=[caller],
        destinations=[dicom, web],
        overrides={"listener": {"port": 1}, "web": {"port": 81}},
    )
    settings = parse(tomllib.loads(text), base=BASE)
    assert settings.callers == (caller,)
    assert [item.name for item in settings.destinations] == ["pacs", "web"]
    assert isinstance(settings.destinations[1], DicomWebDestination)
    assert (settings.listener.port, settings.web.port) == (1, 81)


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1))
def test_any_text_survives_the_template(text: str) -> None:
    raw = tomllib.loads(render_settings(overrides={"pipeline": {"profile": text}}))
    assert raw["pipeline"]["profile"] == text


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"listener": {"port": 0}}, ["listener.port = 0:", "greater than or equal to 1"]),
        ({"listener": {"port": "104"}}, ["listener.port = '104':", "integer"]),
        ({"listener": {"prot": 104}}, ["listener.prot: unknown key", "did you mean 'port'"]),
        ({"lisener": {}}, ["lisener: unknown key", "did you mean 'listener'"]),
        ({"web": {"zzz": 1}}, ["web.zzz: unknown key", "known keys: api_requests_per_minute, enabled, host"]),
        ({"listener": {"ae_title": "A" * 17}}, ["listener.ae_title = 'AAAAAAAAAAAAAAAAA':", "1 to 16"]),
        ({"listener": {"ae_title": "A\\B"}}, ["listener.ae_title", "no backslash"]),
        ({"listener": {"ae_title": "  "}}, ["listener.ae_title", "1 to 16"]),
        ({"listener": {"host": "0.0.0.0"}}, ["listener:", "allow_plaintext = true"]),
        ({"web": {"host": "0.0.0.0"}}, ["web:", "127.0.0.1"]),
        ({"completeness": {"quiet_seconds": 1}}, ["completeness:", "at least settle_seconds (10)"]),
        ({"pipeline": {"device": "gpu"}}, ["pipeline.device = 'gpu':", "'cpu'", "'cuda'"]),
        ({"callers": [{"ae_title": "PACS"}]}, ["callers[0].address: is required and missing"]),
        ({"callers": [{"ae_title": "P", "address": "10.1.2.3/24"}]}, ["callers[0].address", "10.1.2.0/24"]),
        ({"callers": [{"ae_title": "P", "address": "pacs"}]}, ["callers[0].address = 'pacs'", "10.1.2.3"]),
        ({"destinations": [DICOM, DICOM]}, ["destinations", "'pacs' is used twice"]),
        ({"destinations": [{**DICOM, "ur": 1}]}, ["destinations[0].ur: unknown key"]),
        (
            {"destinations": [{**DICOM, "send": []}]},
            ["destinations: ", "gets nothing", "archive.destination"],
        ),
        (
            {"destinations": [{**DICOM, "send": ["seg", "gsps"]}]},
            ["destinations[0].send[1] = 'gsps'", "'seg'"],
        ),
        (
            {"destinations": [{**DICOM, "profile": "osirix"}]},
            ["destinations[0].profile = 'osirix'", "'legacy'"],
        ),
        ({"destinations": [{**DICOM, "kind": "ftp"}]}, ["destinations[0]", "'dicom'", "'dicomweb'"]),
        ({"destinations": [{"name": "x"}]}, ["destinations[0]", "kind"]),
        ({"destinations": [{**DICOM, "name": "A b"}]}, ["destinations[0].name = 'A b'"]),
        ({"destinations": [{**WEB, "url": "pacs/x"}]}, ["destinations[0].url = 'pacs/x'"]),
        ({"destinations": [{**WEB, "verify": "c-find"}]}, ["destinations[0].verify", "'qido'"]),
        ({"storage": {"reserve_mb": 0}}, ["storage.reserve_mb = 0:"]),
        ({"storage": {"database_url": "postgresql://db"}}, ["storage.database_url", "postgresql://user@"]),
        (
            {"storage": {"database_url": "postgresql://db:x/y"}},
            ["storage.database_url", "postgresql://user@"],
        ),
        ({"storage": {"database_url": "mysql://db/node"}}, ["storage.database_url", "sqlite:///"]),
        ({"storage": {"database_password_file": "x"}}, ["storage: ", "set database_url"]),
        ({"storage": {"database_url": "sqlite://"}}, ["storage.database_url", "sqlite:///"]),
        ({"storage": {"database_url": "sqlite:///:memory:"}}, ["storage.database_url", "sqlite:///"]),
        ({"completeness": {"quiet_seconds": float("inf")}}, ["completeness.quiet_seconds = inf:"]),
        ({"delivery": {"give_up_hours": float("nan")}}, ["delivery.give_up_hours = nan:"]),
        (
            {"delivery": {"give_up_hours": 1e15}},
            ["delivery.give_up_hours = 1000000000000000.0:", "less than"],
        ),
        ({"retention": {"images_days": float("inf")}}, ["retention.images_days = inf:"]),
        ({"retention": {"results_days": 1e9}}, ["retention.results_days", "less than"]),
        ({"retention": {"images_days": -1}}, ["retention.images_days = -1"]),
    ],
)
def test_a_wrong_value_is_refused_with_key_value_and_what_is_right(
    raw: dict[str, Any], expected: list[str]
) -> None:
    text = refusal(raw)
    assert len(text.splitlines()) == 1
    for part in expected:
        assert part in text


def test_every_problem_has_a_line_of_its_own() -> None:
    lines = refusal({"listener": {"port": 0, "prot": 1}, "web": {"port": 70000}}).splitlines()
    assert len(lines) == 3


def test_an_archive_may_be_asked_only() -> None:
    raw = {"destinations": [{**DICOM, "send": []}], "archive": {"destination": DICOM["name"]}}
    (item,) = Settings.model_validate(raw).destinations
    assert item.forms == ()


def test_a_password_is_never_in_the_file() -> None:
    assert "password" not in {*DicomDestination.model_fields, *DicomWebDestination.model_fields}


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://node:s3cr@t/!@db/node",
        "postgresql+psycopg://node:s3cr@t/!@db/node",
        "postgresql://node@db/node?password=s3cr%40t/!",
        "mysql://node:s3cr@t/!@db/node",
    ],
)
def test_a_password_in_the_url_is_refused_and_not_repeated(url: str) -> None:
    text = refusal({"storage": {"database_url": url}})
    assert "storage.database_url = " in text
    assert "s3cr" not in text


def test_postgresql_is_a_database_too(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(
        '[storage]\ndatabase_url = "postgresql+psycopg://node@db:5433/node?sslmode=verify-full"\n'
        'database_password_file = "secret"\n',
        encoding="utf-8",
    )
    storage = load_settings(path).storage
    assert storage.database_url == "postgresql://node@db:5433/node?sslmode=verify-full"
    assert storage.database_password_file == str(tmp_path / "secret")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "pacs-node.toml"
    path.write_text(
        '[storage]\ndirectory = "data"\ndatabase_url = "sqlite:///db/node.db"\n'
        '[[destinations]]\nname = "web"\nkind = "dicomweb"\nurl = "https://pacs.example"\n'
        'password_file = "password.txt"\nca_file = "/etc/ca.pem"\n',
        encoding="utf-8",
    )
    settings = load_settings(path)
    assert settings.storage.directory == str(tmp_path / "data")
    assert settings.storage.database_url == f"sqlite:///{tmp_path}/db/node.db"
    web = settings.destinations[0]
    assert isinstance(web, DicomWebDestination)
    assert (web.password_file, web.ca_file) == (str(tmp_path / "password.txt"), "/etc/ca.pem")


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "no such file"), (b"[listener", "not valid TOML"), (b"\xff\xfe", "can't be read")],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, expected: str) -> None:
    path = tmp_path / "x.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=expected):
        load_settings(path)
    with pytest.raises(ConfigurationError, match="can't be read"):
        load_settings(tmp_path)


@pytest.mark.parametrize(
    ("ae_title", "address", "admitted"),
    [
        ("PACS", "10.1.2.3", True),
        ("PACS", "10.1.2.255", True),
        ("PACS", "10.1.3.1", False),
        ("pacs", "10.1.2.3", False),
        ("PACS", "::1", False),
        ("", "10.1.2.3", False),
    ],
)
def test_a_caller_is_title_and_network(ae_title: str, address: str, admitted: bool) -> None:
    caller = Caller(ae_title="PACS", address="10.1.2.0/24")
    assert caller.admits(ae_title, address) is admitted


def test_a_profile_says_what_goes_to_a_destination_and_the_site_may_change_it() -> None:
    def forms(**changes: object) -> tuple[str, ...]:
        settings = parse({"destinations": [{**DICOM, **changes}]}, base=BASE)
        return settings.destinations[0].forms

    assert forms() == ("seg", "sr")
    assert {name: forms(profile=name) for name in PROFILES} == {
        name: profile.forms for name, profile in PROFILES.items()
    }
    assert forms(profile="legacy", send=["pdf", "sc"]) == ("sc", "pdf")
    assert forms(profile="slicer", empty_frames=False) == ("seg", "sr")
    assert forms(profile="ohif", segmentation="labelmap", report="enhanced") == (
        "seg:labelmap",
        "sr:enhanced+labelmap",
    )
