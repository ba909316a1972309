"""``make conformance-viewer``: the node's results in OHIF, and proof that the checks notice broken ones."""

from __future__ import annotations

import logging
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click
from PIL import Image
from pydicom import dcmread
from rich.console import Console
from rich.table import Table

from conformance.viewer.archive import StoreError, replace, send
from conformance.viewer.broken import BREAKAGES, Breakage
from conformance.viewer.browser import BrowserError, chromium
from conformance.viewer.build import BuildUnavailableError, ohif_build
from conformance.viewer.checks import Checker, CheckFailedError
from conformance.viewer.ohif import Viewer
from conformance.viewer.picture import Picture
from conformance.viewer.site import site
from conformance.viewer.source import (
    AnalysisFailedError,
    Source,
    analyse,
    analyse_phantom,
    compare_with_drawing,
    viewer_phantom,
)
from conformance.viewer.study import Study, UnusableStudyError
from tests.peers import Orthanc, PeerDidNotStartError, orthanc

OUTPUT = Path(__file__).resolve().parent / "output"
_STOPS = (
    AnalysisFailedError,
    BrowserError,
    BuildUnavailableError,
    PeerDidNotStartError,
    StoreError,
    UnusableStudyError,
)
_DRAWN_NODULES = 3
_BROKEN_SHARE = 0.25
"""Share of the patience that a broken result gets: its checks wait in vain."""


@dataclass
class Protocol:
    """What was looked at and what came of it."""

    rows: list[tuple[str, bool, str, float]] = field(default_factory=list)

    def note(self, what: str, run: Callable[[], tuple[bool, str]]) -> None:
        """Run one step and write down how it ended."""
        start = time.monotonic()
        passed, words = run()
        self.rows.append((what, passed, words, time.monotonic() - start))

    @property
    def passed(self) -> bool:
        """Whether every row passed."""
        return bool(self.rows) and all(passed for _, passed, _, _ in self.rows)

    def table(self) -> Table:
        """One row for each step."""
        table = Table(title="Results in OHIF (research use only, not for primary diagnosis)")
        for heading in ("check", "", "what was seen", "s"):
            table.add_column(heading, overflow="fold")
        for what, passed, words, seconds in self.rows:
            table.add_row(what, "passed" if passed else "FAILED", words, f"{seconds:.0f}")
        return table


def inspect(checker: Checker, protocol: Protocol) -> None:
    """Check the results as the node made them."""
    for what, check in (
        ("study list", checker.check_list),
        ("SEG", checker.check_segmentation),
        ("SR", checker.check_report),
    ):

        def run(check: Callable[[], str] = check) -> tuple[bool, str]:
            try:
                return True, check()
            except (CheckFailedError, BrowserError) as error:
                return False, str(error)

        protocol.note(what, run)


def inspect_broken(
    checker: Checker, source: Source, archive: Orthanc, breakage: Breakage
) -> tuple[bool, str]:
    """Put a broken object in place of the good one: the check must fail, for the right reason."""
    good = source.seg if breakage.modality == "SEG" else source.sr
    dataset = dcmread(good)
    breakage.spoil(dataset)
    replace(archive, dataset)
    page = checker.viewer.page
    patience, page.patience_s = page.patience_s, page.patience_s * _BROKEN_SHARE
    try:
        seen = checker.check_segmentation() if breakage.modality == "SEG" else checker.check_report()
    except CheckFailedError as error:
        right = error.reason == breakage.reason and breakage.words in str(error)
        return right, f"{'noticed' if right else 'fails otherwise than it should'}: {error}"
    except BrowserError as error:
        return False, f"fails otherwise than it should: {error}"
    finally:
        page.patience_s = patience
        replace(archive, dcmread(good))
    return False, f"not noticed: {seen}"


def keeper(out: Path, prefix: str = "") -> Callable[[str, Picture], None]:
    """Write pictures into a folder."""

    def keep(name: str, picture: Picture) -> None:
        Image.fromarray(picture).save(out / f"{prefix}{name}.png", optimize=True)

    return keep


@contextmanager
def served(source: Source, directory: Path, port: int = 0) -> Iterator[tuple[Orthanc, str]]:
    """Orthanc with a study, and the viewer's address."""
    build = ohif_build()
    directory.mkdir(parents=True)
    with orthanc(directory) as archive, site(build, archive.url, port=port) as address:
        send(archive, (*source.ct, source.seg, source.sr))
        yield archive, address


def _prepare(ct: Path | None, profile: str | None, scratch: Path, console: Console) -> tuple[Source, Study]:
    options = ("--profile", profile) if profile else ()
    if ct is not None:
        with console.status("analysing"):
            source = analyse(ct, scratch / "result", options=options)
        return source, source.read()
    with console.status("drawing a synthetic chest and analysing it"):
        phantom = viewer_phantom()
        source = analyse_phantom(phantom, scratch, options=options)
    study = source.read()
    drawn = compare_with_drawing(study, phantom)
    if drawn < _DRAWN_NODULES:
        raise AnalysisFailedError(f"only {drawn} drawn nodules were found, too few to compare with")
    return source, study


def inspect_all(source: Source, study: Study, viewer: Viewer, archive: Orthanc, out: Path) -> Protocol:
    """All checks on the good results, then on each broken one; the pictures go to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.png"):
        old.unlink()
    protocol = Protocol()
    inspect(Checker(viewer, study, keeper(out)), protocol)
    for breakage in BREAKAGES:
        keep = keeper(out, f"broken-{breakage.name.replace(' ', '-')}-")
        checker = Checker(viewer, study, keep, limit=1)
        protocol.note(breakage.name, partial(inspect_broken, checker, source, archive, breakage))
    return protocol


def _wait() -> None:
    try:
        signal.pause()
    except KeyboardInterrupt:
        return


@click.command()
@click.option(
    "--ct", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Another CT series."
)
@click.option("--profile", help="Model cards for the analysis; otherwise the node's own choice.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=OUTPUT, show_default=False, help="For the pictures."
)
@click.option("--patience", default=120.0, show_default=True, help="Seconds to wait for anything shown.")
@click.option("--serve", type=int, metavar="PORT", help="Only serve the viewer, for a person to look.")
def main(ct: Path | None, profile: str | None, out: Path, patience: float, serve: int | None) -> None:
    """Look at the node's results in OHIF. Research use only, not for primary diagnosis."""
    logging.basicConfig(level=logging.WARNING)
    # so that Orthanc and the browser end with this process
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console()
    with tempfile.TemporaryDirectory(prefix="viewer-", ignore_cleanup_errors=True) as name:
        scratch = Path(name)
        try:
            source, study = _prepare(ct, profile, scratch, console)
            with served(source, scratch / "orthanc", serve or 0) as (archive, address):
                if serve is not None:
                    console.print(f"{address} shows the study until you press Ctrl-C")
                    _wait()
                    return
                with chromium(scratch, patience_s=patience) as page:
                    protocol = inspect_all(source, study, Viewer(page, address), archive, out)
        except _STOPS as error:
            console.print(f"stopped: {error}", markup=False)
            sys.exit(2)
    console.print(protocol.table())
    console.print(f"pictures: {out}")
    sys.exit(0 if protocol.passed else 1)


if __name__ == "__main__":
    main()
