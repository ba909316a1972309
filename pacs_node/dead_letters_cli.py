"""``pacs-node failed``: what waits for a person, and giving it another chance."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from pacs_node.cli_options import config_option, operator
from pacs_node.clock import utc_now
from pacs_node.config import load_settings
from pacs_node.dead_letters import dead_letters, requeue
from pacs_node.storage import open_database


@click.command("failed")
@config_option
@click.option("--to", "place", default=None, help="Only this destination; or analysis.")
@click.option("--study", "study_uid", default=None, help="Only this Study Instance UID.")
@click.option("--requeue", "again", is_flag=True, help="Give what is listed another chance.")
def failed_command(config_path: Path, place: str | None, study_uid: str | None, *, again: bool) -> None:
    """List failed deliveries and analyses with their cause; --requeue tries them again."""
    database = open_database(load_settings(config_path))
    console = Console(highlight=False, soft_wrap=True)
    with database.read() as session:
        letters = dead_letters(session, place, study_uid)
    for item in letters:
        console.print(
            f"{item.at:%Y-%m-%d %H:%M:%S}  {item.study_uid}  {item.place}  {item.what}: "
            f"{item.cause or 'no cause was noted'} ({item.attempts} attempts)",
            markup=False,
        )
    if not letters:
        console.print("nothing has failed")
    elif again:
        with database.write() as session:
            count = requeue(session, letters, at=utc_now(), actor=operator())
        console.print(f"requeued {count}")
    database.dispose()
