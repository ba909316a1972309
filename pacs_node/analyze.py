"""``pacs-node analyze``: the same stack on a folder of files, without network and database."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydicom import Dataset
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from dicom_sr.context import OtherSeries
from dicom_sr.profiles import STANDARD
from inference.errors import ReasonCode, UnsuitableSeriesError
from inference.headers import examination_day, text
from inference.load import read_header
from inference.record import RecordError, RecordReading
from inference.record_files import find_beside, read_record
from inference.record_header import day_of
from inference.same_patient import Identity, strangers
from inference.select import judge_study
from pacs_node.case import run_case
from pacs_node.present import show_result
from pacs_node.request import CaseOutcome, CaseRequest, PriorFiles, Refusal
from pacs_node.states import JobOutcome

ANALYSED, WRONG_USAGE, NOT_SUITABLE, NO_IMAGES, FAILED = 0, 2, 3, 4, 5
_SHOWN = 400


@dataclass(frozen=True, slots=True)
class _Options:
    out: Path
    profile: str
    device: str
    record: RecordReading | None = None
    models: Path | None = None
    forms: tuple[str, ...] = STANDARD
    screening: bool | None = None
    report_template: Path | None = None
    prior: Path | None = None
    baseline: bool = False


_Study = dict[str, list[tuple[Path, Dataset]]]
"""Series UID -> files and headers."""


def analyze_directory(
    directory: Path,
    out: Path,
    *,
    profile: str,
    device: str,
    console: Console,
    record: Path | None = None,
    models: Path | None = None,
    forms: tuple[str, ...] = STANDARD,
    screening: bool | None = None,
    report_template: Path | None = None,
    prior: Path | None = None,
    baseline: bool = False,
) -> int:
    """Analyse every study below a folder.

    Parameters
    ----------
    directory
        Searched through all its folders; files that aren't DICOM are passed over.
    out
        Gets the results; with several studies one folder for each.
    record
        File with clinical records; None takes ``record.json`` or ``record.csv`` of the folder, if any.
    models
        Folder of ``pacs-node models``, for the profile ``full``.
    forms
        Objects to make, each in its encoding; see `dicom_sr.profiles`.
    screening
        Whether these are screening examinations; None to decide by the images' headers.
    report_template
        A site's template of the draft narrative.
    prior
        Folder with earlier examinations of the same patient: each study is compared with the latest earlier
        one.
    baseline
        That these are first screening examinations, where no earlier one is given.

    Returns
    -------
    int
        0 analysed, 2 the record can't be used, 3 not suitable, 4 no readable DICOM objects, 5 failed; the
        highest of all studies.
    """
    studies, unreadable = _read(directory)
    if not studies:
        console.print(f"no readable DICOM object in {directory} ({unreadable} other files)")
        return NO_IMAGES
    status = ANALYSED
    for number, study_uid in enumerate(sorted(studies), 1):
        place = out if len(studies) == 1 else out / f"study-{number}"
        console.rule(f"study {study_uid}")
        try:
            reading = _record(record or find_beside(directory), study_uid, studies[study_uid])
            options = _Options(
                place,
                profile,
                device,
                reading,
                models,
                forms,
                screening=True if baseline else screening,
                report_template=report_template,
                prior=prior,
                baseline=baseline,
            )
            outcome = _analyze_study(studies[study_uid], options, console)
        except RecordError as error:
            console.print(f"the clinical record can't be used: {error}", markup=False)
            status = max(status, WRONG_USAGE)
            continue
        except Exception as error:  # noqa: BLE001 - see below
            # as in the loop of the worker: whatever one study dies of, the next one is still analysed
            words = " ".join(str(error).split())
            console.print(f"the analysis failed: {type(error).__name__}: {words[:_SHOWN]}", markup=False)
            status = max(status, FAILED)
            continue
        show_result(json.loads((place / "result.json").read_text(encoding="utf-8")), console)
        console.print(f"results: {place}")
        if outcome.status == JobOutcome.NOT_ANALYSED:
            status = max(status, NOT_SUITABLE)
    return status


def _record(path: Path | None, study_uid: str, study: _Study) -> RecordReading | None:
    """What the file says of this study; the patient is the one of the images."""
    if path is None:
        return None
    header = next(iter(study.values()))[0][1]
    seen = day_of(text(header, "StudyDate"))
    return read_record(path, study_uid=study_uid, patient_id=text(header, "PatientID"), seen=seen)


def _read(directory: Path) -> tuple[dict[str, _Study], int]:
    """Group the DICOM files by study and series; count the others."""
    studies: dict[str, _Study] = {}
    unreadable = 0
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        try:
            header = read_header(path)
            uids = str(header.StudyInstanceUID), str(header.SeriesInstanceUID)
        except (UnsuitableSeriesError, AttributeError):
            unreadable += 1
            continue
        studies.setdefault(uids[0], {}).setdefault(uids[1], []).append((path, header))
    return studies, unreadable


def _analyze_study(study: _Study, options: _Options, console: Console) -> CaseOutcome:
    """Take the best series; where its pixels are unsuitable, the next; report if none is left."""
    verdicts = judge_study({uid: [header for _, header in files] for uid, files in study.items()})
    suitable = [verdict for verdict in verdicts if verdict.suitable]
    refused = {
        verdict.series_uid: _other(study, verdict.series_uid, verdict.code, verdict.sentence)
        for verdict in verdicts
        if verdict.code is not None
    }
    for verdict in suitable:
        last = verdict is suitable[-1]
        request = replace(_request(study, verdict.series_uid, options, refused), last_resort=last)
        outcome = _run(request, console)
        if outcome.status == JobOutcome.ANALYSED or last:
            return outcome
        code = ReasonCode(outcome.reason_code or ReasonCode.NOT_CHEST)
        refused[verdict.series_uid] = _other(study, verdict.series_uid, code, outcome.reason or "")
    first = min(verdicts, key=lambda v: (study[v.series_uid][0][1].get("Modality") != "CT", v.series_uid))
    refusal = Refusal(first.code or ReasonCode.NO_SUITABLE_SERIES, first.sentence)
    return run_case(_request(study, first.series_uid, options, refused).with_refusal(refusal))


def _run(request: CaseRequest, console: Console) -> CaseOutcome:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        return run_case(request, lambda stage, _share: progress.update(task, description=stage))


def _other(study: _Study, series_uid: str, code: ReasonCode | None, sentence: str) -> OtherSeries:
    header = study[series_uid][0][1]
    return OtherSeries(series_uid, str(header.get("Modality") or ""), str(code or ""), sentence)


def _request(
    study: _Study, series_uid: str, options: _Options, refused: Mapping[str, OtherSeries]
) -> CaseRequest:
    files = study[series_uid]
    first = files[0][1]
    created_at = datetime.now(UTC).replace(microsecond=0)
    return CaseRequest(
        files=tuple(path for path, _ in files),
        out_dir=options.out,
        profile=options.profile,
        device=options.device,
        input_digest=_digest([path for path, _ in files]),
        created_at=created_at,
        # a later run on the same files has another time in its objects, so it needs other UIDs
        uid_salt=created_at.isoformat(),
        identity={
            keyword: str(first.get(keyword) or "")
            for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
        },
        other_series=tuple(row for uid, row in refused.items() if uid != series_uid),
        record=options.record,
        models=options.models,
        forms=options.forms,
        screening=options.screening,
        report_template=options.report_template,
        **{"baseline": options.baseline, **_priors(first, options.prior)},
    )


def _priors(header: Dataset, directory: Path | None) -> dict[str, Any]:
    """The latest earlier study of a folder, and sentences on those of it that can't be compared."""
    day = examination_day(header)
    if directory is None:
        return {}
    found: list[PriorFiles] = []
    notes = []
    for study_uid, study in _read(directory)[0].items():
        headers = [one for files in study.values() for _, one in files]
        then = examination_day(headers[0])
        if study_uid == text(header, "StudyInstanceUID") or day is None or then is None or then >= day:
            continue
        (best, *_) = judge_study({uid: [one for _, one in files] for uid, files in study.items()})
        clause = strangers(Identity.of(header), map(Identity.of, headers))
        if clause or not best.selected:
            clause = f"it has {clause or 'no series that is suitable'}"
            notes.append(f"The CT of {then.isoformat()} ({directory.name}) was not compared: {clause}.")
            continue
        paths = tuple(path for path, _ in study[best.series_uid])
        found.append(PriorFiles(paths, study_uid, best.series_uid, then, directory.name, _digest(paths)))
    # one that can't be compared is an earlier one all the same
    known = {"baseline": False} if notes else {}
    found.sort(key=lambda one: (one.examined_on, one.study_uid), reverse=True)
    if not found and not notes:
        notes.append("The folder of earlier examinations has none that is earlier: nothing was compared.")
    return {"priors": tuple(found[:1]), "notes": tuple(notes), **known}


def _digest(files: Sequence[Path]) -> str:
    """SHA-256 over the files' digests; their names and order don't matter."""
    digests = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
    return hashlib.sha256("\n".join(digests).encode("ascii")).hexdigest()
