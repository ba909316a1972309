"""``pacs-node retention``: what is removed when, and whether anything is at all."""

from __future__ import annotations

from pathlib import Path

import click

from pacs_node.cli_options import config_option, operator
from pacs_node.clock import utc_now
from pacs_node.clock_guard import doubt, release
from pacs_node.config import load_settings
from pacs_node.storage import open_database

_LONGEST = 200


@click.command("retention")
@config_option
@click.option("--clock-is-right", metavar="REASON", help="Let it go on; the reason is recorded.")
def retention_command(config_path: Path, clock_is_right: str | None) -> None:
    """Say what is removed after how many days, and whether the clock is doubted, so that nothing is.

    Exit status: 0 it works; 3 the clock is doubted.
    """
    settings = load_settings(config_path)
    database = open_database(settings)
    try:
        if clock_is_right is not None:
            reason = clock_is_right.strip()
            if not reason.isprintable() or not 0 < len(reason) <= _LONGEST:
                raise click.BadParameter(f"say why, in one line of at most {_LONGEST} characters")
            with database.write() as session:
                if not release(session, utc_now(), operator(), reason):
                    raise click.ClickException("the clock isn't doubted")
        with database.read() as session:
            jump = doubt(session)
    finally:
        database.dispose()
    for name, days in (
        ("images", settings.retention.images_days),
        ("results", settings.retention.results_days),
    ):
        click.echo(f"{name}: " + (f"removed after {days:g} days" if days else "kept for ever"))
    if jump is not None:
        click.echo(
            f"The clock went {jump}: nothing is removed until it follows a time server or is set right."
        )
        click.echo("If that is right: pacs-node retention --clock-is-right REASON")
        raise click.exceptions.Exit(3)
