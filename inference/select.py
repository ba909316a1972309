"""Which series of a study is analysed, and why not the others. Headers only; light enough for a scheduler.

Rules: what isn't a CT slice of the chest is refused by SOP Class, Modality and Image Type (PS3.3
C.8.2.1.1.1), then `inference.geometry` judges the stack. Text that people type (series description) is never
used. A body part is only trusted where it clearly excludes the chest; otherwise the voxels decide later.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydicom import Dataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
)

from inference.decode import DECODABLE_TRANSFER_SYNTAXES, transfer_syntax
from inference.errors import ReasonCode, UnsuitableSeriesError
from inference.geometry import Grid, distinct_images, judge_geometry
from inference.headers import (
    MALFORMED_VALUE,
    count_patients,
    frame_item,
    is_multiframe,
    number,
    patient,
    sequence,
    text,
)

CT_STORAGE = (CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
THIN_MM = 2.5
"""At or below this a series is thin; thicker ones are second choice."""
WHOLE_LUNG_MM = 200.0
"""Shorter stacks are taken for part of the lungs, and are second choice among equally thin ones."""

_NOT_IMAGES = re.compile(
    "AU|DOC|FID|KO|M3D|PLAN|PR|REG|RTDOSE|RTINTENT|RTPLAN|RTRECORD|RTSEGANN|RTSTRUCT|RWV|SEG|SMR|SR|STAIN"
    "|TEXTUREMAP|ANN|HC|HD|ECG|EPS|RESP"
)
_DERIVED_WORD = re.compile(
    "MPR|MIP|MINIP|AVERAGED?|MEAN|MAXIMUM|MINIMUM|PROJECTION|REFORMATTED|RESAMPLED|CPR|VRT|SSD|3D|RENDERING"
    "|SUBTRACTION|PERFUSION|RCB[FV]|RMTT|CB[FV]|TTP|INFO|REPORT|SCREEN|SCREENSAVE|CAPTURE|FUSION"
)
_SPECTRAL_WORD = re.compile(
    "MONO|MONOE|MONOENERGETIC|MONOCHROMATIC|VMI|VNC|VUE|IODINE|WATER|CALCIUM|FAT|GSI|ZEFF|EFFZ|MATERIAL|DUAL"
    "|DE|SPECTRAL"
)
_ELSEWHERE = re.compile(
    "HEAD|BRAIN|SKULL|FACE|ORBITS?|SINUS|SINUSES|EAR|IAC|JAW|MANDIBLE|MAXILLA|TMJ|[CLS]SPINE|PELVIS|HIPS?|KNEE"
    "|ANKLE|FOOT|FEET|TOE|LEG|CALF|THIGH|FEMUR|TIBIA|FIBULA|CALCANEUS|HAND|WRIST|FINGER|ELBOW|FOREARM|HUMERUS"
    "|EXTREMITY|EXTREMITIES"
)
_CHEST = re.compile("CHEST|THORA|LUNG|BREAST|HEART|TSPINE|RIB|STERNUM|TORSO|TRUNK|BODY")
_SHARP = re.compile(r"LUNG|BONE|EDGE|SHARP|CHST|^Y|^L$|^E$")
_SOFT = re.compile(r"SOFT|STANDARD|SMOOTH|^[ABC]$")


@dataclass(frozen=True, slots=True)
class SeriesVerdict:
    """What was decided about a series, and why.

    Parameters
    ----------
    series_uid
        The series.
    suitable
        It could be analysed. True with code NOT_SELECTED for one that another of its study was preferred to.
    code
        None for the series to analyse.
    sentence
        For a person: the reason, or what was chosen. No patient data.
    score
        Larger is better, compared item by item: thin, covers the lungs, -thickness (mm, tenths), coverage
        (mm), softness of the kernel. Empty where unsuitable.
    facts
        Plain values that a record can keep: n_slices, thickness_mm, spacing_mm, coverage_mm, matrix, kernel,
        body_part, image_type, lossy.
    """

    series_uid: str
    suitable: bool
    code: ReasonCode | None
    sentence: str
    score: tuple[float, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def selected(self) -> bool:
        """Whether this is the series to analyse."""
        return self.suitable and self.code is None


def judge_series(
    headers: Sequence[Dataset], *, series_uid: str = "", allowed_image_types: Collection[str] = ()
) -> SeriesVerdict:
    """Judge one series. Never raises for bad input, and the order of `headers` never matters.

    Parameters
    ----------
    headers
        Headers of all its images, with or without pixels.
    series_uid
        Named in the verdict; default: what the headers say.
    allowed_image_types
        Words of Image Type that this site accepts though they name spectral or derived images, e.g.
        ``{"VMI"}``.

    Returns
    -------
    SeriesVerdict
        Suitable with code None, or the most helpful reason.
    """
    uids = sorted({text(header, "SeriesInstanceUID") for header in headers})
    uid = series_uid or (uids[0] if uids else "")
    facts: dict[str, Any] = {"n_slices": len(headers)}
    try:
        images = distinct_images(headers)
        if images:
            facts |= _facts(images)
        _check_kind(images, frozenset(word.upper() for word in allowed_image_types))
        _check_one_series(uids)
        _check_decodable(images)
        grid = judge_geometry(images)
    except UnsuitableSeriesError as reason:
        return SeriesVerdict(uid, suitable=False, code=reason.code, sentence=reason.sentence, facts=facts)
    facts |= _grid_facts(grid)
    sentence = (
        f"Suitable: {grid.shape[0]} slices, {_thickness(grid):.2f} mm, {grid.extent_mm:.0f} mm covered"
        + (f", kernel {facts['kernel']}." if facts["kernel"] else ".")
    )
    score = _score(grid, facts["kernel"])
    return SeriesVerdict(uid, suitable=True, code=None, sentence=sentence, score=score, facts=facts)


def judge_study(
    series: Mapping[str, Sequence[Dataset]], *, allowed_image_types: Collection[str] = ()
) -> tuple[SeriesVerdict, ...]:
    """Choose the series of a study to analyse.

    Thin ones (`THIN_MM`) come first, then those long enough for the whole lungs (`WHOLE_LUNG_MM`), then the
    thinner, the longer, the softer kernel, and at last the smaller series UID.

    Parameters
    ----------
    series
        Series Instance UID to the headers of the series.

    Returns
    -------
    tuple of SeriesVerdict
        The chosen series first (code None), then those it was preferred to (suitable, NOT_SELECTED), then the
        unsuitable ones by UID. None has code None where no series is suitable.
    """
    verdicts = [
        judge_series(headers, series_uid=uid, allowed_image_types=allowed_image_types)
        for uid, headers in series.items()
    ]
    patients = {uid: {patient(header) for header in headers} for uid, headers in series.items()}
    return rank_series(verdicts, patients)


def rank_series(
    verdicts: Sequence[SeriesVerdict], patients: Mapping[str, Collection[str]]
) -> tuple[SeriesVerdict, ...]:
    """Order the verdicts on the series of one study; see `judge_study`.

    Parameters
    ----------
    patients
        Series Instance UID -> patients that its images name (`inference.headers.patient`). A suitable series
        must name the same one as all the others, whatever they are; one that names none says nothing.
    """
    unsuitable = sorted((v for v in verdicts if not v.suitable), key=lambda v: v.series_uid)
    good = sorted((v for v in verdicts if v.suitable), key=lambda v: v.series_uid)
    good.sort(key=lambda v: v.score, reverse=True)
    named = {name for verdict in good for name in patients[verdict.series_uid]}
    named |= {name for verdict in unsuitable for name in patients.get(verdict.series_uid, ()) if name}
    count = count_patients(named)
    if count > 1:
        sentence = f"The series of this study belong to {count} different patients."
        mixed = [
            SeriesVerdict(
                v.series_uid, suitable=False, code=ReasonCode.MIXED_PATIENT, sentence=sentence, facts=v.facts
            )
            for v in sorted(good, key=lambda v: v.series_uid)
        ]
        return (*mixed, *unsuitable)
    return (*good[:1], *(_not_selected(verdict, good[0]) for verdict in good[1:]), *unsuitable)


def kernel_softness(kernel: str) -> int:
    """2 for a soft, 0 for a sharp reconstruction kernel, 1 where its name doesn't say.

    Knows the names of Siemens (B30f, Br40, Bl57: sharp from 50), Canon (FC01-FC29 soft, FC30 and up sharp),
    GE and Philips.
    """
    name = kernel.upper().strip()
    if siemens := re.match(r"^[A-Z]{1,2}(\d{2})[A-Z]?\b", name):
        if name.startswith("FC"):
            return 2 if int(siemens[1]) < 30 else 0
        return 2 if int(siemens[1]) < 50 else 0
    if _SHARP.search(name):
        return 0
    return 2 if _SOFT.search(name) else 1


def image_type_words(header: Dataset) -> tuple[str, ...]:
    """Words of Image Type, in upper case, of all its values; for enhanced CT those of Frame Type too."""
    values = _values(header, "ImageType")
    if is_multiframe(header) and sequence(header, "PerFrameFunctionalGroupsSequence"):
        values += _values(frame_item(header, 0, "CTImageFrameTypeSequence"), "FrameType")
    return tuple(word for value in values for word in re.split(r"[^A-Z0-9]+", value) if word)


def _check_kind(images: Sequence[Dataset], allowed: frozenset[str]) -> None:
    if not images:
        raise UnsuitableSeriesError(ReasonCode.NOT_AN_IMAGE, "The series has no images.")
    for image in images:
        _check_object(image)
    for image in images:
        _check_image_type(image, allowed)
        _check_body_part(image)


def _check_one_series(uids: Sequence[str]) -> None:
    if len(uids) > 1:
        raise UnsuitableSeriesError(
            ReasonCode.MIXED_GEOMETRY, f"The images belong to {len(uids)} different series."
        )


def _check_object(image: Dataset) -> None:
    sop_class, modality = text(image, "SOPClassUID"), text(image, "Modality").upper()
    name = _class_name(sop_class)
    if sop_class in CT_STORAGE:
        if modality not in ("CT", ""):
            raise UnsuitableSeriesError(ReasonCode.NOT_CT, f"The modality is {modality[:16]}, not CT.")
    elif _NOT_IMAGES.fullmatch(modality) or not number(image, "Rows"):
        raise UnsuitableSeriesError(ReasonCode.NOT_AN_IMAGE, f"The series holds no CT images but {name}.")
    elif modality == "CT" and "Secondary Capture" in name:
        raise UnsuitableSeriesError(
            ReasonCode.DERIVED,
            "The series holds secondary captures (screen shots or reports), not CT slices.",
        )
    else:
        raise UnsuitableSeriesError(
            ReasonCode.NOT_CT, f"The images are {name} of modality {modality[:16] or 'unknown'}, not CT."
        )
    if (number(image, "SamplesPerPixel") or 1) != 1:
        raise UnsuitableSeriesError(ReasonCode.DERIVED, "The images are coloured, so they aren't CT slices.")


def _check_decodable(images: Sequence[Dataset]) -> None:
    """Before another series of the study is passed over for one that can't be read."""
    for image in images:
        syntax = transfer_syntax(image)
        if syntax and syntax not in DECODABLE_TRANSFER_SYNTAXES:
            raise UnsuitableSeriesError(
                ReasonCode.DECODE, f"The transfer syntax isn't supported ({syntax.name})."
            )


def _check_image_type(image: Dataset, allowed: frozenset[str]) -> None:
    """Image Type may be missing in data that are otherwise sound: then the geometry decides."""
    words = image_type_words(image)
    shown = "\\".join(_values(image, "ImageType"))[:64]
    if "LOCALIZER" in words:
        raise UnsuitableSeriesError(ReasonCode.LOCALIZER, "The series is a localizer (scout).")
    if "SECONDARY" in words:
        raise UnsuitableSeriesError(
            ReasonCode.DERIVED, f"The images aren't the scanner's own slices: Image Type {shown}."
        )
    derived = [word for word in words if _DERIVED_WORD.fullmatch(word) and word not in allowed]
    if derived:
        raise UnsuitableSeriesError(
            ReasonCode.DERIVED, f"The images are derived ({derived[0]}): Image Type {shown}."
        )
    spectral = [word for word in words if _SPECTRAL_WORD.fullmatch(word) and word not in allowed]
    if spectral:
        raise UnsuitableSeriesError(
            ReasonCode.DERIVED,
            f"The images are of a spectral reconstruction ({spectral[0]}) that this site hasn't allowed: "
            f"Image Type {shown}.",
        )


def _check_body_part(image: Dataset) -> None:
    named = _body_part(image)
    elsewhere = any(_ELSEWHERE.fullmatch(word) for word in re.split(r"[^A-Z0-9]+", named))
    if elsewhere and not _CHEST.search(named):
        raise UnsuitableSeriesError(ReasonCode.NOT_CHEST, f"The body part examined is {named[:32]}.")


def _body_part(image: Dataset) -> str:
    """Body Part Examined, else the meaning of the anatomic region code, in upper case."""
    if part := text(image, "BodyPartExamined").upper():
        return part
    holder = image
    if is_multiframe(image) and sequence(image, "PerFrameFunctionalGroupsSequence"):
        holder = frame_item(image, 0, "FrameAnatomySequence")
    regions = sequence(holder, "AnatomicRegionSequence")
    return text(regions[0], "CodeMeaning").upper() if regions else ""


def _facts(images: Sequence[Dataset]) -> dict[str, Any]:
    first = images[0]
    holder = first
    if is_multiframe(first) and sequence(first, "PerFrameFunctionalGroupsSequence"):
        holder = frame_item(first, 0, "CTReconstructionSequence")
    frames = number(first, "NumberOfFrames")
    return {
        "n_slices": int(frames) if len(images) == 1 and frames else len(images),
        "kernel": "\\".join(_values(holder, "ConvolutionKernel", upper=False)),
        "body_part": _body_part(first),
        "image_type": "\\".join(_values(first, "ImageType")),
        "matrix": [int(number(first, "Rows") or 0), int(number(first, "Columns") or 0)],
        "lossy": any(text(image, "LossyImageCompression") == "01" for image in images),
    }


def _grid_facts(grid: Grid) -> dict[str, Any]:
    return {
        "n_slices": grid.shape[0],
        "thickness_mm": grid.thickness_mm,
        "spacing_mm": [round(value, 4) for value in grid.spacing_mm],
        "coverage_mm": round(grid.extent_mm, 2),
    }


def _score(grid: Grid, kernel: str) -> tuple[float, ...]:
    thickness = round(_thickness(grid), 1)
    return (
        float(thickness <= THIN_MM),
        float(grid.extent_mm >= WHOLE_LUNG_MM),
        -thickness,
        round(grid.extent_mm),
        float(kernel_softness(kernel)),
    )


def _thickness(grid: Grid) -> float:
    return max(grid.thickness_mm or 0.0, grid.spacing_mm[0])


def _not_selected(verdict: SeriesVerdict, chosen: SeriesVerdict) -> SeriesVerdict:
    def describe(one: SeriesVerdict) -> str:
        thickness = max(one.facts["thickness_mm"] or 0.0, one.facts["spacing_mm"][0])
        kernel = one.facts["kernel"] or "unknown"
        return f"{thickness:.2f} mm, {one.facts['coverage_mm']:.0f} mm covered, kernel {kernel}"

    sentence = (
        f"Suitable ({describe(verdict)}), but series {chosen.series_uid} of the same study was preferred "
        f"({describe(chosen)})."
    )
    return SeriesVerdict(
        verdict.series_uid,
        suitable=True,
        code=ReasonCode.NOT_SELECTED,
        sentence=sentence,
        score=verdict.score,
        facts=verdict.facts,
    )


def _values(ds: Dataset, keyword: str, *, upper: bool = True) -> tuple[str, ...]:
    try:
        value: Any = ds.get(keyword)
        listed = [] if value is None else [value] if isinstance(value, str) else list(value)
        texts = [str(item).strip("\0 ") for item in listed]
    except MALFORMED_VALUE:
        return ()
    return tuple(item.upper() if upper else item for item in texts if item)


def _class_name(sop_class: str) -> str:
    name = UID(sop_class).name
    return name if name != sop_class else "objects of an unknown kind"
