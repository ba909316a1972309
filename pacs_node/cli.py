"""The command ``pacs-node``. Only here everything is wired together."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from sqlalchemy.exc import DatabaseError

from dicom_sr.profiles import PROFILES, Form
from inference.registry import DEFAULT_PROFILE
from pacs_node import __version__, delivery, jobs, logs, preflight, queries, serve
from pacs_node.accounts_cli import users
from pacs_node.audit_cli import audit
from pacs_node.backup_cli import backup_command, restore_command
from pacs_node.cli_options import config_option, operator
from pacs_node.clock import utc_now
from pacs_node.config import DicomDestination, DicomWebDestination, Settings, load_settings
from pacs_node.db import Database, Study
from pacs_node.dead_letters_cli import failed_command
from pacs_node.destinations import EchoResult
from pacs_node.doctor_cli import doctor
from pacs_node.errors import ConfigurationError, StaleStateError
from pacs_node.evaluate_cli import evaluate
from pacs_node.guidelines_cli import guidelines
from pacs_node.init_cli import init
from pacs_node.missed_cli import missed
from pacs_node.models_cli import models
from pacs_node.notify_cli import notify
from pacs_node.report_template_cli import report_template
from pacs_node.retention_cli import retention_command
from pacs_node.storage import open_database
from pacs_node.study_search import StudyQuery, list_studies
from pacs_node.timeline import timeline, words
from pacs_node.tokens_cli import tokens
from pacs_node.validate_cli import validate

NOTICE = "Research use only, not for primary diagnosis."

_FILE = click.Path(path_type=Path, dir_okay=False)
_DIRECTORY = click.Path(path_type=Path, file_okay=False)


class _Verbs(click.Group):
    """Verbs whose expected failures are one line, never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except (ConfigurationError, StaleStateError) as error:
            raise click.ClickException(str(error)) from None
        except DatabaseError as error:
            # the driver's words: those of SQLAlchemy quote values of the rows
            raise click.ClickException(f"the database can't be used: {error.orig}") from None


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]}, epilog=NOTICE)
@click.version_option(__version__, prog_name="pacs-node")
def main() -> None:
    """A chest-CT AI node for a hospital PACS: CT in by C-STORE, nodule SEG and SR back."""


@main.command("serve")
@config_option
def serve_command(config_path: Path) -> None:
    """Run the whole node: listener, worker, delivery, scheduler and page."""
    settings = load_settings(config_path)
    logs.configure()
    serve.serve(settings)


def _part_command(verb: str, part: str, help_text: str) -> None:
    @main.command(verb, help=help_text)
    @config_option
    def run(config_path: Path) -> None:
        settings = load_settings(config_path)
        logs.configure()
        preflight.check(settings, [part])
        serve.run_part(part, settings)


for _verb, _part, _help in (
    ("listen", "listener", "Run only the listener; loads no torch."),
    ("work", "worker", "Run only a worker; may be started several times."),
    ("deliver", "delivery", "Run only delivery."),
    ("schedule", "schedule", "Run only the scheduler (closing series, leases, retention)."),
    ("web", "web", "Run only the page."),
):
    _part_command(_verb, _part, _help)


@main.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Where results go."
)
@click.option("--profile", default=DEFAULT_PROFILE, show_default=True, help="Model cards to use.")
@click.option(
    "--screening/--no-screening",
    default=None,
    help="Whether these are screening examinations; without it by what the images say. Lung-RADS asks.",
)
@click.option(
    "--baseline",
    is_flag=True,
    help="These are first screening examinations (implies --screening): Lung-RADS has its category.",
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option(
    "--record",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Clinical record, JSON or CSV (docs/record.md); by default record.json or record.csv of DIRECTORY.",
)
@click.option(
    "--prior",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with earlier CTs of the same patient; the latest is compared with (docs/priors.md).",
)
@click.option(
    "--models",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("pacs-node-models"),
    show_default=True,
    envvar="PACS_NODE_MODELS",
    help="Folder of pacs-node models; only the profile full reads it.",
)
@click.option(
    "--report-template",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A site's own sentences of the draft report (docs/report.md).",
)
@click.option(
    "--for",
    "forms",
    type=click.Choice(list(PROFILES)),
    default="standard",
    show_default=True,
    callback=lambda _context, _option, name: PROFILES[name].forms,
    help="Who is to show the results: which objects are made, and how they are encoded (docs/profiles.md).",
)
def analyze(directory: Path, **chosen: Any) -> None:
    """Analyse a folder of DICOM files without any network.

    Exit status: 0 analysed; 2 wrong usage; 3 not suitable (reason and a "not analysed" report); 4 no
    readable DICOM images; 5 the analysis failed. With several studies, the highest.
    """
    logs.silence_libraries()
    from pacs_node.analyze import analyze_directory  # noqa: PLC0415 - loads torch; the other verbs don't need it

    sys.exit(analyze_directory(directory, console=Console(), **chosen))


@main.command()
@click.option(
    "--ct",
    "source",
    default="phantom",
    show_default=True,
    metavar="phantom|DIR|tcia:SERIES_UID",
    help="What to send.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("demo-output"), show_default=True
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the phantom.")
@click.option("--tcia-url", default=None, help="Base URL of the TCIA (NBIA) REST interface.")
def demo(source: str, out: Path, seed: int, tcia_url: str | None) -> None:
    """Send a chest CT through a node on this machine and show what comes back."""
    logs.silence_libraries()
    from pacs_node.demo import run_demo  # noqa: PLC0415 - see analyze

    sys.exit(run_demo(source, out, seed=seed, tcia_url=tcia_url, console=Console()))


main.add_command(audit)
main.add_command(models)
main.add_command(backup_command)
main.add_command(retention_command)
main.add_command(doctor)
main.add_command(failed_command)
main.add_command(evaluate)
main.add_command(guidelines)
main.add_command(init)
main.add_command(report_template)
main.add_command(restore_command)
main.add_command(users)
main.add_command(tokens)
main.add_command(validate)
main.add_command(missed)
main.add_command(notify)


def _find(database: Database, key: str) -> list[Study]:
    with database.read() as session:
        studies = queries.find_studies(session, key)
    if not studies:
        raise click.ClickException(f"no study with this UID, accession number or patient ID: {key}")
    return studies


@main.command()
@config_option
@click.argument("study", required=False)
def status(config_path: Path, study: str | None) -> None:
    """Show the latest studies, or every step of one (study UID, accession number or patient ID)."""
    database = open_database(load_settings(config_path))
    console = Console(highlight=False, soft_wrap=True)
    if study is None:
        _show_latest(database, console)
        return
    for row in _find(database, study):
        with database.read() as session:
            state = queries.study_state(session, session.get_one(Study, row.id))
            console.print(f"study {row.study_uid}: {state.sentence}", markup=False)
            for step in timeline(session, row.study_uid):
                took = f" [{words(step.duration)}]" if step.duration is not None else ""
                console.print(f"{step.at:%Y-%m-%d %H:%M:%S}  {step.step}: {step.detail}{took}", markup=False)


def _show_latest(database: Database, console: Console) -> None:
    """One line for each study; whole UIDs, so that they can be copied."""
    with database.read() as session:
        for line in list_studies(session, StudyQuery(), limit=30):
            accession = line.accession_number or "no accession number"
            text = (
                f"{line.received_at:%Y-%m-%d %H:%M:%S}  {line.study_uid}  {accession}  {line.state.sentence}"
            )
            console.print(text, markup=False)


@main.command()
@config_option
@click.argument("study")
def requeue(config_path: Path, study: str) -> None:
    """Analyse a study again that has failed or is held."""
    database = open_database(load_settings(config_path))
    count = 0
    for row in _find(database, study):
        with database.write() as session:
            found = session.get_one(Study, row.id)
            count += jobs.requeue_study(session, found, at=utc_now(), actor=operator())
    if not count:
        raise click.ClickException("no analysis has failed or is held: nothing to do")
    click.echo(f"requeued {count} job(s)")


@main.command()
@config_option
@click.argument("study")
@click.option("--to", "destination", default=None, help="Only this destination; by default all.")
def send(config_path: Path, study: str, destination: str | None) -> None:
    """Send the results of a study again: the same bytes, no new analysis."""
    settings = load_settings(config_path)
    names = [item.name for item in settings.destinations]
    if destination is not None and destination not in names:
        raise click.ClickException(f"no destination {destination!r}; known: {', '.join(names) or 'none'}")
    wanted = [item for item in settings.destinations if destination in {None, item.name}]
    database = open_database(settings)
    count = 0
    for row in _find(database, study):
        with database.write() as session:
            count += delivery.resend_study(
                session,
                row.study_uid,
                [(item.name, item.forms) for item in wanted],
                at=utc_now(),
                actor=operator(),
            )
            lacking = {item.name: delivery.unmade(session, row.study_uid, item.forms) for item in wanted}
        for name, forms in lacking.items():
            for form in forms:
                click.echo(f"{name}: the result has no {Form.parse(form).words}; only an analysis makes it")
    if not count:
        raise click.ClickException("the study has no result to send yet")
    click.echo(f"{count} object(s) will be sent")


@main.command()
@config_option
@click.argument("destination", required=False)
def echo(config_path: Path, destination: str | None) -> None:
    """Ask a destination, or all, whether it answers (C-ECHO; QIDO-RS for DICOMweb)."""
    settings = load_settings(config_path)
    items = [item for item in settings.destinations if destination in {None, item.name}]
    if not items:
        names = ", ".join(item.name for item in settings.destinations)
        raise click.ClickException(
            f"no destination {destination or 'in the configuration'}; known: {names or 'none'}"
        )
    failed = 0
    for item in items:
        answer = _echo(item, settings)
        failed += not answer.ok
        word = "ok" if answer.ok else "FAILED"
        click.echo(f"{item.name}: {word} ({answer.seconds * 1000:.0f} ms) {answer.detail}")
    sys.exit(1 if failed else 0)


def _echo(item: DicomDestination | DicomWebDestination, settings: Settings) -> EchoResult:
    return delivery.make_destination(item, settings).echo()


if __name__ == "__main__":
    main()
