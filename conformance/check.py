"""``make conformance``: make results of every kind, run every validator on them, say it in one table.

Ends with 0 where all is well, 1 where a validator complains or a waiver covers nothing, 3 where a validator
is missing that the waivers do not allow to be absent.
"""

from __future__ import annotations

import os
import shutil
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console

from conformance.edition import EditionUnavailableError, edition
from conformance.objects import Case, analyse_phantoms, analyse_scan, draw_cases, draw_odd_cases
from pacs_node import logs
from pacs_node.validators.programs import iod_validator
from pacs_node.validators.show import result_rows, show, survey_with_progress
from pacs_node.validators.subjects import read_subjects
from pacs_node.validators.survey import TOOLS, Survey
from pacs_node.validators.tool import Tool
from pacs_node.validators.waivers import WAIVERS_FILE, Waivers, load_waivers

FOLDER = Path(__file__).parent
README = FOLDER / "README.md"
BEGIN, END = "<!-- result of make conformance -->\n", "<!-- end of the result -->\n"
_MARKER = ".pacs-node-conformance"


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("conformance-output"),
    show_default=True,
    help="Where the objects go; emptied first.",
)
@click.option(
    "--ct",
    "scans",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Analyse the CT of this folder too; repeatable.",
)
@click.option("--record", is_flag=True, help="Write the table into conformance/README.md.")
def main(out: Path, scans: tuple[Path, ...], *, record: bool) -> None:
    """Make results of every kind and run every validator on them."""
    logs.silence_libraries()
    console = Console(soft_wrap=True)
    _empty(out)
    cases = list(_cases(out, scans, console))
    odd = list(draw_odd_cases(out / "odd"))
    waivers = load_waivers(WAIVERS_FILE, TOOLS)
    tools = {**TOOLS, "dicom-validator": _iod_validator(console)}
    # what PixelMed looks at is the same in all of the odd ones, and it takes half a minute for each
    light = [tool for name, tool in tools.items() if name != "PixelMed"]
    checks = ((cases, list(tools.values())), (odd, light))
    surveys = [_survey(part, some, waivers, console) for part, some in checks]
    survey = replace(surveys[0], findings=tuple(finding for one in surveys for finding in one.findings))
    status = show(survey, console, require_all=True, require_used=True)
    if record:
        _record(survey, cases, len(odd))
    sys.exit(status)


def _survey(cases: list[Case], tools: list[Tool], waivers: Waivers, console: Console) -> Survey:
    subjects = [
        subject for case in cases for subject in read_subjects([case.objects], context=[case.sources])
    ]
    checked = sum(not subject.context for subject in subjects)
    console.print(f"{checked} objects of {len(cases)} results, and their source images")
    return survey_with_progress(subjects, waivers, tools, console)


def _iod_validator(console: Console) -> Tool:
    try:
        return iod_validator(edition())
    except EditionUnavailableError as error:
        console.print(f"no edition of the standard: {error}", markup=False)
        return TOOLS["dicom-validator"]


def _empty(out: Path) -> None:
    if out.exists() and any(out.iterdir()) and not (out / _MARKER).exists():
        raise click.UsageError(f"{out} holds other files; choose another folder with --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / _MARKER).touch()


def _cases(out: Path, scans: tuple[Path, ...], console: Console) -> Iterator[Case]:
    yield from draw_cases(out)
    yield from analyse_phantoms(out, console)
    for archive in _shared_scans():
        folder = out / f"ct-{archive.name.partition('.')[0]}"
        with tarfile.open(archive) as packed:
            packed.extractall(folder / "sources", filter="data")
        yield analyse_scan(archive.name.partition(".")[0], folder / "sources", folder, console)
    for number, scan in enumerate(scans):
        yield analyse_scan(scan.name, scan, out / f"scan-{number}", console)


def _shared_scans() -> list[Path]:
    """The optional collection of real CT, where it is present."""
    named = os.environ.get("PACS_NODE_SHARED_DATA")
    place = Path(named) if named else FOLDER.parent.parent / "shared" / "data"
    return sorted((place / "ct").glob("*.tar.xz"))


def _record(survey: Survey, cases: list[Case], n_odd: int) -> None:
    heading, *rows = result_rows(survey)
    lines = [heading, tuple("---" for _ in heading), *rows]
    table = "".join(f"| {' | '.join(cell or ' ' for cell in line)} |\n" for line in lines)
    names = ", ".join(case.name for case in cases)
    checked = len({finding.path for finding in survey.findings})
    text = (
        f"{datetime.now(UTC):%Y-%m-%d}: {checked} objects of {len(cases)} results ({names}) "
        f"and of {n_odd} series with odd headers.\n\n{table}"
    )
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
