"""``pacs-node missed``: studies that the archive has and that never came here."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from pacs_node.archive import ArchiveError
from pacs_node.cli_options import config_option
from pacs_node.config import Settings, load_settings
from pacs_node.db import Database, Errand
from pacs_node.errors import ConfigurationError
from pacs_node.logs import silence_libraries
from pacs_node.missed import MissedStudies, missing_studies
from pacs_node.reconcile import open_archive
from pacs_node.storage import open_database

QUESTION_SECONDS = 300.0
"""For the whole list of a night."""


@click.command()
@config_option
@click.option("--ask", is_flag=True, help="Ask the archive now instead of waiting for the night.")
def missed(config_path: Path, *, ask: bool) -> None:
    """List the studies that the archive has and that never came here.

    The scheduler asks each night; see [archive] in docs/configuration.md. A study leaves the list when it
    comes. No patient is named; the study UID and the accession number lead to it.
    """
    silence_libraries()
    settings = load_settings(config_path)
    database = open_database(settings)
    console = Console(highlight=False, soft_wrap=True)
    if ask:
        _ask(settings, database, console)
    with database.read() as session:
        rows = missing_studies(session)
        errands = session.query(Errand).all()
    for row in rows:
        count = f"{row.n_instances} images" if row.n_instances else "number of images not said"
        facts = f"{row.study_date}  {row.study_uid}  {row.accession_number or 'no accession number'}"
        console.print(f"{facts}  {row.description or 'no description'}  {count}", markup=False)
    console.print(f"{len(rows)} studies never came here")
    for errand in errands:
        answer = errand.status or "not asked yet"
        console.print(
            f"{errand.name}: {answer}; asked again {errand.due_at:%Y-%m-%d %H:%M} UTC", markup=False
        )
    if not settings.archive.destination:
        console.print("nobody is asked: set archive.destination to the name of a destination")


def _ask(settings: Settings, database: Database, console: Console) -> None:
    archive = open_archive(settings, QUESTION_SECONDS)
    if archive is None:
        raise ConfigurationError("archive.destination names no destination: nobody can be asked")
    try:
        search = MissedStudies(database, archive, settings.archive).search()
    except ArchiveError as error:
        raise click.ClickException(f"{archive.name} can't say: {error}") from None
    console.print(search.sentence)
