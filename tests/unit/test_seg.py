from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from io import BytesIO

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage

from dicom_sr.header import LABEL_MAP_STORAGE, nodule_segments
from dicom_sr.part10 import encode
from dicom_sr.seg import SegEncoding, build_seg
from inference.types import Finding, Laterality, Site, Volume
from tests.ct_factory import make_ct_series, make_enhanced_ct
from tests.finding_factory import (
    TRAINED,
    UNTRAINED,
    make_context,
    make_finding,
    make_findings,
    make_volume,
    without_pixels,
)

CONTEXT = make_context()


@pytest.fixture(scope="module")
def series() -> list[Dataset]:
    return make_ct_series(16, spacing_mm=2.5, matrix=64)


@pytest.fixture(scope="module")
def volume(series: list[Dataset]) -> Volume:
    return make_volume(series)


@pytest.fixture(scope="module")
def headers(series: list[Dataset]) -> list[Dataset]:
    return without_pixels(series)


@pytest.fixture(scope="module")
def seg(volume: Volume, headers: list[Dataset]) -> Dataset:
    return build_seg(volume, make_findings(volume, 3), headers, CONTEXT)


def voxels_in_space(seg: Dataset, segment: int) -> set[tuple[float, float, float]]:
    """LPS of every voxel of a segment, from the object's own attributes alone."""
    out: set[tuple[float, float, float]] = set()
    shared = seg.SharedFunctionalGroupsSequence[0]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float)
    rows, columns = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
    pixels = seg.pixel_array.reshape(seg.NumberOfFrames, seg.Rows, seg.Columns)
    for group, plane in zip(seg.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        item = group if "SegmentIdentificationSequence" in group else shared
        if item.SegmentIdentificationSequence[0].ReferencedSegmentNumber != segment:
            continue
        corner = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
        for y, x in np.argwhere(plane):
            point = corner + cosines[:3] * columns * x + cosines[3:] * rows * y
            out.add((round(float(point[0]), 2), round(float(point[1]), 2), round(float(point[2]), 2)))
    return out


def mask_in_space(volume: Volume, finding: Finding) -> set[tuple[float, float, float]]:
    index: NDArray[np.float64] = np.argwhere(finding.mask) + np.array(finding.origin, dtype=float)
    points = volume.index_to_lps(index)
    return {(round(float(x), 2), round(float(y), 2), round(float(z), 2)) for x, y, z in points}


def read_back(seg: Dataset) -> Dataset:
    return dcmread(BytesIO(encode(seg)))


@pytest.mark.parametrize(
    "orientation",
    [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, -1, 0), (0, 1, 0, 1, 0, 0), (0.8, 0.6, 0, -0.6, 0.8, 0)],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_every_voxel_lies_where_the_mask_says(orientation: tuple[float, ...], reverse: bool) -> None:
    series = make_ct_series(16, orientation=orientation, pixel_spacing_mm=(5.0, 4.0))
    series = series[::-1] if reverse else series
    volume = make_volume(series)
    findings = make_findings(volume, 2)
    seg = read_back(build_seg(volume, findings, without_pixels(series), CONTEXT))
    for number, finding in enumerate(findings, start=1):
        assert voxels_in_space(seg, number) == mask_in_space(volume, finding)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shared_measures", [True, False])
def test_enhanced_ct(reverse: bool, shared_measures: bool) -> None:
    enhanced = make_enhanced_ct(make_ct_series(16))
    if not shared_measures:
        groups = enhanced.SharedFunctionalGroupsSequence[0]
        for group in enhanced.PerFrameFunctionalGroupsSequence:
            group.PixelMeasuresSequence = groups.PixelMeasuresSequence
            group.PlaneOrientationSequence = groups.PlaneOrientationSequence
        del groups.PixelMeasuresSequence, groups.PlaneOrientationSequence
    volume = make_volume([enhanced])
    if reverse:
        affine = volume.affine_index_to_lps.copy()
        affine[:3, 3] += 15 * affine[:3, 0]
        affine[:3, 0] *= -1
        volume = replace(
            volume, array=volume.array[::-1], affine_index_to_lps=affine, frames=volume.frames[::-1]
        )
    finding = make_finding(volume, (3, 10, 10))
    seg = read_back(build_seg(volume, [finding], without_pixels([enhanced]), CONTEXT))
    assert voxels_in_space(seg, 1) == mask_in_space(volume, finding)
    assert [i.ReferencedSOPInstanceUID for i in seg.SourceImageSequence] == [enhanced.SOPInstanceUID]
    for group in seg.PerFrameFunctionalGroupsSequence:
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        frame = enhanced.PerFrameFunctionalGroupsSequence[source.ReferencedFrameNumber - 1]
        position = group.PlanePositionSequence[0].ImagePositionPatient
        assert source.ReferencedSOPClassUID == enhanced.SOPClassUID
        assert position == frame.PlanePositionSequence[0].ImagePositionPatient


def test_the_same_input_gives_the_same_bytes(volume: Volume, headers: list[Dataset]) -> None:
    findings = make_findings(volume, 2)
    first = encode(build_seg(volume, findings, headers, CONTEXT))
    assert encode(build_seg(volume, findings, headers, CONTEXT)) == first
    other = make_context(input_digest="e2" * 32)
    assert build_seg(volume, findings, headers, other).SOPInstanceUID.encode() not in first


def test_form_and_identity(seg: Dataset, volume: Volume, series: list[Dataset]) -> None:
    assert seg.SOPClassUID == SegmentationStorage
    assert (seg.SegmentationType, seg.SegmentsOverlap, seg.BitsAllocated) == ("BINARY", "NO", 1)
    assert seg.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert (seg.StudyInstanceUID, seg.FrameOfReferenceUID) == (
        volume.study_uid,
        volume.frame_of_reference_uid,
    )
    assert seg.PatientName == series[0].PatientName
    assert (seg.PatientID, seg.AccessionNumber, seg.StudyDescription) == (
        "SYNTHETIC-1",
        "ACC-a",
        "SYNTHETIC CHEST PHANTOM",
    )
    assert (seg.ContentDate, seg.SeriesTime, seg.InstanceCreationTime) == ("20260102", "030405", "030405")
    assert (seg.SeriesNumber, seg.Modality, seg.ContentQualification) == (1001, "SEG", "RESEARCH")
    assert "research use only" in seg.SeriesDescription
    assert seg.SeriesInstanceUID != volume.series_uid


def test_nothing_is_random_or_dated_by_the_clock(seg: Dataset) -> None:
    uids = {e.value for e in seg.iterall() if e.VR == "UI" and str(e.value).startswith("1.2.826.0.1.3680043")}
    assert uids == set()
    dates = {str(e.value) for e in seg.iterall() if e.VR in {"DA", "DT"} and e.value}
    assert dates == {"20260102", "20260102030405+0000", "20200101", "19500101"}


def test_segments(seg: Dataset, volume: Volume) -> None:
    assert [s.SegmentNumber for s in seg.SegmentSequence] == [1, 2, 3]
    for segment, finding in zip(seg.SegmentSequence, make_findings(volume, 3), strict=True):
        assert (segment.TrackingID, segment.TrackingUID) == (finding.tracking_id, finding.tracking_uid)
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
        assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "27925004"
        assert len(segment.RecommendedDisplayCIELabValue) == 3
    regions = [s.AnatomicRegionSequence[0] for s in seg.SegmentSequence]
    assert [r.CodeValue for r in regions] == ["45653009", "90572001", "72481006"]
    sides = [[m.CodeValue for m in r.get("AnatomicRegionModifierSequence", [])] for r in regions]
    assert sides == [["24028007"], ["7771000"], []]


@pytest.mark.parametrize(("cards", "family"), [((UNTRAINED,), "123106"), ((UNTRAINED, TRAINED), "123110")])
def test_the_algorithm_is_named_the_same_everywhere(
    volume: Volume, headers: list[Dataset], cards: tuple[object, ...], family: str
) -> None:
    context = make_context(cards=cards)
    seg = build_seg(volume, make_findings(volume, 1), headers, context)
    algorithm = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    purposes = [e.PurposeOfReferenceCodeSequence[0].CodeValue for e in seg.ContributingEquipmentSequence]
    assert purposes == ["109101", *["109102"] * (1 + len(cards))]
    whole = seg.ContributingEquipmentSequence[1]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion, algorithm.AlgorithmSource) == (
        whole.ManufacturerModelName,
        whole.SoftwareVersions,
        whole.Manufacturer,
    )
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeValue == family
    assert whole.DeviceUID == context.device_uid
    assert len({e.DeviceUID for e in seg.ContributingEquipmentSequence[1:]}) == 1 + len(cards)


def test_the_device_uid_changes_with_every_version() -> None:
    uids = {
        context.device_uid
        for context in (
            CONTEXT,
            make_context(pipeline_version="2"),
            make_context(software_version="2"),
            make_context(cards=(replace(UNTRAINED, version="2"),)),
            make_context(cards=(replace(UNTRAINED, weights_sha256="cd" * 32),)),
        )
    }
    assert len(uids) == 5
    assert make_context(institution="Elsewhere").device_uid == CONTEXT.device_uid


def test_all_source_images_are_referenced(seg: Dataset, series: list[Dataset], volume: Volume) -> None:
    (referenced,) = seg.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == volume.series_uid
    uids = [i.ReferencedSOPInstanceUID for i in referenced.ReferencedInstanceSequence]
    assert uids == [s.SOPInstanceUID for s in series]


def test_frames_without_voxels_are_left_out_or_kept(volume: Volume, headers: list[Dataset]) -> None:
    findings = make_findings(volume, 2)
    few = build_seg(volume, findings, headers, CONTEXT)
    every = build_seg(volume, findings, headers, CONTEXT, omit_empty_frames=False)
    assert (few.NumberOfFrames, every.NumberOfFrames) == (6, 32)
    spacing = [s.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0] for s in (few, every)]
    assert [float(s.SpacingBetweenSlices) for s in spacing] == [2.5, 2.5]
    for number, finding in enumerate(findings, start=1):
        assert voxels_in_space(every, number) == mask_in_space(volume, finding)


def test_a_label_map_holds_the_same_voxels(volume: Volume, headers: list[Dataset]) -> None:
    findings = make_findings(volume, 3)
    seg = read_back(build_seg(volume, findings, headers, CONTEXT, encoding=SegEncoding.LABELMAP))
    assert (seg.SOPClassUID, seg.SegmentationType, seg.BitsAllocated) == (LABEL_MAP_STORAGE, "LABELMAP", 8)
    assert [s.SegmentNumber for s in seg.SegmentSequence] == [0, 1, 2, 3]
    assert [s.TrackingUID for s in nodule_segments(seg)] == [f.tracking_uid for f in findings]
    assert seg.SpecificCharacterSet == "ISO_IR 192"
    voxels = hd.seg.Segmentation.from_dataset(seg).get_volume(combine_segments=True)
    index_to_lps, array = voxels.affine, voxels.array
    for number, finding in enumerate(findings, start=1):
        points = np.argwhere(array == number) @ index_to_lps[:3, :3].T + index_to_lps[:3, 3]
        found = {(round(float(x), 2), round(float(y), 2), round(float(z), 2)) for x, y, z in points}
        assert found == mask_in_space(volume, finding)


def test_each_form_is_an_object_of_its_own_in_a_series_of_its_own(
    volume: Volume, headers: list[Dataset]
) -> None:
    findings = make_findings(volume, 1)
    forms = [
        build_seg(volume, findings, headers, CONTEXT, encoding=encoding, omit_empty_frames=omit)
        for encoding in SegEncoding
        for omit in (True, False)
    ]
    assert len({f.SOPInstanceUID for f in forms}) == len({f.SeriesInstanceUID for f in forms}) == 4
    assert forms[0].SOPInstanceUID == CONTEXT.uid(volume.series_uid, "seg")
    assert [f.NumberOfFrames for f in forms] == [3, 16, 3, 16]


def test_spacing_is_that_of_the_series_where_findings_lie_apart(
    volume: Volume, headers: list[Dataset]
) -> None:
    thin = make_finding(volume).mask[1:2]
    near = make_finding(volume, (2, 10, 10), mask=thin, key_slice=2)
    far = make_finding(volume, (12, 10, 10), name="Nodule 2", mask=thin, key_slice=12)
    seg = build_seg(volume, [near, far], headers, CONTEXT)
    assert float(seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices) == 2.5


def test_one_slice(volume: Volume, headers: list[Dataset]) -> None:
    finding = make_finding(volume)
    flat = replace(finding, mask=finding.mask[1:2], origin=(9, 30, 20))
    seg = read_back(build_seg(volume, [flat], headers, CONTEXT))
    assert seg.NumberOfFrames == 1
    assert voxels_in_space(seg, 1) == mask_in_space(volume, flat)


def test_highdicom_reads_it_back(seg: Dataset, volume: Volume) -> None:
    again = hd.seg.Segmentation.from_dataset(read_back(seg))
    findings = make_findings(volume, 3)
    assert {uid for _, uid in again.get_tracking_ids()} == {f.tracking_uid for f in findings}
    voxels = again.get_volume(combine_segments=True).array
    assert np.bincount(voxels.ravel())[1:].tolist() == [int(f.mask.sum()) for f in findings]


def test_missing_and_foreign_patient_data_is_taken_as_it_is(volume: Volume, headers: list[Dataset]) -> None:
    first = deepcopy(headers[0])
    for keyword in ("PatientID", "PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber"):
        del first[keyword]
    first.SpecificCharacterSet = "ISO_IR 100"
    first.PatientName = "Müller^Jörg"
    seg = read_back(build_seg(volume, make_findings(volume, 1), [first, *headers[1:]], CONTEXT))
    assert str(seg.PatientName) == "Müller^Jörg"
    assert seg.SpecificCharacterSet == "ISO_IR 100"
    assert [seg[k].is_empty for k in ("PatientID", "PatientBirthDate", "PatientSex", "StudyID")] == [True] * 4


def test_nonsense_in_patient_data_does_not_cost_the_result(volume: Volume, headers: list[Dataset]) -> None:
    first = deepcopy(headers[0])
    first["PatientSex"]._value = "UNKNOWN"
    first["PatientBirthDate"]._value = "1950"
    seg = build_seg(volume, make_findings(volume, 1), [first, *headers[1:]], CONTEXT)
    assert (seg.PatientSex, seg.PatientBirthDate) == ("", "")


def test_refuses_no_findings(volume: Volume, headers: list[Dataset]) -> None:
    with pytest.raises(ValueError, match="empty SEG"):
        build_seg(volume, [], headers, CONTEXT)


def test_refuses_bad_masks(volume: Volume, headers: list[Dataset]) -> None:
    good = make_finding(volume)
    cases = {
        "overlaps": [good, make_finding(volume, (8, 31, 21), name="Nodule 2")],
        "is empty": [replace(good, mask=np.zeros((1, 2, 2), dtype=bool))],
        "outside": [make_finding(volume, (14, 30, 20))],
        "same tracking UID": [good, replace(make_finding(volume, (8, 10, 10)), tracking_id="other")],
    }
    for message, findings in cases.items():
        with pytest.raises(ValueError, match=message):
            build_seg(volume, findings, headers, CONTEXT)


def test_touching_boxes_may_interlock(volume: Volume, headers: list[Dataset]) -> None:
    # The bounding boxes share voxels, the masks don't.
    first = make_finding(volume, mask=np.array([[[1, 0], [0, 0]]], dtype=bool), key_slice=8)
    second = replace(first, tracking_uid="2.25.1", tracking_id="n2", mask=~first.mask)
    seg = read_back(build_seg(volume, [first, second], headers, CONTEXT))
    assert len(voxels_in_space(seg, 1)) == 1
    assert len(voxels_in_space(seg, 2)) == 3


def test_refuses_headers_of_another_series(volume: Volume, headers: list[Dataset]) -> None:
    findings = make_findings(volume, 1)
    with pytest.raises(ValueError, match="15 headers for 16 slices"):
        build_seg(volume, findings, headers[1:], CONTEXT)
    with pytest.raises(ValueError, match="isn't the image of slice 0"):
        build_seg(volume, findings, headers[::-1], CONTEXT)
    affine = volume.affine_index_to_lps.copy()
    affine[0, 3] += 5
    with pytest.raises(ValueError, match="lies elsewhere"):
        build_seg(replace(volume, affine_index_to_lps=affine), findings, headers, CONTEXT)
    mirrored = volume.affine_index_to_lps.copy()
    mirrored[:3, 2] *= -1
    with pytest.raises(ValueError, match="oriented otherwise"):
        build_seg(replace(volume, affine_index_to_lps=mirrored), findings, headers, CONTEXT)


def test_unknown_side(volume: Volume, headers: list[Dataset]) -> None:
    seg = build_seg(volume, [make_finding(volume, site=Site())], headers, CONTEXT)
    region = seg.SegmentSequence[0].AnatomicRegionSequence[0]
    assert (region.CodeValue, "AnatomicRegionModifierSequence" in region) == ("39607008", False)
    left = build_seg(volume, [make_finding(volume, site=Site(Laterality.LEFT))], headers, CONTEXT)
    modifier = left.SegmentSequence[0].AnatomicRegionSequence[0].AnatomicRegionModifierSequence[0]
    assert modifier.CodeMeaning == "Left"
