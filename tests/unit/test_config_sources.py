"""Where each value comes from, and that nothing secret is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pacs_node.config import Settings, load_settings, parse_settings
from pacs_node.config_sources import HIDDEN, SettingTable, setting_tables, shown


def tables(settings: Settings) -> dict[str, SettingTable]:
    return {table.title: table for table in setting_tables(settings)}


def test_every_setting_says_where_it_comes_from(tmp_path: Path) -> None:
    """Also those whose relative paths were made absolute."""
    path = tmp_path / "pacs-node.toml"
    path.write_text(
        '[listener]\nport = 104\n[storage]\ndirectory = "data"\n'
        '[[callers]]\nae_title = "PACS"\naddress = "10.1.2.3"\n'
        '[[destinations]]\nkind = "dicomweb"\nname = "w"\nurl = "https://h/w"\npassword_file = "p"\n'
    )
    found = tables(load_settings(path))
    from_file = {
        (title, line.key): line.value
        for title, table in found.items()
        for line in table.lines
        if not line.is_default
    }
    assert from_file == {
        ("[listener]", "port"): "104",
        ("[storage]", "directory"): f'"{tmp_path / "data"}"',
        ("[[callers]]", "ae_title"): '"PACS"',
        ("[[callers]]", "address"): '"10.1.2.3/32"',
        ("[[destinations]]", "kind"): '"dicomweb"',
        ("[[destinations]]", "name"): '"w"',
        ("[[destinations]]", "url"): '"https://h/w"',
        ("[[destinations]]", "password_file"): f'"{tmp_path / "p"}"',
    }
    keys = {(title, line.key) for title, table in found.items() for line in table.lines}
    assert {("[pipeline]", "profile"), ("[web]", "port"), ("[audit]", "heads_file")} <= keys
    assert all(line.meaning for table in found.values() for line in table.lines)


def test_a_default_path_is_a_default(tmp_path: Path) -> None:
    found = tables(parse_settings({}, base=tmp_path))
    assert all(line.is_default for table in found.values() for line in table.lines)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("database_url", "postgresql://node:s3cret@db/pacs", f'"postgresql://node:{HIDDEN}@db/pacs"'),
        ("url", "https://hooks.example/x?token=s3cret", f'"https://hooks.example/x?{HIDDEN}"'),
        ("smtp_password", "s3cret", HIDDEN),
        ("client_secret", "s3cret", HIDDEN),
        ("token", "", '""'),
        ("metrics_token_file", "/etc/token", '"/etc/token"'),
        ("roles", {"admins": "administrator"}, '{admins = "administrator"}'),
        ("names", ("a", "b"), '["a", "b"]'),
        ("enabled", True, "true"),
        ("send", None, "absent"),
        ("hours", 2.0, "2"),
    ],
)
def test_values_for_people(key: str, value: Any, expected: str) -> None:
    assert shown(key, value) == expected
