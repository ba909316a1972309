"""Which series is analysed, and the reason for every other one."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    MPEG2MPML,
    ComprehensiveSRStorage,
    JPEGBaseline8Bit,
    KeyObjectSelectionDocumentStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from inference.errors import ReasonCode
from inference.select import SeriesVerdict, judge_series, judge_study, kernel_softness
from tests.ct_factory import CORONAL, make_ct_series, make_enhanced_ct

STUDY = "2.25.4711"


def make(**change: Any) -> list[Dataset]:
    return make_ct_series(**{"matrix": 4, **change})


def series(number: int, **change: Any) -> list[Dataset]:
    return make(study_uid=STUDY, series_uid=f"2.25.{number}", series_number=number, **change)


def judge(*groups: list[Dataset]) -> tuple[SeriesVerdict, ...]:
    return judge_study({str(group[0].SeriesInstanceUID): group for group in groups})


def test_plain_chest_ct_is_suitable_and_says_what_it_is() -> None:
    headers = make()
    verdict = judge_series(headers)
    assert (verdict.suitable, verdict.code, verdict.selected) == (True, None, True)
    assert verdict.series_uid == headers[0].SeriesInstanceUID
    assert verdict.sentence == "Suitable: 64 slices, 2.50 mm, 160 mm covered, kernel STANDARD."
    assert verdict.facts == {
        "n_slices": 64,
        "thickness_mm": 2.5,
        "spacing_mm": [2.5, 5.0, 5.0],
        "coverage_mm": 160.0,
        "kernel": "STANDARD",
        "body_part": "CHEST",
        "image_type": "ORIGINAL\\PRIMARY\\AXIAL",
        "matrix": [4, 4],
        "lossy": False,
    }


@pytest.mark.parametrize("legacy", [False, True])
def test_enhanced_ct_is_accepted(legacy: bool) -> None:
    verdict = judge_series([make_enhanced_ct(make(), legacy=legacy)])
    assert (verdict.suitable, verdict.facts["n_slices"]) == (True, 64)


@pytest.mark.parametrize(
    ("code", "change"),
    [
        (ReasonCode.NOT_CT, {"modality": "MR", "sop_class_uid": MRImageStorage}),
        (ReasonCode.NOT_CT, {"modality": "PT", "sop_class_uid": PositronEmissionTomographyImageStorage}),
        (ReasonCode.NOT_CT, {"modality": "CT", "sop_class_uid": MRImageStorage}),
        (ReasonCode.NOT_CT, {"modality": "PT"}),
        (ReasonCode.NOT_CT, {"modality": "OT", "sop_class_uid": SecondaryCaptureImageStorage}),
        (ReasonCode.NOT_CT, {"n_slices": 3, "modality": "MR", "sop_class_uid": MRImageStorage}),
        (ReasonCode.DERIVED, {"sop_class_uid": SecondaryCaptureImageStorage}),
        (ReasonCode.NOT_AN_IMAGE, {"modality": "SEG", "sop_class_uid": SegmentationStorage}),
        (ReasonCode.NOT_AN_IMAGE, {"modality": "RTSTRUCT", "sop_class_uid": RTStructureSetStorage}),
        (ReasonCode.LOCALIZER, {"image_type": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
        (ReasonCode.LOCALIZER, {"image_type": ["ORIGINAL", "PRIMARY", "LOCALIZER", "CT_SOM5 TOP"]}),
        (
            ReasonCode.LOCALIZER,
            {"n_slices": 1, "orientation": CORONAL, "image_type": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        ),
        (ReasonCode.DERIVED, {"image_type": ["DERIVED", "SECONDARY", "AXIAL"]}),
        (ReasonCode.DERIVED, {"image_type": ["ORIGINAL", "SECONDARY", "AXIAL"]}),
        (ReasonCode.DERIVED, {"image_type": ["DERIVED", "PRIMARY", "MPR"]}),
        (ReasonCode.DERIVED, {"image_type": ["DERIVED", "PRIMARY", "AXIAL", "CT_SOM5 MPR"]}),
        (ReasonCode.DERIVED, {"image_type": ["DERIVED", "PRIMARY", "MIP"]}),
        (ReasonCode.DERIVED, {"image_type": ["DERIVED", "PRIMARY", "AXIAL", "MINIP"]}),
        (ReasonCode.DERIVED, {"image_type": ["DERIVED", "PRIMARY", "AXIAL", "AVERAGE"]}),
        (ReasonCode.DERIVED, {"image_type": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}),
        (ReasonCode.DERIVED, {"image_type": ["ORIGINAL", "PRIMARY", "OTHER", "DOSE_INFO"]}),
        (ReasonCode.DERIVED, {"image_type": ["DERIVED", "PRIMARY", "AXIAL", "VMI"]}),
        (ReasonCode.DERIVED, {"image_type": ["ORIGINAL", "PRIMARY", "AXIAL", "DE_MONO_70KEV"]}),
        (ReasonCode.NOT_CHEST, {"body_part": "HEAD"}),
        (ReasonCode.NOT_CHEST, {"body_part": "KNEE"}),
        (ReasonCode.NOT_CHEST, {"body_part": "CSPINE"}),
        (ReasonCode.NOT_AXIAL, {"orientation": CORONAL}),
        (ReasonCode.TOO_FEW_SLICES, {"n_slices": 5}),
        (ReasonCode.TOO_THICK, {"n_slices": 40, "spacing_mm": 8}),
        (ReasonCode.GAP, {"drop": [20]}),
        (ReasonCode.DUPLICATE, {"duplicates": [20]}),
        (ReasonCode.TILT, {"tilt_degrees": 10}),
    ],
)
def test_unsuitable_series_have_the_most_helpful_reason(code: ReasonCode, change: dict[str, Any]) -> None:
    headers = make(**change)
    verdict = judge_series(random.Random(1).sample(headers, len(headers)))
    assert (verdict.suitable, verdict.code, verdict.score) == (False, code, ()), verdict
    assert verdict.sentence.endswith(".")
    assert "SYNTHETIC" not in verdict.sentence


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS:UserWarning")
@pytest.mark.parametrize(
    "change",
    [
        {"image_type": None},
        {"image_type": ["ORIGINAL"]},
        {"image_type": ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"]},
        {"image_type": ["ORIGINAL", "PRIMARY", "AXIAL", "HELIX"]},
        {"image_type": ["DERIVED ", "PRIMARY", "AXIAL"]},  # made so by lossy compression
        {"body_part": None},
        {"body_part": ""},
        {"body_part": "THORAX"},
        {"body_part": "ABDOMEN^CHEST"},
        {"body_part": "HEADNECKCHEST"},
        {"body_part": "ABDOMEN"},
        {"body_part": "NECK"},
        {"body_part": "UNKNOWN7"},
        {"modality": ""},
        {"kernel": None},
    ],
)
def test_odd_but_sound_series_pass(change: dict[str, Any]) -> None:
    assert judge_series(make(**change)).code is None


@pytest.mark.parametrize("sop_class", [ComprehensiveSRStorage, KeyObjectSelectionDocumentStorage])
def test_documents_are_not_images(sop_class: str) -> None:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = sop_class, "2.25.9", "SR"
    assert judge_series([ds]).code == ReasonCode.NOT_AN_IMAGE


def test_allowed_image_type_is_accepted() -> None:
    headers = make(image_type=["DERIVED", "PRIMARY", "AXIAL", "VMI"])
    assert judge_series(headers, allowed_image_types=("vmi",)).suitable
    assert not judge_series(headers, allowed_image_types=("IODINE",)).suitable


def test_head_named_only_by_the_anatomic_region_of_enhanced_ct() -> None:
    enhanced = make_enhanced_ct(make())
    anatomy = enhanced.SharedFunctionalGroupsSequence[0].FrameAnatomySequence[0]
    anatomy.AnatomicRegionSequence[0].CodeMeaning = "Head"
    assert judge_series([enhanced]).code == ReasonCode.NOT_CHEST


def test_enhanced_frame_type_is_read() -> None:
    enhanced = make_enhanced_ct(make())
    enhanced.SharedFunctionalGroupsSequence[0].CTImageFrameTypeSequence[0].FrameType[2] = "PERFUSION"
    assert judge_series([enhanced]).code == ReasonCode.DERIVED


def test_syntax_that_can_not_be_decoded_is_known_before_selection() -> None:
    thin, thick = series(1, n_slices=160, spacing_mm=1), series(2)
    for header in thin:
        header.file_meta.TransferSyntaxUID = MPEG2MPML
    verdicts = judge(thin, thick)
    assert [(v.series_uid, v.code) for v in verdicts] == [("2.25.2", None), ("2.25.1", ReasonCode.DECODE)]
    for header in thick:
        header.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    assert judge_series(thick).code is None


def test_images_of_two_series_are_refused() -> None:
    assert judge_series(series(1)[:32] + series(2)[32:]).code == ReasonCode.MIXED_GEOMETRY


def test_colour_is_not_a_ct_slice() -> None:
    headers = make()
    headers[3].SamplesPerPixel = 3
    assert judge_series(headers).code == ReasonCode.DERIVED


def test_nothing_is_not_an_image() -> None:
    assert judge_series([]).code == ReasonCode.NOT_AN_IMAGE
    assert judge_study({}) == ()
    assert judge_study({"2.25.1": []})[0].code == ReasonCode.NOT_AN_IMAGE


READ = (
    *("SOPClassUID", "SOPInstanceUID", "Modality", "ImageType", "BodyPartExamined", "ConvolutionKernel"),
    *("NumberOfFrames", "Rows", "SamplesPerPixel", "SliceThickness", "GantryDetectorTilt", "PixelSpacing"),
    *("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID"),
    *("PatientID", "StudyInstanceUID", "SeriesInstanceUID"),
)
JUNK = st.one_of(
    st.none(), st.text(max_size=12), st.integers(-(2**15), 2**15), st.lists(st.text(max_size=5), max_size=7)
)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
@settings(deadline=None, max_examples=60)
@given(
    keyword=st.sampled_from(READ),
    junk=JUNK,
)
def test_junk_values_never_raise(keyword: str, junk: Any) -> None:
    headers = make(n_slices=12)
    try:
        setattr(headers[5], keyword, junk)
    except (AttributeError, OverflowError, TypeError, ValueError):
        return  # pydicom itself doesn't take this value
    verdict = judge_series(headers)
    assert verdict.code is not None
    assert len(judge_study({"a": headers, "b": make(n_slices=2)})) == 2


def test_junk_sequences_never_raise() -> None:
    enhanced = make_enhanced_ct(make())
    enhanced.PerFrameFunctionalGroupsSequence = DicomSequence([Dataset() for _ in range(64)])
    enhanced.SharedFunctionalGroupsSequence = DicomSequence()
    assert judge_series([enhanced]).code == ReasonCode.NO_GEOMETRY


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"spacing_mm": 1.25, "n_slices": 200}, {"spacing_mm": 2.5, "n_slices": 100}),
        ({"spacing_mm": 2.5, "n_slices": 100}, {"spacing_mm": 5, "n_slices": 80}),  # thin beats long
        ({"spacing_mm": 2.5, "n_slices": 100}, {"spacing_mm": 1, "n_slices": 155}),  # whole lungs first
        ({"spacing_mm": 2.5, "n_slices": 120}, {"spacing_mm": 2.5, "n_slices": 100}),
        ({"kernel": "B30f"}, {"kernel": "B70f"}),
        ({"kernel": "STANDARD"}, {"kernel": "LUNG"}),
        ({"kernel": "ODD"}, {"kernel": "BONE"}),
        ({"spacing_mm": 1.25, "n_slices": 200, "kernel": "B70f"}, {"n_slices": 100, "kernel": "B30f"}),
        ({}, {}),  # at last the smaller UID
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_preference(better: dict[str, Any], worse: dict[str, Any], swapped: bool) -> None:
    first, second = series(1, **better), series(2, **worse)
    verdicts = judge(*((second, first) if swapped else (first, second)))
    assert [v.series_uid for v in verdicts] == ["2.25.1", "2.25.2"]
    assert [v.code for v in verdicts] == [None, ReasonCode.NOT_SELECTED]
    assert [v.selected for v in verdicts] == [True, False]
    assert verdicts[1].suitable
    assert "series 2.25.1" in verdicts[1].sentence
    assert "mm covered" in verdicts[1].sentence


def test_every_other_series_has_its_own_reason_in_any_order() -> None:
    groups = [
        series(1, image_type=["ORIGINAL", "PRIMARY", "LOCALIZER"], n_slices=2),
        series(2, n_slices=80, spacing_mm=2),
        series(3, n_slices=40, spacing_mm=8),
        series(4, n_slices=160, spacing_mm=1),
        series(5, image_type=["DERIVED", "SECONDARY", "AXIAL", "MPR"]),
    ]
    expected = judge(*groups)
    assert [(v.series_uid[5:], v.code) for v in expected] == [
        ("4", None),
        ("2", ReasonCode.NOT_SELECTED),
        ("1", ReasonCode.LOCALIZER),
        ("3", ReasonCode.TOO_THICK),
        ("5", ReasonCode.DERIVED),
    ]
    dice = random.Random(4)
    for _ in range(5):
        assert judge(*[dice.sample(g, len(g)) for g in dice.sample(groups, 5)]) == expected


def test_study_without_a_suitable_series_chooses_none() -> None:
    verdicts = judge(series(1, n_slices=5), series(2, drop=[9]))
    assert [v.code for v in verdicts] == [ReasonCode.TOO_FEW_SLICES, ReasonCode.GAP]


def test_two_patients_under_one_study_are_not_analysed() -> None:
    verdicts = judge(series(1), series(2, patient_id="SYNTHETIC-2"), series(3, n_slices=5))
    assert [v.code for v in verdicts] == [
        ReasonCode.MIXED_PATIENT,
        ReasonCode.MIXED_PATIENT,
        ReasonCode.TOO_FEW_SLICES,
    ]


@pytest.mark.parametrize(
    ("kernel", "softness"),
    [
        ("B30f", 2),
        ("B70f", 0),
        ("Br40d", 2),
        ("Bl57d", 0),
        ("I50f", 0),
        ("FC08", 2),
        ("FC51", 0),
        ("STANDARD", 2),
        ("SOFT", 2),
        ("LUNG", 0),
        ("BONEPLUS", 0),
        ("C", 2),
        ("YA", 0),
        ("", 1),
        ("DETAIL", 1),
    ],
)
def test_kernel_softness(kernel: str, softness: int) -> None:
    assert kernel_softness(kernel) == softness


def test_selection_stays_light() -> None:
    code = (
        "import inference.select, inference.load, sys; sys.exit(bool({'torch', 'scipy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
