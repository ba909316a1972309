"""One case of a manifest: load, analyse, compare; in a process of its own, so that its memory is its own."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from math import nan
from pathlib import Path
from time import monotonic

import numpy as np

from inference.analyse import analyse
from inference.errors import UnsuitableSeriesError
from inference.evaluate.manifest import Annotation, Case, ManifestError
from inference.evaluate.marks import Lesion, ScanMatch, match
from inference.evaluate.metaimage import MetaImageError, read_array
from inference.evaluate.metrics import Mask, dice
from inference.evaluate.scan_marks import centre_of, marks_of_findings
from inference.headers import text
from inference.load import LoadedSeries, load_series, read_header
from inference.record import RecordError, RecordReading, merge
from inference.record_files import read_record
from inference.record_header import day_of, from_dicom
from inference.registry import DEFAULT_PROFILE, SEGMENTATION, load_pipeline
from inference.types import Finding, Point, Result, Volume


@dataclass(frozen=True, slots=True)
class Shown:
    """A finding as the pipeline shows it; None where it says nothing."""

    centre_lps: Point
    diameter_mm: float
    volume_mm3: float
    probability: float
    malignancy: float | None
    malignancy_with_record: float | None


@dataclass(frozen=True, slots=True)
class LesionOutcome:
    """What became of one lesion.

    Parameters
    ----------
    finding
        Index of the finding that hit it, None where it was missed.
    dice
        With its mask; NaN without mask, 0 where it was missed.
    """

    name: str
    centre_lps: Point
    diameter_mm: float
    malignant: bool | None
    finding: int | None
    dice: float


@dataclass(frozen=True, slots=True)
class CaseOutcome:
    """One case.

    Parameters
    ----------
    failure
        Why it was not analysed, "" where it was.
    match
        None for a case that isn't annotated.
    seconds
        Wall-clock time of ``models`` (loading them, with the imports that takes), ``load`` (reading the
        series) and ``analyse``; none of a case that failed.
    peak_mib
        Greatest resident memory of the process that did nothing but this case; Python and libraries are part
        of it. NaN where the system doesn't say.
    """

    name: str
    patient: str
    slices: int
    failure: str
    findings: tuple[Shown, ...]
    lesions: tuple[LesionOutcome, ...]
    match: ScanMatch | None
    seconds: Mapping[str, float]
    peak_mib: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """What runs: pickled to the child."""

    profile: str = DEFAULT_PROFILE
    device: str = "cpu"


Analyst = Callable[[LoadedSeries, RecordReading], Result]
"""Analyses one series; the models are loaded."""


def load_analyst(settings: Settings) -> Analyst:
    """Load the models of a profile.

    Raises
    ------
    ModelUnavailableError
        The profile can't run.
    """
    pipeline = load_pipeline(settings.profile)
    stack = None
    if pipeline.has(SEGMENTATION):
        from inference.stack import load_stack  # noqa: PLC0415 - torchvision and MONAI, only where needed

        stack = load_stack(pipeline, device=settings.device)

    def analyst(loaded: LoadedSeries, record: RecordReading) -> Result:
        uids = sorted(frame.sop_instance_uid for frame in loaded.volume.frames)
        digest = hashlib.sha256("\n".join(uids).encode()).hexdigest()
        return analyse(
            loaded.volume, pipeline, input_digest=digest, record=record, device=settings.device, stack=stack
        )

    return analyst


def run_case(case: Case, settings: Settings, analyst: Analyst | None = None) -> CaseOutcome:
    """Analyse one case in this process; `analyst` only where the models are loaded already.

    Raises
    ------
    ModelUnavailableError
        The profile can't run: that is no property of the case.
    """
    started = monotonic()
    analyst = analyst or load_analyst(settings)
    seconds = {"models": monotonic() - started}
    try:
        started = monotonic()
        loaded = load_series(series_files(case))
        record = record_of(case, loaded)
        seconds["load"], started = monotonic() - started, monotonic()
        result = analyst(loaded, record)
        seconds["analyse"] = monotonic() - started
        return _compared(case, loaded.volume, result, seconds)
    except (UnsuitableSeriesError, RecordError, ManifestError, MetaImageError) as error:
        return failed(case, str(error))


def record_of(case: Case, loaded: LoadedSeries) -> RecordReading:
    """What the DICOM header says of the patient, and the case's record file above it.

    Raises
    ------
    RecordError
        The file is none, or is of another patient.
    """
    header = loaded.headers[0]
    known = from_dicom(header)
    if case.record is None:
        return known
    uid, patient = loaded.volume.study_uid, text(header, "PatientID")
    seen = day_of(text(header, "StudyDate"))
    return merge(read_record(case.record, study_uid=uid, patient_id=patient, seen=seen), known)


def run_alone(case: Case, settings: Settings) -> CaseOutcome:
    """Analyse one case in a fresh process; a process that dies is a failure of the case."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        try:
            return pool.submit(run_case, case, settings).result()
        except BrokenProcessPool:
            return failed(case, "the process died, perhaps for want of memory")


def series_files(case: Case) -> list[Path]:
    """DICOM files of the case's series.

    Raises
    ------
    ManifestError
        There are none, or the folder holds several series and the manifest doesn't say which.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(path for path in case.series.rglob("*") if path.is_file()):
        try:
            uid = text(read_header(path), "SeriesInstanceUID")
        except UnsuitableSeriesError:
            continue  # other files may lie beside the images
        found.setdefault(uid, []).append(path)
    if case.series_uid:
        found = {uid: paths for uid, paths in found.items() if uid == case.series_uid}
    if len(found) != 1:
        what = f"{len(found)} series" if found else "no DICOM image"
        raise ManifestError(f"{case.name}: the folder has {what}; name one by series_uid")
    return next(iter(found.values()))


def failed(case: Case, reason: str) -> CaseOutcome:
    """A case that was not analysed: all its lesions are missed."""
    hits = None
    if case.lesions is not None:
        none = tuple(None for _ in case.lesions)
        hits = ScanMatch(case.name, case.patient, none, none, (), 0)
    lesions = tuple(
        LesionOutcome(
            one.name, one.centre_lps or (nan, nan, nan), one.diameter_mm or nan, one.malignant, None, nan
        )
        for one in case.lesions or ()
    )
    return CaseOutcome(case.name, case.patient, 0, reason, (), lesions, hits, {}, nan, ())


def _compared(case: Case, volume: Volume, result: Result, seconds: Mapping[str, float]) -> CaseOutcome:
    marks = marks_of_findings(result, volume)
    hits = None
    outcomes: tuple[LesionOutcome, ...] = ()
    if case.lesions is not None:
        lesions = [one.on(volume) for one in case.lesions]
        excluded = [one.on(volume) for one in case.excluded]
        hits = match(marks, lesions, excluded, scan=case.name, patient=case.patient)
        outcomes = _lesions(case.lesions, lesions, hits, volume, result.findings)
    return CaseOutcome(
        name=case.name,
        patient=case.patient,
        slices=len(volume.array),
        failure="",
        findings=tuple(_shown(finding, volume) for finding in result.findings),
        lesions=outcomes,
        match=hits,
        seconds=seconds,
        peak_mib=peak_mib(),
        warnings=result.warnings,
    )


def _shown(finding: Finding, volume: Volume) -> Shown:
    x, y, z = volume.index_to_lps(centre_of(finding))
    said = finding.malignancy
    return Shown(
        (float(x), float(y), float(z)),
        finding.measurements.mean_diameter_mm,
        finding.measurements.volume_mm3,
        finding.detection_probability,
        None if said is None else said.image_only,
        None if said is None else said.fused,
    )


def _lesions(
    annotations: Sequence[Annotation],
    lesions: Sequence[Lesion],
    hits: ScanMatch,
    volume: Volume,
    findings: Sequence[Finding],
) -> tuple[LesionOutcome, ...]:
    outcomes = []
    for annotation, lesion, finding in zip(annotations, lesions, hits.hit_marks, strict=True):
        overlap = nan
        if annotation.mask is not None:
            truth = mask_on(annotation.mask, volume)
            found = np.zeros(truth.shape, np.bool_)
            if finding is not None:
                found[findings[finding].slices()] = findings[finding].mask
            overlap = dice(found, truth)
        outcomes.append(
            LesionOutcome(
                annotation.name, lesion.centre_lps, lesion.diameter_mm, annotation.malignant, finding, overlap
            )
        )
    return tuple(outcomes)


def mask_on(path: Path, volume: Volume) -> Mask:
    """A MetaImage mask on the grid of a volume, by the nearest voxel.

    Raises
    ------
    MetaImageError
        Not a MetaImage, or no voxel of it is set inside the volume.
    """
    stored, affine = read_array(path)
    inside = np.argwhere(stored > 0)
    mask = np.zeros(volume.array.shape, np.bool_)
    if len(inside):
        # the box of the mask in the volume, a voxel wider, looked up backwards
        corners = inside.min(axis=0) - 0.5, inside.max(axis=0) + 0.5
        ends = np.array(np.meshgrid(*zip(*corners, strict=True))).reshape(3, -1)
        reach = volume.lps_to_index((affine[:3, :3] @ ends).T + affine[:3, 3])
        low = np.maximum(np.floor(reach.min(axis=0)).astype(int), 0)
        high = np.minimum(np.ceil(reach.max(axis=0)).astype(int) + 1, mask.shape)
        box = np.stack(np.meshgrid(*map(np.arange, low, high), indexing="ij"), axis=-1).reshape(-1, 3)
        back = np.linalg.inv(affine)
        source = np.rint(volume.index_to_lps(box) @ back[:3, :3].T + back[:3, 3]).astype(int)
        known = ((source >= 0) & (source < stored.shape)).all(axis=1)
        mask[tuple(box[known].T)] = stored[tuple(source[known].T)] > 0
    if not mask.any():
        raise MetaImageError(f"{path.name}: no voxel of the mask lies in the series")
    return mask


def peak_mib() -> float:
    """Greatest resident memory of this process so far, MiB; NaN where the system doesn't say.

    Not ``getrusage``: its figure outlives ``exec`` and so knows the parent's memory.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return nan
    found = [float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")]
    return found[0] if found else nan
