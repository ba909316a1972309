from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.pixels.utils import pack_bits
from pydicom.uid import UID, EnhancedSRStorage

from dicom_sr.part10 import save
from dicom_sr.report import ReportClass, build_not_analysed_report, build_report
from dicom_sr.seg import SegEncoding, build_seg
from dicom_sr.verify import VerificationError, reread, reread_not_analysed
from inference.errors import ReasonCode
from inference.types import Finding, Malignancy, Result, SemanticFeature, Volume
from tests.ct_factory import make_ct_series, make_enhanced_ct
from tests.finding_factory import (
    TRAINED,
    UNTRAINED,
    make_context,
    make_findings,
    make_result,
    make_volume,
    without_pixels,
)

CONTEXT = make_context(cards=(UNTRAINED, TRAINED))
SERIES = make_ct_series(16)
HEADERS = without_pixels(SERIES)
VOLUME = make_volume(SERIES)
Written = tuple[Volume, Result, Path | None, Path]


def write(
    directory: Path,
    findings: tuple[Finding, ...],
    volume: Volume = VOLUME,
    headers: list[Dataset] = HEADERS,
    **options: Any,
) -> Written:
    result = make_result(volume, findings, CONTEXT)
    seg, seg_path = None, None
    if findings:
        seg, seg_path = build_seg(volume, findings, headers, CONTEXT, **options), directory / "seg.dcm"
        save(seg, seg_path)
    save(build_report(volume, result, seg, headers, CONTEXT), directory / "sr.dcm")
    return volume, result, seg_path, directory / "sr.dcm"


@pytest.fixture
def written(tmp_path: Path) -> Written:
    first, second = make_findings(VOLUME, 2)
    rich = replace(first, malignancy=Malignancy(0.2, 0.3), features=(SemanticFeature("spiculation", 4, 0.7),))
    return write(tmp_path, (rich, second))


def change(path: Path | None, edit: Callable[[Dataset], None]) -> None:
    assert path is not None
    dataset = dcmread(path)
    edit(dataset)
    dataset.save_as(path)


def groups(report: Dataset) -> Any:
    return next(
        i for i in report.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == "126010"
    ).ContentSequence


def child(item: Dataset, value: str) -> Dataset:
    found: Dataset = next(i for i in item.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == value)
    return found


def repack(seg: Dataset, pixels: Any) -> None:
    seg.PixelData = pack_bits(np.ascontiguousarray(pixels))


def test_accepts_what_was_written(written: Written) -> None:
    reread(*written)


def test_accepts_all_frames_one_frame_and_none(tmp_path: Path) -> None:
    reread(*write(tmp_path, make_findings(VOLUME, 3), omit_empty_frames=False))
    (one,) = make_findings(VOLUME, 1)
    flat = replace(one, mask=one.mask[1:2], origin=(one.origin[0] + 1, *one.origin[1:]))
    reread(*write(tmp_path, (flat,)))
    reread(*write(tmp_path, ()))


def test_accepts_every_form_and_finds_a_wrong_label(tmp_path: Path) -> None:
    reread(*write(tmp_path, make_findings(VOLUME, 3), encoding=SegEncoding.LABELMAP, omit_empty_frames=False))
    written = write(tmp_path, make_findings(VOLUME, 3), encoding=SegEncoding.LABELMAP)
    reread(*written)
    change(written[2], relabelled)
    with pytest.raises(VerificationError, match=r"segment 2 on slice 9 differ.*segment 7 on slice 9 differ"):
        reread(*written)


def test_accepts_enhanced_sr(tmp_path: Path) -> None:
    volume, result, seg_path, sr_path = write(tmp_path, make_findings(VOLUME, 2))
    seg = build_seg(VOLUME, result.findings, HEADERS, CONTEXT)
    report = build_report(VOLUME, result, seg, HEADERS, CONTEXT, report_class=ReportClass.ENHANCED)
    assert report.SOPInstanceUID != dcmread(sr_path).SOPInstanceUID
    save(report, sr_path)
    assert dcmread(sr_path).SOPClassUID == EnhancedSRStorage
    reread(volume, result, seg_path, sr_path)


def relabelled(seg: Dataset) -> None:
    pixels = seg.pixel_array.copy()
    pixels[pixels == 2] = 7
    seg.PixelData = pixels.tobytes()


@pytest.mark.parametrize("matrix", [63, 61])
def test_accepts_frames_that_begin_inside_a_byte(tmp_path: Path, matrix: int) -> None:
    series = make_ct_series(16, matrix=matrix)
    volume = make_volume(series)
    reread(*write(tmp_path, make_findings(volume, 3), volume, without_pixels(series)))


def test_accepts_enhanced_ct(tmp_path: Path) -> None:
    enhanced = make_enhanced_ct(SERIES)
    volume = make_volume([enhanced])
    reread(*write(tmp_path, make_findings(volume, 2), volume, without_pixels([enhanced])))


def test_accepts_small_errors_of_the_scanner_in_the_positions(tmp_path: Path) -> None:
    series = make_ct_series(16, jitter_mm=0.1)
    volume = make_volume(series)
    reread(*write(tmp_path, make_findings(volume, 2), volume, without_pixels(series)))


def mirrored(seg: Dataset) -> None:
    repack(seg, seg.pixel_array[:, :, ::-1])


def one_voxel_less(seg: Dataset) -> None:
    pixels = seg.pixel_array.copy()
    z, y, x = np.argwhere(pixels)[0]
    pixels[z, y, x] = 0
    repack(seg, pixels)


def swapped_frames(seg: Dataset) -> None:
    first, second = seg.PerFrameFunctionalGroupsSequence[:2]
    first.PlanePositionSequence, second.PlanePositionSequence = (
        second.PlanePositionSequence,
        first.PlanePositionSequence,
    )


def moved(seg: Dataset) -> None:
    for group in seg.PerFrameFunctionalGroupsSequence:
        x, y, z = group.PlanePositionSequence[0].ImagePositionPatient
        group.PlanePositionSequence[0].ImagePositionPatient = [x + 5, y, z]


def outside(seg: Dataset) -> None:
    x, y, z = seg.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient
    seg.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient = [x, y, z + 250]


def turned(seg: Dataset) -> None:
    shared = seg.SharedFunctionalGroupsSequence[0]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]


def wrong_spacing(seg: Dataset) -> None:
    seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [5.1, 5.1]


def wrong_segment(seg: Dataset) -> None:
    for group in seg.PerFrameFunctionalGroupsSequence:
        item = group.SegmentIdentificationSequence[0]
        item.ReferencedSegmentNumber = 3 - item.ReferencedSegmentNumber


def wrong_source(seg: Dataset) -> None:
    item = seg.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    item.ReferencedSOPInstanceUID = HEADERS[0].SOPInstanceUID


def too_few_pixels(seg: Dataset) -> None:
    seg.PixelData = seg.PixelData[: len(seg.PixelData) // 2]


def missing_frame(seg: Dataset) -> None:
    repack(seg, seg.pixel_array[1:])
    seg.PerFrameFunctionalGroupsSequence = seg.PerFrameFunctionalGroupsSequence[1:]
    seg.NumberOfFrames -= 1


def swapped_tracking(seg: Dataset) -> None:
    a, b = seg.SegmentSequence
    a.TrackingUID, b.TrackingUID = b.TrackingUID, a.TrackingUID


def other_region(seg: Dataset) -> None:
    seg.SegmentSequence[0].AnatomicRegionSequence[0].CodeValue = "90572001"


def colourless(seg: Dataset) -> None:
    del seg.SegmentSequence[1].RecommendedDisplayCIELabValue


def other_frame_of_reference(seg: Dataset) -> None:
    seg.FrameOfReferenceUID = "1.2.3"


def other_series(seg: Dataset) -> None:
    seg.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"


def other_algorithm(seg: Dataset) -> None:
    seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion = "2"


def no_device_uid(dataset: Dataset) -> None:
    del dataset.ContributingEquipmentSequence[-1].DeviceUID


def no_equipment(dataset: Dataset) -> None:
    del dataset.ContributingEquipmentSequence


def bad_value(seg: Dataset) -> None:
    seg["ContentLabel"]._value = "lower case"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (mirrored, "differ from the finding's mask"),
        (one_voxel_less, "differ from the finding's mask"),
        (swapped_frames, "differ from the finding's mask|another source image"),
        (moved, "differ from the finding's mask|grid"),
        (outside, "outside the series"),
        (turned, "grid of the series"),
        (wrong_spacing, "grid of the series"),
        (wrong_segment, "differ from the finding's mask"),
        (wrong_source, "names another source image"),
        (missing_frame, "has no frame on slice"),
        (too_few_pixels, "fewer pixels than frames"),
        (swapped_tracking, "aren't the findings"),
        (other_region, "lies elsewhere than Nodule 1"),
        (colourless, "has no colour"),
        (other_frame_of_reference, "frame of reference"),
        (other_series, "refers to another series"),
        (other_algorithm, "names another algorithm"),
        (no_device_uid, "has no DeviceUID"),
        (no_equipment, "no Contributing Equipment"),
        (bad_value, "ContentLabel"),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")  # bad_value is read back
def test_finds_a_wrong_seg(written: Written, edit: Callable[[Dataset], None], message: str) -> None:
    change(written[2], edit)
    with pytest.raises(VerificationError, match=message):
        reread(*written)


def no_point_group(report: Dataset) -> None:
    del groups(report)[1]


def doubled_group(report: Dataset) -> None:
    groups(report).append(groups(report)[0])


def foreign_group(report: Dataset) -> None:
    child(groups(report)[0], "112040").UID = "1.2.3"


def no_measurements(report: Dataset) -> None:
    report.ContentSequence = [
        i for i in report.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue != "126010"
    ]


def other_name(report: Dataset) -> None:
    child(groups(report)[0], "112039").TextValue = "Nodule 9"


def other_segment(report: Dataset) -> None:
    child(groups(report)[0], "121191").ReferencedSOPSequence[0].ReferencedSegmentNumber = 2


def other_number(report: Dataset) -> None:
    child(groups(report)[0], "103339001").MeasuredValueSequence[0].NumericValue = "80"


def other_unit(report: Dataset) -> None:
    value = child(groups(report)[0], "103339001").MeasuredValueSequence[0]
    value.MeasurementUnitsCodeSequence[0].CodeValue = "cm"


def invented_malignancy(report: Dataset) -> None:
    first, _, second, _ = groups(report)
    second.ContentSequence.append(child(first, "111047"))


def other_feature(report: Dataset) -> None:
    child(groups(report)[0], "C28749").ConceptCodeSequence[0].CodeValue = "705"


def point_elsewhere(report: Dataset) -> None:
    child(groups(report)[1], "111030").GraphicData = [1.5, 1.5]


def point_on_another_slice(report: Dataset) -> None:
    source = child(groups(report)[1], "111030").ContentSequence[0].ReferencedSOPSequence[0]
    source.ReferencedSOPInstanceUID = HEADERS[0].SOPInstanceUID


def other_finding(report: Dataset) -> None:
    child(groups(report)[1], "121071").ConceptCodeSequence[0].CodeValue = "4147007"


def other_side(report: Dataset) -> None:
    child(child(groups(report)[0], "363698007"), "272741003").ConceptCodeSequence[0].CodeValue = "7771000"


def other_certainty(report: Dataset) -> None:
    certainty = child(child(groups(report)[0], "C28749"), "111011")
    certainty.MeasuredValueSequence[0].NumericValue = 71


def foreign_evaluation(report: Dataset) -> None:
    item = deepcopy(child(groups(report)[0], "C28749"))
    item.ConceptNameCodeSequence[0].CodeValue = "C62175"
    groups(report)[0].ContentSequence.append(item)


def no_key_image(report: Dataset) -> None:
    source = child(groups(report)[0], "121200").ReferencedSOPSequence[0]
    source.ReferencedSOPInstanceUID = HEADERS[0].SOPInstanceUID


def study_level(report: Dataset) -> Dataset:
    return child(report, "C0034375")


def other_digest(report: Dataset) -> None:
    child(study_level(report), "NN-12").ConceptNameCodeSequence[0].CodeValue = "NN-99"


def other_weights(report: Dataset) -> None:
    child(study_level(report), "NN-11").TextValue = "classifier version 1: cd"


def another_outcome(report: Dataset) -> None:
    container = study_level(report)
    container.ContentSequence.append(deepcopy(child(container, "111017")))


def no_findings_claimed(report: Dataset) -> None:
    outcome = child(child(report, "C0034375"), "111017")
    outcome.ConceptCodeSequence[0].CodeValue = "111241"


def no_conclusion(report: Dataset) -> None:
    report.ContentSequence = report.ContentSequence[:-1]


def evidence_missing(report: Dataset) -> None:
    series = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    series.ReferencedSOPSequence = series.ReferencedSOPSequence[1:]


def other_observer(report: Dataset) -> None:
    child(report, "121012").UID = "1.2.3"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (no_point_group, "needs one TID 1411 and one TID 1410 group"),
        (doubled_group, "needs one TID 1411 and one TID 1410 group"),
        (foreign_group, "belongs to no finding"),
        (no_measurements, "needs one TID 1411"),
        (other_name, "another tracking identifier"),
        (other_segment, "doesn't refer to segment 1"),
        (other_number, "Long Axis isn't 8.0 mm"),
        (other_unit, "Long Axis isn't 8.0 mm"),
        (invented_malignancy, "number 111047 isn't the finding's"),
        (other_feature, "Spiculation isn't 4 out of 5"),
        (point_elsewhere, "isn't in its mask"),
        (point_on_another_slice, "another image than its key slice"),
        (no_findings_claimed, "doesn't say"),
        (other_finding, "another finding"),
        (other_side, "another site"),
        (other_certainty, "certainty of Spiculation isn't 70.0 %"),
        (foreign_evaluation, "evaluation C62175 isn't the finding's"),
        (no_key_image, "no key image"),
        (other_digest, "no Input digest"),
        (other_weights, "as its Model weights SHA-256"),
        (another_outcome, "a coded evaluation that isn't the result's"),
        (no_conclusion, "no conclusion"),
        (evidence_missing, "isn't exactly the source images"),
        (other_observer, "121012 differs"),
        (no_device_uid, "has no DeviceUID"),
    ],
)
def test_finds_a_wrong_report(written: Written, edit: Callable[[Dataset], None], message: str) -> None:
    change(written[3], edit)
    with pytest.raises(VerificationError, match=message):
        reread(*written)


def test_finds_files_of_another_result(written: Written, tmp_path: Path) -> None:
    volume, result, seg_path, sr_path = written
    other = replace(result, findings=result.findings[:1])
    with pytest.raises(VerificationError, match="aren't the findings"):
        reread(volume, other, seg_path, sr_path)
    with pytest.raises(VerificationError, match="only to one"):
        reread(volume, result, None, sr_path)
    with pytest.raises(VerificationError, match=r"seg.dcm is Segmentation Storage"):
        reread(volume, replace(result, findings=()), None, tmp_path / "seg.dcm")


def test_finds_damaged_files(written: Written) -> None:
    volume, result, seg_path, sr_path = written
    sr_path.write_bytes(sr_path.read_bytes()[:3000])
    with pytest.raises(VerificationError, match=r"sr.dcm can't be read back"):
        reread(volume, result, seg_path, sr_path)
    sr_path.write_bytes(b"not DICOM")
    with pytest.raises(VerificationError, match="can't be read back"):
        reread(volume, result, seg_path, sr_path)
    sr_path.unlink()
    with pytest.raises(VerificationError, match="can't be read back"):
        reread(volume, result, seg_path, sr_path)


def test_not_analysed(tmp_path: Path) -> None:
    path = tmp_path / "sr.dcm"
    save(build_not_analysed_report(HEADERS, "GAP", "A gap.", CONTEXT), path)
    reread_not_analysed(path, VOLUME.series_uid, "GAP")
    with pytest.raises(VerificationError, match="reason TILT"):
        reread_not_analysed(path, VOLUME.series_uid, "TILT")
    with pytest.raises(VerificationError, match="evidence"):
        reread_not_analysed(path, "1.2.3", "GAP")
    save(build_report(VOLUME, make_result(VOLUME, (), CONTEXT), None, HEADERS, CONTEXT), path)
    with pytest.raises(VerificationError, match="nothing was analysed"):
        reread_not_analysed(path, VOLUME.series_uid, "GAP")


def test_differences_are_all_named_and_hold_no_patient_data(written: Written) -> None:
    change(written[3], no_conclusion)
    change(written[3], no_findings_claimed)
    with pytest.raises(VerificationError) as caught:
        reread(*written)
    assert len(caught.value.differences) == 2
    assert "Synthetic" not in str(caught.value)


def with_odd_uids() -> list[Dataset]:
    """UIDs with a leading zero in a component: against PS3.5 9.1, and sent by old devices all the same."""
    series = make_ct_series(16)
    for number, ds in enumerate(series):
        ds.StudyInstanceUID, ds.SeriesInstanceUID = UID("1.2.840.0113.01"), UID("1.2.840.0113.02.007")
        ds.FrameOfReferenceUID = UID("1.2.840.0113.03")
        ds.SOPInstanceUID = UID(f"1.2.840.0113.04.{number:03d}")
    return series


@pytest.mark.filterwarnings("ignore:.*Invalid value for VR UI:UserWarning")
def test_uids_of_the_source_are_the_affair_of_the_source(tmp_path: Path) -> None:
    series = with_odd_uids()
    volume, headers = make_volume(series), without_pixels(series)
    written = write(tmp_path, make_findings(volume, 1), volume, headers)
    reread(*written)
    report = build_not_analysed_report(headers, ReasonCode.GAP, "A slice is missing.", CONTEXT)
    save(report, tmp_path / "not.dcm")
    reread_not_analysed(tmp_path / "not.dcm", "1.2.840.0113.02.007", ReasonCode.GAP)

    change(written[3], lambda ds: setattr(ds, "SeriesInstanceUID", "1.2.03"))
    with pytest.raises(VerificationError, match="SeriesInstanceUID"):
        reread(*written)
