"""Writes the commented configuration file from the declarations in `config`."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter

from pacs_node.config import Caller, DicomDestination, DicomWebDestination, Settings


def render_settings(
    *,
    callers: list[Caller] | None = None,
    destinations: list[DicomDestination | DicomWebDestination] | None = None,
    overrides: dict[str, dict[str, Any]] | None = None,
) -> str:
    """Return a commented TOML file with every setting, its default and its explanation.

    What isn't asked for stays a comment, so that a better default of a later version is taken.

    Parameters
    ----------
    callers, destinations
        Tables to write; with none, a commented example is written.
    overrides
        Values other than the defaults: section name -> key -> value.
    """
    lines = [
        "# pacs-node configuration. Every setting stands here; one behind a # has the default that is shown.",
        "# Research software, not a medical device: results are not for primary diagnosis.",
        "",
    ]
    for section, field in Settings.model_fields.items():
        if section == "callers":
            lines += _render_tables("callers", [Caller], list(callers or []))
        elif section == "destinations":
            models: list[type[BaseModel]] = [DicomDestination, DicomWebDestination]
            lines += _render_tables("destinations", models, list(destinations or []))
        else:
            model = field.annotation
            if not (
                isinstance(model, type) and issubclass(model, BaseModel)
            ):  # pragma: no cover - a programming error
                raise TypeError(section)
            changed = (overrides or {}).get(section, {})
            lines += [f"# {_first_line(model)}", f"[{section}]"]
            for name, item in model.model_fields.items():
                mark = "" if name in changed else "#"
                lines += [f"# {item.description}", f"{mark}{name} = {_toml(changed.get(name, item.default))}"]
            lines.append("")
    return "\n".join(lines)


def render_caller(caller: Caller) -> str:
    """Return the TOML lines that admit one sender."""
    values = caller.model_dump(mode="json", exclude_none=True)
    return "\n".join(["[[callers]]", *(f"{name} = {_toml(value)}" for name, value in values.items())])


_EXAMPLES = {
    "ae_title": "PACS",
    "address": "127.0.0.1/32",
    "name": "pacs",
    "host": "127.0.0.1",
    "port": 4242,
    "url": "https://pacs.example/dicom-web",
    "user": "node",
    "password_file": "pacs-password.txt",
    "ca_file": "ca.pem",
    "calling_ae_title": "CTNODE",
    "reports_as": "PACS",
    "called_ae_title": "CTNODE",
    "certificate_sha256": "0" * 64,
    "report_port": 4242,
    "report_host": "127.0.0.1",
    "tls_ca_file": "pacs.pem",
    "tls_certificate_file": "node.pem",
    "tls_key_file": "node.key",
    "tls_server_name": "pacs.example",
    "send": ["seg", "sr"],
    "segmentation": "binary",
    "empty_frames": False,
    "report": "comprehensive-3d",
}


def _render_tables(section: str, models: list[type[BaseModel]], rows: list[Any]) -> list[str]:
    lines = []
    for row in rows:
        lines += [f"# {_first_line(type(row))}", f"[[{section}]]"]
        values = row.model_dump(mode="json", exclude_none=True)
        lines += [f"{name} = {_toml(value)}" for name, value in values.items()] + [""]
    if rows:
        return lines
    for model in models:
        lines += [f"# {_first_line(model)}", f"#[[{section}]]"]
        for name, item in model.model_fields.items():
            value = item.default if not item.is_required() and item.default is not None else None
            shown = (
                value
                if value is not None
                else _EXAMPLES.get(name, get_args(item.annotation)[:1] and get_args(item.annotation)[0])
            )
            lines += [f"#{name} = {_toml(shown)}  # {item.description}"]
        lines.append("")
    return lines


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


_STRING = TypeAdapter(str)


def _toml(value: Any) -> str:
    """A TOML literal for the types that settings use (JSON strings are TOML basic strings)."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"{value}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, dict):
        items = ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items())
        return f"{{ {items} }}" if items else "{}"
    # JSON leaves DEL as it is, TOML does not allow it
    return _STRING.dump_json(str(value)).decode().replace("\x7f", "\\u007f")
