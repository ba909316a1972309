"""``pacs-node validate``: public validators on DICOM objects, one table, and an exit status."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

_PATH = click.Path(path_type=Path, exists=True)


@click.command()
@click.argument("files", nargs=-1, required=True, type=_PATH, metavar="FILE...")
@click.option("--tool", "names", multiple=True, help="Only this validator; repeatable.")
@click.option(
    "--context", multiple=True, type=_PATH, help="Source images: seen only beside the rest of a study."
)
@click.option(
    "--standard",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Editions of the standard for dicom-validator; by default ~/dicom-validator.",
)
@click.option("--waivers", type=_PATH, help="Accepted messages and why; by default the project's own.")
@click.option("--no-waivers", is_flag=True, help="Accept no message.")
@click.option("--require-all", is_flag=True, help="A validator that isn't installed is a failure.")
def validate(
    files: tuple[Path, ...],
    names: tuple[str, ...],
    context: tuple[Path, ...],
    standard: Path | None,
    waivers: Path | None,
    *,
    no_waivers: bool,
    require_all: bool,
) -> None:
    """Check DICOM objects with the public validators that are installed.

    FILE is a DICOM file or a folder of them. Exit status: 0 passed; 1 a validator complains; 2 wrong usage;
    3 a validator isn't installed (with --require-all).
    """
    # these load highdicom; the other verbs don't need it
    from pacs_node.validators.programs import iod_validator  # noqa: PLC0415
    from pacs_node.validators.show import show, survey_with_progress  # noqa: PLC0415
    from pacs_node.validators.subjects import read_subjects  # noqa: PLC0415
    from pacs_node.validators.survey import TOOLS  # noqa: PLC0415
    from pacs_node.validators.waivers import WAIVERS_FILE, Waivers, load_waivers  # noqa: PLC0415

    console = Console(soft_wrap=True)
    unknown = [name for name in names if name not in TOOLS]
    if unknown:
        raise click.UsageError(f"no validator {unknown[0]!r}; there are {', '.join(TOOLS)}")
    try:
        accepted = Waivers() if no_waivers else load_waivers(waivers or WAIVERS_FILE, TOOLS)
        subjects = list(read_subjects(files, context=context))
    except (OSError, ValueError) as error:
        raise click.UsageError(str(error)) from None
    if all(subject.context for subject in subjects):
        raise click.UsageError("no DICOM file to check")
    known = {**TOOLS, "dicom-validator": iod_validator(standard)}
    tools = [tool for name, tool in known.items() if not names or name in names]
    survey = survey_with_progress(subjects, accepted, tools, console)
    sys.exit(show(survey, console, require_all=require_all))
