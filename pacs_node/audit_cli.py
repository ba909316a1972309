"""``pacs-node audit``: is the record whole, and the record as files."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from pacs_node import audit_chain, audit_list
from pacs_node.audit_chain import Verdict
from pacs_node.audit_export import FORMATS, Selection
from pacs_node.audit_message import Origin
from pacs_node.cli_options import config_option
from pacs_node.clock import utc_now
from pacs_node.config import Settings, load_settings
from pacs_node.db import Database
from pacs_node.storage import open_database

_FILE = click.Path(path_type=Path, dir_okay=False)

TAMPERED, UNREADABLE = 3, 4


class _Time(click.ParamType[datetime]):
    """A date or a time, taken as UTC where it says no zone."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            at = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value}: write 2026-03-02 or 2026-03-02T08:00", param, ctx)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at


@click.group()
def audit() -> None:
    """The record of what happened: check it, take it out."""


@audit.command("verify")
@config_option
@click.option(
    "--heads", type=_FILE, default=None,
    help="Heads noted earlier; by default audit.heads_file of the configuration, where there is one.",
)  # fmt: skip
def verify_command(config_path: Path, heads: Path | None) -> None:
    """Check every row by its hash, and the end of the record by the heads noted earlier.

    Exit status: 0 whole; 3 not; 4 the file of heads can't be read.
    """
    settings = load_settings(config_path)
    database = open_database(settings)
    try:
        noted = audit_chain.read_heads(heads) if heads else _noted(settings)
    except audit_chain.HeadsUnreadableError as error:
        click.echo(str(error), err=True)
        sys.exit(UNREADABLE)
    verdict = _verify(database, noted)
    database.dispose()
    if verdict.first_bad is None:
        click.echo(f"The record is whole: {verdict.rows} rows, {verdict.heads} heads noted earlier fit.")
        if not verdict.heads:
            click.echo("Without a noted head, rows that were cut off at the end don't show.")
        return
    click.echo(f"The record is NOT whole. First bad row: {verdict.first_bad}; {verdict.why}.", err=True)
    sys.exit(TAMPERED)


def _noted(settings: Settings) -> list[audit_chain.Head]:
    path = Path(settings.audit.heads_file)
    return audit_chain.read_heads(path) if path.exists() else []


def _verify(database: Database, noted: list[audit_chain.Head]) -> Verdict:
    with database.read() as session:
        last = audit_list.last_row(session)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("checking", total=0 if last is None else last.seq)
        return audit_chain.verify_in_pieces(database, noted, lambda rows: progress.advance(task, rows))


@audit.command("head")
@config_option
def head_command(config_path: Path) -> None:
    """Note the last row's number and hash in audit.heads_file now."""
    settings = load_settings(config_path)
    database = open_database(settings)
    with database.read() as session:
        written = audit_chain.note_head(session, Path(settings.audit.heads_file), utc_now())
    database.dispose()
    click.echo(f"{settings.audit.heads_file}: {'noted' if written else 'nothing new'}")


@audit.command("export")
@config_option
@click.option(
    "--format", "form", type=click.Choice([*FORMATS]), default="jsonl", show_default=True,
    help="jsonl; csv; dicom: audit messages of PS3.15 A.5, one a line; fhir: R4 AuditEvents, ndjson.",
)  # fmt: skip
@click.option("--since", type=_Time(), default=None, help="From this time on.")
@click.option("--until", type=_Time(), default=None, help="Before this time.")
@click.option("--study", "study_uid", default=None, help="Study Instance UID.")
@click.option("--actor", default=None, help="Part of the node, or user.")
@click.option("--event", default=None, help="Name of the event, e.g. 'series arrived'.")
@click.option("--out", type=_FILE, default=None, help="New file; otherwise standard output.")
def export_command(
    *,
    config_path: Path,
    form: str,
    since: datetime | None,
    until: datetime | None,
    study_uid: str | None,
    actor: str | None,
    event: str | None,
    out: Path | None,
) -> None:
    """Write the record, or a part of it, as lines."""
    settings = load_settings(config_path)
    database = open_database(settings)
    selection = Selection(since, until, study_uid, actor, event)
    origin = origin_of(settings)
    try:
        stream = sys.stdout if out is None else out.open("x", encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{out}: {error.strerror}") from None
    with database.read() as session:
        last = audit_list.last_row(session)
    with stream:
        stream.writelines(audit_list.export(database, selection, form, origin, last.seq if last else 0))
    database.dispose()


def origin_of(settings: Settings) -> Origin:
    """Return how the node names itself in audit messages."""
    return Origin(settings.listener.ae_title, settings.audit.origin_name(), settings.audit.site)
