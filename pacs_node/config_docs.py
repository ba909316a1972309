"""Writes ``docs/configuration.md`` from the declarations in `config`: ``python -m pacs_node.config_docs``."""

from __future__ import annotations

import types
from typing import Any, Literal, Union, get_args, get_origin

import click
from annotated_types import Ge, Gt, Le, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pacs_node.config import Caller, DicomDestination, DicomWebDestination, Settings

_TABLES: dict[str, tuple[type[BaseModel], ...]] = {
    "callers": (Caller,),
    "destinations": (DicomDestination, DicomWebDestination),
}
_WORDS = {bool: "true or false", int: "whole number", float: "number", str: "text"}

_HEAD = """\
# Configuration

<!-- Written by `make docs` from pacs_node/config.py: change the declarations there, not this file. -->

`pacs-node init` writes a commented `pacs-node.toml` with every setting; every command takes
`--config FILE`. A wrong file is refused at start with one line for each problem: the key, its value and
what would be right. An unknown key is a problem too. Relative paths are taken relative to the file's own
folder. An example that a test loads is
[deploy/pacs-node.example.toml](../deploy/pacs-node.example.toml).

Research software, not a medical device: results are not for primary diagnosis.
"""


def render_configuration() -> str:
    """Return the Markdown text: one section for each table of the file, one row for each key."""
    parts = [_HEAD]
    for name, field in Settings.model_fields.items():
        if name in _TABLES:
            parts += [_section(f"[[{name}]]", model) for model in _TABLES[name]]
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            parts.append(_section(f"[{name}]", field.annotation))
        else:
            raise TypeError(f"settings.{name} is neither a table nor a list of tables")
    return "\n".join(parts)


def _section(header: str, model: type[BaseModel]) -> str:
    title = f"## `{header}`"
    kind = model.model_fields.get("kind")
    if kind is not None:
        title += f" with `kind = {_literal(get_args(kind.annotation)[0])}`"
    lines = [title, "", (model.__doc__ or "").strip(), "", "| key | value | default | meaning |"]
    lines.append("| --- | --- | --- | --- |")
    for name, field in model.model_fields.items():
        cells = (f"`{name}`", _value(field), _default(field), field.description or "")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _value(field: FieldInfo) -> str:
    limits = []
    for item in field.metadata:
        if isinstance(item, Gt):
            limits.append(f"> {item.gt}")
        elif isinstance(item, Ge):
            limits.append(f">= {item.ge}")
        elif isinstance(item, Le):
            limits.append(f"<= {item.le}")
        elif isinstance(item, MinLen):
            limits.append("not empty")
        elif pattern := getattr(item, "pattern", None):
            limits.append(f"matches `{pattern}`")
    return ", ".join([_type_words(field.annotation), *limits])


def _type_words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{_literal(choice)}`" for choice in arguments)
    if origin in {Union, types.UnionType}:
        return _type_words(next(choice for choice in arguments if choice is not type(None)))
    if origin is tuple:
        return f"list of {_type_words(arguments[0])}"
    if origin is dict:
        return f"table of text to {_type_words(arguments[1])}"
    if origin is not None:
        return _type_words(arguments[0])  # Annotated
    return _WORDS[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return "absent" if field.default is None else f"`{_literal(field.default)}`"


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(_literal(item) for item in value)}]"
    if isinstance(value, dict):
        return "{}" if not value else str(value)
    return (
        f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)
    )


if __name__ == "__main__":
    click.echo(render_configuration(), nl=False)
