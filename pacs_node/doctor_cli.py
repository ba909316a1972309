"""``pacs-node doctor``: what is wrong with this node, and what to do about it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime
from itertools import chain, repeat
from pathlib import Path

import click
from rich.console import Console

from pacs_node.cli_options import config_option
from pacs_node.clock import utc_now
from pacs_node.config import Settings, load_settings
from pacs_node.doctor import examine
from pacs_node.doctor_findings import Finding, Level
from pacs_node.doctor_peers import check_destination, send_test
from pacs_node.doctor_queue import check_queue
from pacs_node.doctor_services import check_fhir, check_notifications, check_oidc
from pacs_node.logs import silence_libraries

_STYLES = {Level.GOOD: "green", Level.WARNING: "yellow", Level.PROBLEM: "bold red"}


@click.command()
@config_option
@click.option(
    "--send-test",
    "test",
    default=None,
    metavar="DESTINATION",
    help="Send it a capture and a report of a patient that doesn't exist; delete them there afterwards.",
)
@click.option("--offline", is_flag=True, help="Ask no destination.")
def doctor(config_path: Path, test: str | None, *, offline: bool) -> None:
    """Look for what is wrong, and say what to do; also who was refused and how to admit them.

    Changes nothing. Exit status: 0 all well; 1 there are warnings; 2 wrong usage; 3 there are problems.
    """
    silence_libraries()
    settings = load_settings(config_path)
    names = [item.name for item in settings.destinations]
    if test is not None and test not in names:
        raise click.UsageError(f"no destination {test!r}; known: {', '.join(names) or 'none'}")
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{config_path}: the configuration is valid", style="green", markup=False)
    worst = Level.GOOD
    order = list(Level)
    for finding in _findings(settings, utc_now(), test, offline=offline):
        worst = max(worst, finding.level, key=order.index)
        show(finding, console)
    console.print("Research use only, not for primary diagnosis.")
    sys.exit({Level.GOOD: 0, Level.WARNING: 1, Level.PROBLEM: 3}[worst])


def _findings(settings: Settings, now: datetime, test: str | None, *, offline: bool) -> Iterator[Finding]:
    yield from examine(settings, now)
    yield from check_queue(settings, now)
    if not offline:
        yield from check_oidc(settings)
        yield from check_fhir(settings)
    yield from check_notifications(settings, now, offline=offline)
    if not settings.destinations:
        yield Finding(Level.WARNING, "destinations", "results go nowhere", "add a [[destinations]] table")
    for item in settings.destinations:
        if not offline:
            yield from check_destination(item, settings, now)
        if item.name == test:
            yield from send_test(item, settings, now)


def show(finding: Finding, console: Console) -> None:
    """Write one finding: its level and part, the sentence, and what to do, indented."""
    head = f"{finding.level:8}{finding.about}: {finding.sentence}"
    console.print(head, style=_STYLES[finding.level], markup=False)
    for mark, line in zip(chain(["->"], repeat("  ")), finding.todo.splitlines(), strict=False):
        console.print(f"        {mark} {line}", markup=False)
