"""One series from files to results: load, analyse, SEG, report, reread. Runs in the engine's process.

All it needs is in the request and all it made is in the outcome; it knows no database and no network.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pydicom import Dataset

from dicom_sr.capture import build_captures, capture_result, reread_captures, source_frames
from dicom_sr.context import ResultContext
from dicom_sr.keyimages import KeyImage, render_key_images, render_overview
from dicom_sr.narrative import Narrative, compose
from dicom_sr.pairimages import PairImages, render_pairs
from dicom_sr.part10 import save
from dicom_sr.pdf import build_pdf, print_report, reread_pdf
from dicom_sr.profiles import Form, chosen, form_name, in_order
from dicom_sr.report import ReportClass, build_not_analysed_report, build_report
from dicom_sr.seg import SegEncoding, build_seg
from dicom_sr.stacks import SliceStack, render_stacks
from dicom_sr.summary import Output, Recipient, SentencePair, not_analysed_json, report_html, result_json
from dicom_sr.template import BUILT_IN
from dicom_sr.verify import reread, reread_not_analysed
from dicom_sr.wording import ENGLISH, read_wording
from inference.analyse import analyse
from inference.errors import UnsuitableSeriesError
from inference.guidelines.reading import guideline_observations
from inference.guidelines.screening import occasion_of
from inference.load import LoadedSeries, read_header
from inference.prompts import PAIRS
from inference.record import RecordCode, RecordReading, merge
from inference.record_person import gathered
from inference.registry import FUSION, TEXT, Pipeline, load_pipeline
from inference.types import Observation, Result, Volume
from pacs_node import __version__
from pacs_node.case_narrative import template_or_built_in
from pacs_node.case_priors import Compared, compared
from pacs_node.reader import OpenReader, Reader, confined_reader
from pacs_node.request import CaseFile, CaseOutcome, CaseRequest, Refusal
from pacs_node.spool import sync_directory
from pacs_node.states import JobOutcome

Progress = Callable[[str, float], None]
_SC, _PDF = Form("sc"), Form("pdf")
#: said of other systems whatever reads the record: the guidelines ask it too
_OF_SOURCES = frozenset(
    (RecordCode.NO_ANSWER, RecordCode.MISMATCH, RecordCode.UNCONFIRMED, RecordCode.AMBIGUOUS)
)


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


class _Pictures(NamedTuple):
    key_images: Sequence[KeyImage] = ()
    overview: Path | None = None
    volume: Volume | None = None
    stacks: Sequence[SliceStack] = ()
    pairs: Sequence[PairImages] = ()

    @property
    def files(self) -> Iterator[tuple[str, Path]]:
        """Kind and path of each."""
        yield from (("png", image.path) for image in self.key_images)
        yield from (("png", path) for path in (self.overview,) if path is not None)
        yield from (("png", images.picture) for images in self.pairs)
        scrolled = [*self.stacks, *(stack for images in self.pairs for stack in images.stacks)]
        yield from (("stack", stack.path) for stack in scrolled)


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
            loaded = _reader(request).load(request.files)
        with watch.stage("analyse"):
            result = analyse(
                loaded.volume,
                pipeline,
                input_digest=request.input_digest,
                record=(reading := _reading(request, loaded)),
                progress=progress,
                device=request.device,
            )
    except UnsuitableSeriesError as error:
        refusal = Refusal(error.code, error.sentence)
        if not request.last_resort:
            return CaseOutcome(JobOutcome.NOT_ANALYSED.value, (), refusal.code.value, refusal.sentence)
        return _refuse(request, refusal, pipeline, watch)
    found = compared(request, loaded, result, pipeline, reader=_reader(request), stage=watch.stage)
    said = _by_guidelines(request, loaded, found.result, reading)
    result = replace(
        found.result,
        observations=(*result.observations, *said),
        warnings=(
            *found.result.warnings,
            *request.notes,
            *template_or_built_in(request.report_template)[1],
            *_record_warnings(request, pipeline, reading),
        ),
    )
    return _write_results(request, loaded, Compared(result, found.prior), pipeline, watch)


def _reader(request: CaseRequest) -> Reader:
    return confined_reader() if request.confined else OpenReader()


def _reading(request: CaseRequest, loaded: LoadedSeries) -> RecordReading:
    """The record of the file, its gaps filled by other systems, then from the images' header."""
    return merge(request.record or RecordReading(), gathered(request.told, loaded.headers[0]))


def _by_guidelines(
    request: CaseRequest, loaded: LoadedSeries, result: Result, reading: RecordReading
) -> tuple[Observation, ...]:
    occasion = occasion_of(loaded.headers[0], site_says=request.screening)
    if request.no_prior:
        occasion = replace(occasion, prior=False)
    elif request.baseline and not request.priors:
        words = f"{occasion.because}; as no earlier CT is known, it is taken as the first (baseline)"
        occasion = replace(occasion, prior=False, because=words)
    return guideline_observations(result.findings, occasion, reading.record, result.comparison)


def _record_warnings(request: CaseRequest, pipeline: Pipeline, reading: RecordReading) -> Iterator[str]:
    """What was left out of the record, or that no model of the profile reads it."""
    if pipeline.has(FUSION):
        yield from (f"Clinical record, {issue}" for issue in reading.issues)
        return
    yield from (f"Clinical record, {issue}" for issue in reading.issues if issue.code in _OF_SOURCES)
    if request.record is not None or any(one.person is not None for one in request.told):
        yield (
            f"The profile {pipeline.profile} has no model that reads a clinical record: "
            "no probability was made with it."
        )


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
        wording=ENGLISH if request.wording is None else read_wording(request.wording),
        template=template_or_built_in(request.report_template)[0],
    )


def _write_results(
    request: CaseRequest, loaded: LoadedSeries, found: Compared, pipeline: Pipeline, watch: _Stopwatch
) -> CaseOutcome:
    volume, headers, out, result = loaded.volume, loaded.headers, request.out_dir, found.result
    context = _context(request, pipeline)
    forms = _forms(request)
    with watch.stage("write SEG and report"):
        masks = _masks(forms, loaded, result, context) if result.findings else {}
        draft = compose(result_json(volume, result, headers, context), context.template)
        reports = _reports(forms, masks, loaded, result, context, draft=draft)
        written = [_saved(form, ds, _path(out, form)) for form, ds in [*masks.items(), *reports.items()]]
    with watch.stage("reread"):
        for form in reports:
            mask = _path(out, form.mask) if result.findings else None
            reread(volume, result, mask, _path(out, form), draft)
    with watch.stage("key images"):
        shown = _pictures(volume, found, out, _note(headers))

    def summary(outputs: Sequence[CaseFile] = ()) -> dict[str, Any]:
        return result_json(
            volume,
            result,
            headers,
            context,
            outputs=_outputs(outputs),
            recipients=_recipients(request, outputs, analysed=True),
            key_images=shown.key_images,
            stacks=shown.stacks,
            pairs=shown.pairs,
            sentence_pairs=_sentence_pairs(pipeline),
            timings_s=watch.seconds if outputs else None,
        )

    written += _for_people(out, forms, summary(), shown, headers=headers, context=context, watch=watch)
    files = _pages(out, summary(written), shown)
    return CaseOutcome(JobOutcome.ANALYSED.value, (*written, *files), n_findings=len(result.findings))


def _pictures(volume: Volume, found: Compared, out: Path, note: str) -> _Pictures:
    findings, comparison = found.result.findings, found.result.comparison
    pairs: Sequence[PairImages] = ()
    if comparison is not None and found.prior is not None:
        pairs = render_pairs(volume, found.prior, comparison, out, note=note)
    return _Pictures(
        render_key_images(volume, findings, out, note=note),
        render_overview(volume, findings, out / "overview.png", note=note),
        volume,
        render_stacks(volume, findings, out),
        pairs,
    )


def _refuse(request: CaseRequest, refusal: Refusal, pipeline: Pipeline, watch: _Stopwatch) -> CaseOutcome:
    headers, out = _readable_headers(request), request.out_dir
    context = _context(request, pipeline)
    forms = _forms(request)
    written = []

    def summary(outputs: Sequence[CaseFile] = ()) -> dict[str, Any]:
        return not_analysed_json(
            headers,
            refusal.code,
            refusal.sentence,
            context,
            outputs=_outputs(outputs),
            recipients=_recipients(request, outputs, analysed=False),
            timings_s=watch.seconds if outputs else None,
            warnings=template_or_built_in(request.report_template)[1],
        )

    draft = compose(summary(), context.template)
    with watch.stage("write report"):
        for form in dict.fromkeys(form.without_mask for form in forms if form.kind == "sr"):
            report = build_not_analysed_report(
                headers,
                refusal.code,
                refusal.sentence,
                context,
                report_class=_report_class(form),
                narrative=draft,
            )
            written.append(_saved(form, report, _path(out, form)))
    with watch.stage("reread"):
        for file in written:
            reread_not_analysed(file.path, str(headers[0].SeriesInstanceUID), refusal.code, draft)

    # another sentence is another document
    role = f"-not-analysed-{refusal.code}-{refusal.sentence}"
    written += _for_people(
        out, forms, summary(), _Pictures(), headers=headers, context=context, watch=watch, role=role
    )
    files = _pages(out, summary(written), _Pictures())
    return CaseOutcome(
        JobOutcome.NOT_ANALYSED.value, (*written, *files), refusal.code.value, refusal.sentence
    )


def _forms(request: CaseRequest) -> tuple[Form, ...]:
    return tuple(map(Form.parse, in_order(request.forms)))


def _masks(
    forms: Sequence[Form], loaded: LoadedSeries, result: Result, context: ResultContext
) -> dict[Form, Dataset]:
    return {
        form: build_seg(
            loaded.volume,
            result.findings,
            loaded.headers,
            context,
            encoding=SegEncoding.LABELMAP if form.labelmap else SegEncoding.BINARY,
            omit_empty_frames=not form.all_frames,
        )
        for form in forms
        if form.kind == "seg"
    }


def _reports(
    forms: Sequence[Form],
    masks: Mapping[Form, Dataset],
    loaded: LoadedSeries,
    result: Result,
    context: ResultContext,
    *,
    draft: Narrative,
) -> dict[Form, Dataset]:
    """Each report refers to the form of the SEG that goes with it; without findings there is none."""
    wanted = dict.fromkeys(form if masks else form.without_mask for form in forms if form.kind == "sr")
    return {
        form: build_report(
            loaded.volume,
            result,
            masks.get(form.mask),
            loaded.headers,
            context,
            report_class=_report_class(form),
            narrative=draft,
        )
        for form in wanted
    }


def _report_class(form: Form) -> ReportClass:
    return ReportClass.ENHANCED if form.enhanced else ReportClass.COMPREHENSIVE_3D


def _for_people(
    out: Path,
    forms: Sequence[Form],
    summary: dict[str, Any],
    pictures: _Pictures,
    *,
    headers: Sequence[Dataset],
    context: ResultContext,
    watch: _Stopwatch,
    role: str = "",
) -> list[CaseFile]:
    """What a PACS shows that knows neither SEG nor SR, if somebody wants it; read back before it counts."""
    if _SC not in forms and _PDF not in forms:
        return []
    files = []
    with watch.stage("pictures and PDF"):
        if _SC in forms:
            sources = pictures.volume.frames if pictures.volume is not None else source_frames(headers)
            captures = capture_result(summary, sources, pictures.volume, pictures.key_images)
            objects = build_captures(captures, headers[0], context, role=f"sc{role}")
            files = [_saved(_SC, ds, out / f"sc-{n:02d}.dcm") for n, ds in enumerate(objects, start=1)]
            reread_captures([file.path for file in files], captures)
        if _PDF in forms:
            document = print_report(
                summary,
                context,
                key_images=pictures.key_images,
                overview=pictures.overview,
                pairs=pictures.pairs,
            )
            # another template is another document
            own = "" if context.template == BUILT_IN else f"-{context.template.digest}"
            printed = build_pdf(document, headers, context, role=f"pdf{role}{own}")
            files.append(_saved(_PDF, printed, _path(out, _PDF)))
            reread_pdf(files[-1].path, document, headers)
    return files


def _readable_headers(request: CaseRequest) -> list[Dataset]:
    """Headers of the series; where no file can be read, one made of what the node wrote down on arrival."""
    read = [read_header(path) for path in _reader(request).readable(request.files)]
    series_uid = request.identity["SeriesInstanceUID"]
    headers = [header for header in read if header.get("SeriesInstanceUID") == series_uid]
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


def _path(out: Path, form: Form) -> Path:
    return out / f"{str(form).replace(':', '-').replace('+', '-')}.dcm"


def _saved(form: Form, dataset: Dataset, path: Path) -> CaseFile:
    return CaseFile(
        form.kind,
        path,
        save(dataset, path),
        str(dataset.SOPInstanceUID),
        str(dataset.SOPClassUID),
        str(dataset.SeriesInstanceUID),
        "+".join(form.options),
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
            file.encoding,
        )
        for file in files
    ]


def _recipients(request: CaseRequest, files: Sequence[CaseFile], *, analysed: bool) -> list[Recipient]:
    """Who is to get which of the files."""
    forms = {file.path.name: form_name(file.kind, file.encoding) for file in files}
    rows = []
    for receiver in request.receivers:
        wanted = chosen(receiver.forms if analysed or receiver.told_why else (), tuple(forms.values()))
        names = tuple(name for name, form in forms.items() if form in wanted)
        rows.append(Recipient(receiver.name, receiver.profile, names))
    return rows


def _sentence_pairs(pipeline: Pipeline) -> list[SentencePair]:
    """What the networks compare a nodule with; none where no network reads sentences."""
    if not pipeline.has(TEXT):
        return []
    return [SentencePair(pair.feature, pair.positive, pair.negative) for pair in PAIRS]


def _pages(out: Path, summary: dict[str, Any], shown: _Pictures) -> list[CaseFile]:
    """Write the result for programs and for people, and list them with the pictures."""
    (out / "result.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False), encoding="utf-8")
    page = report_html(
        summary,
        key_images=shown.key_images,
        overview=shown.overview,
        stacks=shown.stacks,
        pairs=shown.pairs,
    )
    (out / "report.html").write_text(page, encoding="utf-8")
    files = [("json", out / "result.json"), ("html", out / "report.html"), *shown.files]
    for _, path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_directory(out)
    return [CaseFile(kind, path, hashlib.sha256(path.read_bytes()).hexdigest()) for kind, path in files]
