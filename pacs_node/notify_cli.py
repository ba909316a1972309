"""``pacs-node notify``: try the notifications, and see what waits."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path

import click

from dicom_sr.context import RESEARCH_USE
from pacs_node import notify_queue
from pacs_node.cli_options import config_option
from pacs_node.clock import utc_now
from pacs_node.config import load_settings
from pacs_node.logs import silence_libraries
from pacs_node.notify_channels import NotTakenError, open_channels
from pacs_node.notify_messages import worded
from pacs_node.storage import open_database


@click.group()
def notify() -> None:
    """Messages by webhook and e-mail: try them, see what waits."""


@notify.command("test")
@config_option
def test_command(config_path: Path) -> None:
    """Send a test message by each channel of [notify], now; it stands in no queue.

    Exit status: 0 all were taken; 1 one was not; 2 wrong usage.
    """
    silence_libraries()
    settings = load_settings(config_path)
    channels = open_channels(settings.notify, settings.listener.ae_title)
    if not channels:
        raise click.ClickException("nobody is notified: set notify.webhook_url or notify.mail_host")
    number = uuid.uuid4().hex
    data = {
        "id": number,
        "node": settings.listener.ae_title,
        "sentence": "This is a test of pacs-node notify; nothing has happened.",
        "notice": RESEARCH_USE,
    }
    message, failed = worded(number, "test", utc_now(), data), 0
    for name, channel in channels.items():
        try:
            click.echo(f"{name}: {channel.send([message])}")
        except NotTakenError as error:
            failed += 1
            click.echo(f"{name}: NOT taken ({error.status})")
    sys.exit(1 if failed else 0)


@notify.command("status")
@config_option
@click.option("--requeue", is_flag=True, help="Give what was given up another chance.")
def status_command(config_path: Path, *, requeue: bool) -> None:
    """Show what waits and what was given up."""
    silence_libraries()
    settings = load_settings(config_path)
    database = open_database(settings)
    if requeue:
        click.echo(f"{notify_queue.requeue(database, utc_now())} message(s) will be sent again")
    with database.read() as session:
        for name in settings.notify.channels:
            state = notify_queue.backlog(session, name)
            trouble = state.status or "none"
            click.echo(f"{name}: {state.waiting} wait, {state.failed} given up; last trouble: {trouble}")
    database.dispose()
    if not settings.notify.channels:
        click.echo("nobody is notified: set notify.webhook_url or notify.mail_host")
