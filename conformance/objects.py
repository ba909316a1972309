"""What `make conformance` checks: objects of drawn results with hard geometry, and of analysed scans.

The drawn cases have masks of known form on synthetic series of every awkward kind; no model is involved.
The analysed ones are what the node itself makes: of a phantom with nodules, of one without, of one whose
slices are too thick, and of any scan that is named.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.uid import MRImageStorage
from rich.console import Console

from dicom_sr.capture import Capture, build_captures
from dicom_sr.codes import FEATURES
from dicom_sr.context import OtherSeries, Predecessor, ResultContext
from dicom_sr.narrative import compose
from dicom_sr.part10 import save
from dicom_sr.pdf import build_pdf
from dicom_sr.profiles import PROFILES, in_order
from dicom_sr.report import ReportClass, build_not_analysed_report, build_report
from dicom_sr.seg import SegEncoding, build_seg
from dicom_sr.summary import result_json
from inference.load import read_header
from inference.phantom import make_phantom, write_phantom
from inference.registry import DEFAULT_PROFILE
from inference.types import (
    Attenuation,
    AttenuationDoubt,
    Descriptor,
    Finding,
    Malignancy,
    Observation,
    SemanticFeature,
    Volume,
)
from pacs_node.analyze import ANALYSED, NOT_SUITABLE, analyze_directory
from tests.ct_factory import chest_hu, make_ct_series, make_enhanced_ct, write_series
from tests.finding_factory import (
    TRAINED,
    UNTRAINED,
    make_comparison,
    make_context,
    make_findings,
    make_result,
    make_volume,
    without_pixels,
)
from tests.odd_series import CHANGES, OTHERS, odd_series

FORMS = in_order(
    ("seg:labelmap", "sr:labelmap", *(form for profile in PROFILES.values() for form in profile.forms))
)
"""Every form of a result that a destination can ask for."""

_COSINE, _SINE = 0.9659258, 0.2588190
_OBLIQUE = (_COSINE, 0.0, -_SINE, _SINE * 0.5, 0.8660254, _COSINE * 0.5)
_PICTURE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
_DOCUMENT = b"%PDF-1.4\n%%EOF\n"
_NAMES = "Иванова^Мария=Иванова^Мария"


@dataclass(frozen=True, slots=True)
class Case:
    """One result.

    Parameters
    ----------
    name
        For people.
    objects
        Folder of the objects that are checked.
    sources
        Folder of the images they were made of; they only stand beside.
    """

    name: str
    objects: Path
    sources: Path


def _unlike(seed: str, **options: Any) -> list[Dataset]:
    """A series of 16 slices and a study of its own for each case."""
    return make_ct_series(16, seed=seed, **options)


def _in_cyrillic(seed: str) -> list[Dataset]:
    series = _unlike(seed)
    for dataset in series:
        dataset.PatientName = _NAMES
    return series


def _magnetic_resonance(seed: str) -> list[Dataset]:
    series = _unlike(seed)
    for dataset in series:
        dataset.SOPClassUID, dataset.Modality = MRImageStorage, "MR"
    return series


#: Series by case; the number of nodules drawn into it stands in `_NODULES`.
SERIES: dict[str, Callable[[str], list[Dataset]]] = {
    "several nodules": _unlike,
    "one nodule": _unlike,
    "no nodule": _unlike,
    "ten nodules": _unlike,
    "everything in the report": _unlike,
    "not analysed": _unlike,
    "not analysed, MR": _magnetic_resonance,
    "multi-frame source": lambda seed: [make_enhanced_ct(_unlike(seed))],
    "oblique": lambda seed: _unlike(seed, orientation=_OBLIQUE),
    "oblong pixels": lambda seed: _unlike(
        seed, pixel_spacing_mm=(4.1, 5.3), origin_mm=(-131.7, 88.13, 1033.9)
    ),
    "odd matrix": lambda seed: _unlike(seed, matrix=61),
    "rows and columns differ": lambda seed: _unlike(
        seed, hu=np.ascontiguousarray(chest_hu(16, 64)[:, :55, :])
    ),
    "slices of 0.4 mm": lambda seed: _unlike(seed, spacing_mm=0.4, thickness_mm=0.5),
    "slices of 5 mm": lambda seed: _unlike(seed, spacing_mm=5.0),
    "other script": _in_cyrillic,
}
_NODULES = {"one nodule": 1, "no nodule": 0, "ten nodules": 10}


def draw_cases(directory: Path) -> Iterator[Case]:
    """Write the drawn cases; some seconds."""
    for number, (name, make) in enumerate(SERIES.items()):
        yield draw_case(name, make(f"conformance-{number}"), directory / f"drawn-{number:02d}")


def draw_odd_cases(directory: Path) -> Iterator[Case]:
    """Write a result of each series whose headers are odd but sound enough to name the patient."""
    for number, name in enumerate((*CHANGES, *OTHERS)):
        yield draw_odd_case(name, directory / f"{number:02d}")


def draw_odd_case(name: str, directory: Path, n_slices: int = 16) -> Case:
    """Write a series of `tests.odd_series`, and SEG, report, picture and PDF of it.

    The pictures are as small as can be: their headers are what differs.
    """
    case = Case(f"odd: {name}", directory / "objects", directory / "sources")
    case.objects.mkdir(parents=True)
    series = odd_series(name, n_slices)
    paths = write_series(series, case.sources)
    headers = [read_header(path) for path in paths]
    volume = make_volume(series)
    if "multi-frame" in name:
        shutil.rmtree(case.sources)  # valid only as far as geometry needs it
        case.sources.mkdir()
    context, findings = make_context(), make_findings(volume, 2, first_slice=0)
    seg = build_seg(volume, findings, headers, context)
    result = make_result(volume, findings, context)
    draft = compose(result_json(volume, result, headers, context))
    report = build_report(volume, result, seg, headers, context, narrative=draft)
    picture = Capture(_PICTURE, volume.frames, "Drawn.", "A picture.", None, names_patient=False)
    (capture,) = build_captures([picture], headers[0], context)
    printed = build_pdf(_DOCUMENT, headers, context)
    refusal = build_not_analysed_report(headers, "TOO_THICK", "The slices are 8 mm thick.", context)
    made = {"seg": seg, "sr": report, "sc": capture, "pdf": printed, "refusal": refusal}
    for kind, dataset in made.items():
        save(dataset, case.objects / f"{kind}.dcm")
    return case


def draw_case(name: str, series: Sequence[Dataset], directory: Path) -> Case:
    """Write one drawn case: the series, and each form of its result."""
    case = Case(name, directory / "objects", directory / "sources")
    case.objects.mkdir(parents=True)
    # the synthetic multi-frame image is valid only as far as geometry needs it
    write_series(series if name != "multi-frame source" else [], case.sources)
    headers = without_pixels(series)
    if name.startswith("not analysed"):
        for number, kind in enumerate(ReportClass):
            report = build_not_analysed_report(
                headers, "TOO_THICK", "The slices are 8 mm thick.", make_context(), report_class=kind
            )
            save(report, case.objects / f"sr-{number}.dcm")
        return case
    volume = make_volume(series)
    context = _full_context(volume) if name == "everything in the report" else make_context()
    _write_result(case.objects, volume, headers, context, _NODULES.get(name, 3))
    return case


def _full_context(volume: Volume) -> ResultContext:
    return make_context(
        cards=(UNTRAINED, TRAINED),
        institution="Somewhere",
        predecessors=(Predecessor(volume.study_uid, "1.2.3", "1.2.840.10008.5.1.4.1.1.88.34", "1.2.4"),),
        other_series=(OtherSeries("1.2.5", "CT", "TOO_THICK", "Slices are 8 mm thick."),),
    )


def _write_result(
    directory: Path, volume: Volume, headers: Sequence[Dataset], context: ResultContext, count: int
) -> None:
    """Write SEG and report; of the richest case each form of both."""
    findings = make_findings(volume, count)
    observations: tuple[Observation, ...] = ()
    if len(context.cards) > 1:
        findings, observations = _everything(findings)
    result = make_result(volume, findings, context, observations=observations, warnings=("Thick slices.",))
    complete = len(context.cards) > 1
    if complete:
        result = replace(result, comparison=make_comparison(volume, findings))
    draft = compose(result_json(volume, result, headers, context))
    if not findings:
        for kind in ReportClass:
            save(
                build_report(volume, result, None, headers, context, report_class=kind, narrative=draft),
                directory / f"sr-{kind}.dcm",
            )
        return
    for encoding in SegEncoding if complete else [SegEncoding.BINARY]:
        for omit in (True, False):
            name = f"{encoding}-{'some' if omit else 'all'}-frames"
            seg = build_seg(volume, findings, headers, context, encoding=encoding, omit_empty_frames=omit)
            save(seg, directory / f"seg-{name}.dcm")
            for kind in ReportClass if complete else [ReportClass.COMPREHENSIVE_3D]:
                if complete or omit:
                    report = build_report(
                        volume, result, seg, headers, context, report_class=kind, narrative=draft
                    )
                    save(report, directory / f"sr-{kind}-{name}.dcm")


def _everything(findings: tuple[Finding, ...]) -> tuple[tuple[Finding, ...], tuple[Observation, ...]]:
    """All that the trained profiles say of a nodule and of a scan; the first nodule is a mass in doubt."""
    features = tuple(SemanticFeature(name, 4, 0.4 if name == "spiculation" else 0.7) for name in FEATURES)
    pleura = (
        Descriptor("pleural attachment", 0.8, "1", "pleura"),
        Descriptor("distance to the pleura", 0.4, "mm", "pleura"),
    )
    first, *others = (
        replace(f, malignancy=Malignancy(0.3, 0.4), features=features, descriptors=pleura) for f in findings
    )
    first = replace(
        first,
        measurements=replace(first.measurements, long_axis_mm=33.0),
        attenuation=None,
        attenuation_doubt=AttenuationDoubt(Attenuation.SOLID, 0.4, Attenuation.PART_SOLID),
    )
    observations = (Observation("emphysema", "present", 0.8), Observation("lung_rads", "4A"))
    return (first, *others), observations


#: Options of `inference.phantom.make_phantom` by case.
PHANTOMS: dict[str, dict[str, Any]] = {
    "phantom": {},
    "phantom without nodules": {"nodules": ()},
    "phantom with slices of 8 mm": {"nodules": (), "shape": (40, 128, 128), "spacing_mm": (8.0, 2.7, 2.7)},
}


def analyse_phantoms(directory: Path, console: Console) -> Iterator[Case]:
    """Write phantoms and analyse them as the node does."""
    for number, (name, options) in enumerate(PHANTOMS.items()):
        folder = directory / f"phantom-{number}"
        write_phantom(make_phantom(number, **options), folder / "sources", patient_id=f"PHANTOM-{number}")
        yield analyse_scan(name, folder / "sources", folder, console)


def analyse_scan(name: str, sources: Path, directory: Path, console: Console) -> Case:
    """Analyse the images of a folder and write every form of the result.

    Raises
    ------
    RuntimeError
        The analysis failed, or the folder has no images.
    """
    case = Case(name, directory / "objects", sources)
    status = analyze_directory(
        sources, case.objects, profile=DEFAULT_PROFILE, device="cpu", console=console, forms=FORMS
    )
    if status not in {ANALYSED, NOT_SUITABLE}:
        raise RuntimeError(f"{name}: the analysis ended with status {status}")
    return case
