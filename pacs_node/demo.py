"""``pacs-node demo``: a node and a peer on this machine, one CT through them, and what came back."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import dist
from pathlib import Path
from typing import Any

import highdicom as hd
from pydicom.uid import SegmentationStorage
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from sqlalchemy import select
from sqlalchemy.orm import Session

from inference.errors import UnsuitableSeriesError
from inference.load import read_header
from inference.phantom import PhantomNodule, make_phantom, write_phantom
from pacs_node import logs, serve, tcia
from pacs_node.config import Caller, DicomDestination, load_settings
from pacs_node.config_template import render_settings
from pacs_node.db import Artifact, Database, Delivery, Job, Series, Study, sqlite_url
from pacs_node.dimse import send_files
from pacs_node.engines import exit_with_parent
from pacs_node.peer import ReceivedObject, ReceivingPeer
from pacs_node.present import show_result
from pacs_node.states import DeliveryState, JobState, SeriesState

OK, FAILED, UNREADABLE = 0, 5, 4

_MARKER = ".pacs-node-demo"
_CALLING_AE = "DEMO"
_START_SECONDS = 60.0
_RESULT_SECONDS = 1800.0


class DemoError(Exception):
    """The demonstration can't go on; the text says why."""


def run_demo(source: str, out: Path, *, seed: int, tcia_url: str | None, console: Console) -> int:
    """Send a CT through a node on free loopback ports and show what comes back.

    Parameters
    ----------
    source
        ``phantom``, a folder of DICOM files, or ``tcia:SERIES_UID``.
    out
        Gets everything; a folder that holds something else is refused.

    Returns
    -------
    int
        0 results came back and were read; 4 no DICOM files; 5 failed.
    """
    started = time.monotonic()
    try:
        _clear(out)
        with ReceivingPeer(out / "received", ae_title="DEMOPEER") as peer, _node(out, peer.port) as port:
            files, drawn = _input(source, out, seed, tcia_url, console)
            studies = _send(port, files, console)
            _wait(out, len(studies), console)
            _show(out, peer.objects, drawn, console)
    except (DemoError, tcia.TciaError) as error:
        console.print(f"[bold]demo stopped:[/] {escape(str(error))}")
        return UNREADABLE if isinstance(error, _NoFilesError) else FAILED
    console.print(f"Took {time.monotonic() - started:.0f} s from start to results.")
    return OK


class _NoFilesError(DemoError):
    """Nothing to send."""


def _clear(out: Path) -> None:
    if out.exists() and any(out.iterdir()) and not (out / _MARKER).exists():
        raise DemoError(f"{out} holds other files; choose another folder with --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / _MARKER).touch()


@contextmanager
def _node(out: Path, peer_port: int) -> Iterator[int]:
    """Run ``pacs-node serve`` with a configuration of its own; yield the port of its listener."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = int(probe.getsockname()[1])
    directory = out / "node"
    directory.mkdir()
    configuration = directory / "pacs-node.toml"
    configuration.write_text(
        render_settings(
            callers=[Caller(ae_title=_CALLING_AE, address="127.0.0.1")],
            destinations=[
                DicomDestination(name="demo-peer", host="127.0.0.1", port=peer_port, ae_title="DEMOPEER")
            ],
            overrides={
                "listener": {"port": port},
                "completeness": {"settle_seconds": 1.0, "quiet_seconds": 5.0},
                "storage": {"reserve_mb": 200},
                "web": {"enabled": False},
            },
        ),
        encoding="utf-8",
    )
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(configuration, directory / "serve.log"), name="demo-node"
    )
    process.start()
    try:
        yield port
    finally:
        process.terminate()
        process.join(30)
        if process.is_alive():
            process.kill()
            process.join()


def _serve(configuration: Path, log: Path) -> None:
    """Be the node; a demonstration that is killed leaves none behind."""
    exit_with_parent()
    with log.open("wb") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    logs.configure()
    serve.serve(load_settings(configuration))


def _input(
    source: str, out: Path, seed: int, tcia_url: str | None, console: Console
) -> tuple[list[Path], tuple[PhantomNodule, ...]]:
    """Make, find or download the CT; also what was drawn, nothing of a CT that wasn't."""
    if source == "phantom":
        with console.status("drawing a synthetic chest phantom"):
            phantom = make_phantom(seed)
            files = write_phantom(phantom, out / "input")
        console.print(f"Input: a [bold]synthetic[/] chest phantom, {len(files)} slices; no patient is in it.")
        return files, phantom.nodules
    if source.startswith("tcia:"):
        with console.status("downloading from TCIA"):
            files = tcia.download_series(
                source.removeprefix("tcia:"), out / "input", base_url=tcia_url or tcia.BASE_URL
            )
        console.print(f"Input: {len(files)} files of TCIA series {escape(source.removeprefix('tcia:'))}")
        return files, ()
    directory = Path(source)
    if not directory.is_dir():
        raise _NoFilesError(f"--ct {source}: not a folder, not 'phantom' and not 'tcia:SERIES_UID'")
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and _is_dicom(path)]
    if not files:
        raise _NoFilesError(f"no DICOM file in {source}")
    console.print(f"Input: {len(files)} files of {escape(source)}")
    return files, ()


def _is_dicom(path: Path) -> bool:
    try:
        read_header(path)
    except UnsuitableSeriesError:
        return False
    return True


def _send(port: int, files: Sequence[Path], console: Console) -> set[str]:
    """C-STORE all files to the node; return the studies they belong to."""
    deadline = time.monotonic() + _START_SECONDS
    with console.status("starting the node"):
        while not _listens(port):
            if time.monotonic() > deadline:
                raise DemoError("the node did not start; see node/serve.log")
            time.sleep(0.1)
    bar = (TextColumn("C-STORE to the node"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*bar, console=console) as progress:
        task = progress.add_task("", total=len(files))
        outcomes = send_files(
            "127.0.0.1",
            port,
            "CTNODE",
            _CALLING_AE,
            files,
            progress=lambda *_: progress.advance(task),
        )
    refused = [outcome for outcome in outcomes if not outcome.kind.stored]
    if refused:
        raise DemoError(f"{len(refused)} of {len(files)} objects were refused: {refused[0].detail}")
    return {str(read_header(path).StudyInstanceUID) for path in files}


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait(out: Path, n_studies: int, console: Console) -> None:
    """Show the state of the node until every study has arrived at the peer."""
    database = Database(sqlite_url(out / "node" / "pacs-node-data"))
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    deadline = time.monotonic() + _RESULT_SECONDS
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        while True:
            with database.read() as session:
                words, finished = _state(session, n_studies)
            progress.update(task, description=words)
            if finished:
                break
            if time.monotonic() > deadline:
                raise DemoError(f"no result within {_RESULT_SECONDS:.0f} s: {words}")
            time.sleep(0.2)
    database.dispose()


def _state(session: Session, n_studies: int) -> tuple[str, bool]:
    """Where the slowest study is, and whether all are delivered."""
    series = session.scalars(select(Series.state)).all()
    jobs = session.scalars(select(Job.state)).all()
    deliveries = session.scalars(select(Delivery.state)).all()
    if SeriesState.RECEIVING in series or SeriesState.COMPLETE in series:
        return "waiting for the series to be complete", False
    if JobState.QUEUED in jobs or JobState.RUNNING in jobs:
        return "analysing", False
    if any(state not in {DeliveryState.COMMITTED, DeliveryState.FAILED} for state in deliveries):
        return "returning SEG and SR to the peer", False
    with_result = (
        select(Series.study_id)
        .join(Job, Job.series_id == Series.id)
        .join(Artifact, Artifact.job_id == Job.id)
    )
    return "done", len(set(session.scalars(with_result))) == n_studies


@dataclass(frozen=True, slots=True)
class _StudyResult:
    study_uid: str
    directory: Path


def _show(
    out: Path, received: Sequence[ReceivedObject], drawn: Sequence[PhantomNodule], console: Console
) -> None:
    """Read back what the peer got, put the results together and print them."""
    for result in _results(out):
        objects = [item for item in received if item.study_uid == result.study_uid]
        if not objects:
            raise DemoError("the peer has received no result; see node/serve.log")
        place = out if len(list(_results(out))) == 1 else out / result.study_uid
        place.mkdir(exist_ok=True)
        for path in result.directory.iterdir():
            if path.suffix in {".json", ".html", ".png", ".webp"}:
                shutil.copy(path, place)
        for item in objects:
            name = "seg.dcm" if item.sop_class_uid == SegmentationStorage else "sr.dcm"
            shutil.copy(item.path, place / name)
        summary = json.loads((place / "result.json").read_text(encoding="utf-8"))
        show_result(summary, console)
        show_drawn(drawn, summary["findings"], console)
        _show_files(place, console)


def show_drawn(
    drawn: Sequence[PhantomNodule], findings: Sequence[Mapping[str, Any]], console: Console
) -> None:
    """Hold what was found against what was drawn.

    Parameters
    ----------
    drawn
        Of a phantom; nothing is said without any.
    findings
        Of ``result.json``. One finds a nodule if its marked point lies nearer to the nodule's centre than the
        nodule's radius.
    """
    if not drawn:
        return
    names: list[list[str]] = [[] for _ in drawn]
    others: list[str] = []
    for finding in findings:
        gaps = [dist(finding["point_lps_mm"], nodule.centre_lps) - nodule.diameter_mm / 2 for nodule in drawn]
        nearest = min(range(len(drawn)), key=gaps.__getitem__)
        (names[nearest] if gaps[nearest] < 0 else others).append(finding["tracking_id"])
    console.print(f"[bold]{sum(map(bool, names))} of {len(drawn)} drawn nodules found[/]")
    for nodule, found in zip(drawn, names, strict=True):
        what = f"{nodule.diameter_mm:g} mm, {nodule.attenuation}, {nodule.margin}, {nodule.attachment}"
        console.print(f"  drawn {what}: {' and '.join(found) or 'missed'}")
    if others:
        console.print(f"  marked where none was drawn: {', '.join(others)}")


def _results(out: Path) -> Iterator[_StudyResult]:
    """The latest result of each study."""
    database = Database(sqlite_url(out / "node" / "pacs-node-data"))
    storage = out / "node" / "pacs-node-data"
    latest: dict[str, Path] = {}
    with database.read() as session:
        rows = session.execute(
            select(Study.study_uid, Artifact.path)
            .join(Series, Series.study_id == Study.id)
            .join(Job, Job.series_id == Series.id)
            .join(Artifact, Artifact.job_id == Job.id)
            .where(Artifact.kind == "sr")
            .order_by(Job.id)
        )
        for study_uid, path in rows:
            latest[study_uid] = (storage / path).parent
    database.dispose()
    for study_uid, directory in latest.items():
        yield _StudyResult(study_uid, directory)


def _show_files(place: Path, console: Console) -> None:
    console.print("Came back to the peer and was read again:")
    seg = place / "seg.dcm"
    if seg.exists():
        console.print(f"  SEG  {seg}  ({hd.seg.segread(seg).number_of_segments} segments)", soft_wrap=True)
    report = place / "sr.dcm"
    items = hd.sr.srread(report).ContentSequence
    console.print(f"  SR   {report}  ({len(items)} content items below its title)", soft_wrap=True)
    console.print("Written by the node:")
    for name in ("report.html", "result.json"):
        console.print(f"  {place / name}", soft_wrap=True)
    pictures = sorted(place.glob("*.png"))
    if pictures:
        console.print(f"  {pictures[0].parent}/*.png  ({len(pictures)} key images)", soft_wrap=True)
    console.print(
        f"Open [bold]{(place / 'report.html').absolute().as_uri()}[/] in a browser.", soft_wrap=True
    )
