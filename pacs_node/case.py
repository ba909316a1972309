"""One series from files to results: load, analyse, SEG, report, reread. Runs in the engine's process.

All it needs is in the request and all it made is in the outcome; it knows no database and no network.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydicom import Dataset

from dicom_sr.context import ResultContext
from dicom_sr.keyimages import KeyImage, render_key_images, render_overview
from dicom_sr.part10 import save
from dicom_sr.report import build_not_analysed_report, build_report
from dicom_sr.seg import build_seg
from dicom_sr.summary import Output, not_analysed_json, report_html, result_json
from dicom_sr.verify import reread, reread_not_analysed
from inference.analyse import analyse
from inference.errors import UnsuitableSeriesError
from inference.load import LoadedSeries, load_series, read_header
from inference.record import RecordReading, from_dicom, merge
from inference.registry import FUSION, Pipeline, load_pipeline
from pacs_node import __version__
from pacs_node.request import CaseFile, CaseOutcome, CaseRequest, Refusal
from pacs_node.spool import sync_directory
from pacs_node.states import JobOutcome

Progress = Callable[[str, float], None]


class _Stopwatch:
    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        if self._progress is not None:
            self._progress(name, 0.0)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def run_case(request: CaseRequest, progress: Progress | None = None) -> CaseOutcome:
    """Analyse one series and write its results.

    Parameters
    ----------
    progress
        Called with the name of the stage and its share done, 0..1.

    Raises
    ------
    VerificationError
        A written object differs from what was found: a fault of ours, never of the input.
    ModelUnavailableError
        A model card or its weights are missing or altered.
    """
    request.out_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    pipeline = load_pipeline(request.profile, models=request.models)
    watch = _Stopwatch(progress)
    if request.refusal is not None:
        return _refuse(request, request.refusal, pipeline, watch)
    try:
        with watch.stage("load"):
            loaded = load_series(request.files)
        with watch.stage("analyse"):
            result = analyse(
                loaded.volume,
                pipeline,
                input_digest=request.input_digest,
                record=(reading := _reading(request, loaded)),
                progress=progress,
                device=request.device,
            )
            result = replace(
                result, warnings=(*result.warnings, *_record_warnings(request, pipeline, reading))
            )
    except UnsuitableSeriesError as error:
        refusal = Refusal(error.code, error.sentence)
        if not request.last_resort:
            return CaseOutcome(JobOutcome.NOT_ANALYSED.value, (), refusal.code.value, refusal.sentence)
        return _refuse(request, refusal, pipeline, watch)
    return _write_results(request, loaded, result, pipeline, watch)


def _reading(request: CaseRequest, loaded: LoadedSeries) -> RecordReading:
    """The record of the file, its gaps filled from the images' header."""
    return merge(request.record or RecordReading(), from_dicom(loaded.headers[0]))


def _record_warnings(request: CaseRequest, pipeline: Pipeline, reading: RecordReading) -> Iterator[str]:
    """What was left out of the record, or that no model of the profile reads it."""
    if pipeline.has(FUSION):
        yield from (f"Clinical record, {issue}" for issue in reading.issues)
    elif request.record is not None:
        yield f"The profile {pipeline.profile} has no model that reads a clinical record: it was not used."


def _context(request: CaseRequest, pipeline: Pipeline) -> ResultContext:
    return ResultContext(
        software_version=__version__,
        pipeline_version=pipeline.version,
        input_digest=request.input_digest,
        created_at=request.created_at,
        cards=pipeline.cards,
        uid_salt=request.uid_salt,
        predecessors=request.predecessors,
        other_series=request.other_series,
    )


def _write_results(
    request: CaseRequest, loaded: LoadedSeries, result: Any, pipeline: Pipeline, watch: _Stopwatch
) -> CaseOutcome:
    volume, headers, out = loaded.volume, loaded.headers, request.out_dir
    context = _context(request, pipeline)
    written: list[CaseFile] = []
    seg = seg_path = None
    with watch.stage("write SEG and report"):
        if result.findings:
            seg = build_seg(volume, result.findings, headers, context)
            seg_path = out / "seg.dcm"
            written.append(_saved("seg", seg, seg_path))
        report = build_report(volume, result, seg, headers, context)
        written.append(_saved("sr", report, out / "sr.dcm"))
    with watch.stage("reread"):
        reread(volume, result, seg_path, out / "sr.dcm")
    with watch.stage("key images"):
        note = _note(headers)
        key_images = render_key_images(volume, result.findings, out, note=note)
        overview = render_overview(volume, result.findings, out / "overview.png", note=note)
    summary = result_json(
        volume,
        result,
        headers,
        context,
        outputs=_outputs(written),
        key_images=key_images,
        timings_s=watch.seconds,
    )
    written += _pages(out, summary, key_images, overview)
    return CaseOutcome(JobOutcome.ANALYSED.value, tuple(written), n_findings=len(result.findings))


def _refuse(request: CaseRequest, refusal: Refusal, pipeline: Pipeline, watch: _Stopwatch) -> CaseOutcome:
    headers = _readable_headers(request)
    context = _context(request, pipeline)
    with watch.stage("write report"):
        report = build_not_analysed_report(headers, refusal.code, refusal.sentence, context)
        written = [_saved("sr", report, request.out_dir / "sr.dcm")]
    with watch.stage("reread"):
        reread_not_analysed(request.out_dir / "sr.dcm", str(headers[0].SeriesInstanceUID), refusal.code)
    summary = not_analysed_json(
        headers, refusal.code, refusal.sentence, context, outputs=_outputs(written), timings_s=watch.seconds
    )
    written += _pages(request.out_dir, summary, (), None)
    return CaseOutcome(JobOutcome.NOT_ANALYSED.value, tuple(written), refusal.code.value, refusal.sentence)


def _readable_headers(request: CaseRequest) -> list[Dataset]:
    """Headers of the series; where no file can be read, one made of what the node wrote down on arrival."""
    headers = []
    for path in request.files:
        try:
            header = read_header(path)
        except UnsuitableSeriesError:
            continue
        if header.get("SeriesInstanceUID") == request.identity["SeriesInstanceUID"]:
            headers.append(header)
    if headers:
        return headers
    known = Dataset()
    for keyword, value in request.identity.items():
        setattr(known, keyword, value)
    return [known]


def _note(headers: Sequence[Dataset]) -> str:
    """Synthetic images say so on every picture."""
    texts = f"{headers[0].get('PatientName', '')} {headers[0].get('SeriesDescription', '')}"
    return "SYNTHETIC IMAGE" if "SYNTHETIC" in texts.upper() else ""


def _saved(kind: str, dataset: Dataset, path: Path) -> CaseFile:
    return CaseFile(
        kind,
        path,
        save(dataset, path),
        str(dataset.SOPInstanceUID),
        str(dataset.SOPClassUID),
        str(dataset.SeriesInstanceUID),
    )


def _outputs(files: Sequence[CaseFile]) -> list[Output]:
    return [
        Output(
            file.kind.upper(),
            file.path.name,
            file.sop_class_uid or "",
            file.sop_instance_uid or "",
            file.series_uid or "",
            file.sha256,
        )
        for file in files
    ]


def _pages(
    out: Path, summary: dict[str, Any], key_images: Sequence[KeyImage], overview: Path | None
) -> list[CaseFile]:
    """Write the result for programs and for people, and list them with the pictures."""
    (out / "result.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False), encoding="utf-8")
    page = report_html(summary, key_images=key_images, overview=overview)
    (out / "report.html").write_text(page, encoding="utf-8")
    pictures = [image.path for image in key_images] + ([overview] if overview is not None else [])
    files = [
        ("json", out / "result.json"),
        ("html", out / "report.html"),
        *(("png", path) for path in pictures),
    ]
    for _, path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_directory(out)
    return [CaseFile(kind, path, hashlib.sha256(path.read_bytes()).hexdigest()) for kind, path in files]
