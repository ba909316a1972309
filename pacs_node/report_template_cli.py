"""``pacs-node report-template``: look at, and check, a site's own template of the draft narrative."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from dicom_sr.narrative import DRAFT, compose
from dicom_sr.narrative_samples import SAMPLES
from dicom_sr.template import Template, TemplateError, as_toml, read_template

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.group("report-template", epilog=DRAFT)
def report_template() -> None:
    """The sentences of the draft report: show the built-in ones, check a site's own."""


@report_template.command()
def show() -> None:
    """Print the built-in template: a file to start from (docs/report.md)."""
    click.echo(as_toml(), nl=False)


@report_template.command()
@click.argument("file", type=_FILE)
@click.option("--result", type=_FILE, help="A result.json to write the draft of; by default made-up results.")
def check(file: Path, result: Path | None) -> None:
    """Check FILE and print what it makes of results; the exit status is 1 where it can't be used."""
    try:
        template = read_template(file)
    except TemplateError as error:
        reasons = "\n  ".join(str(error).split("; "))
        raise click.ClickException(f"{file} can't be used:\n  {reasons}") from None
    for title, summary in ({result.name: _read(result)} if result else SAMPLES).items():
        click.echo(f"=== {title} ===\n")
        click.echo(_draft(title, summary, template))
    click.echo(f"{file} can be used: pipeline.report_template = {str(file)!r}")


def _draft(title: str, summary: Mapping[str, Any], template: Template) -> str:
    try:
        return compose(summary, template).text
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise click.ClickException(f"{title} is no result of this version: {error!r}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise click.ClickException(f"{path} can't be read: {error}") from None
    if not isinstance(content, dict):
        raise click.ClickException(f"{path} is no result")
    return content
