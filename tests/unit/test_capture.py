from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from dicom_sr.capture import (
    Capture,
    build_captures,
    capture_result,
    reread_captures,
    source_frames,
)
from dicom_sr.context import ResultContext
from dicom_sr.keyimages import KeyImage, render_key_images
from dicom_sr.part10 import encode, save
from dicom_sr.summary import not_analysed_json, result_json
from dicom_sr.verify import VerificationError
from inference.types import SourceFrame, Volume
from tests.ct_factory import make_ct_series, make_enhanced_ct
from tests.finding_factory import make_context, make_findings, make_result, make_volume, without_pixels


class Made(NamedTuple):
    volume: Volume
    headers: list[Dataset]
    context: ResultContext
    key_images: tuple[KeyImage, ...]
    captures: list[Capture]
    objects: list[Dataset]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    series = make_ct_series(16, matrix=64)
    volume, headers, context = make_volume(series), without_pixels(series), make_context()
    result = make_result(volume, make_findings(volume, 2), context)
    key_images = render_key_images(volume, result.findings, tmp_path_factory.mktemp("pictures"))
    summary = result_json(volume, result, headers, context, key_images=key_images)
    captures = capture_result(summary, volume.frames, volume, key_images)
    return Made(volume, headers, context, key_images, captures, build_captures(captures, headers[0], context))


def small(sources: tuple[SourceFrame, ...], *, side: int = 3) -> Capture:
    pixels = np.arange(side * side * 3, dtype=np.uint8).reshape(side, side, 3)
    return Capture(pixels, sources, "Made for a test.", "A comment.", None, names_patient=False)


def test_one_series_with_the_summary_and_then_each_key_slice(made: Made) -> None:
    assert [ds.InstanceNumber for ds in made.objects] == [1, 2, 3]
    assert len({ds.SOPInstanceUID for ds in made.objects}) == 3
    assert {ds.SeriesInstanceUID for ds in made.objects} == {
        made.context.uid(made.volume.series_uid, "sc-series")
    }
    assert {ds.StudyInstanceUID for ds in made.objects} == {made.volume.study_uid}
    assert {ds.SOPClassUID for ds in made.objects} == {SecondaryCaptureImageStorage}
    assert {ds.file_meta.TransferSyntaxUID for ds in made.objects} == {ExplicitVRLittleEndian}
    assert {ds.SeriesNumber for ds in made.objects} == {1003}


def test_the_pixels_are_the_pictures(made: Made, tmp_path: Path) -> None:
    for number, (ds, image) in enumerate(zip(made.objects[1:], made.key_images, strict=True)):
        save(ds, tmp_path / f"{number}.dcm")
        with Image.open(image.path) as picture:
            assert np.array_equal(dcmread(tmp_path / f"{number}.dcm").pixel_array, np.asarray(picture))


def test_each_names_what_it_was_made_of(made: Made) -> None:
    summary, first, _ = made.objects
    assert [row.ReferencedSOPInstanceUID for row in summary.SourceImageSequence] == [
        frame.sop_instance_uid for frame in made.volume.frames
    ]
    (row,) = first.SourceImageSequence
    assert row.ReferencedSOPInstanceUID == made.headers[made.key_images[0].slice_index].SOPInstanceUID
    assert row.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    for ds in made.objects:
        (series,) = ds.ReferencedSeriesSequence
        assert series.SeriesInstanceUID == made.volume.series_uid
        assert len(series.ReferencedInstanceSequence) == len(ds.SourceImageSequence)


def test_only_a_page_with_the_name_is_flagged_as_naming_the_patient(made: Made) -> None:
    assert [ds.BurnedInAnnotation for ds in made.objects] == ["YES", "NO", "NO"]
    assert [ds.PatientOrientation for ds in made.objects] == ["", ["L", "P"], ["L", "P"]]
    texts = " ".join(image.caption for image in made.key_images)
    header = made.headers[0]
    assert not any(str(header[key].value) in texts for key in ("PatientName", "PatientID", "AccessionNumber"))


def test_nobody_can_measure_in_them_or_take_them_for_the_scan(made: Made) -> None:
    for ds in made.objects:
        assert ds.ImageType == ["DERIVED", "SECONDARY"]
        assert ds.Modality == "OT"
        assert not {"PixelSpacing", "NominalScannedPixelSpacing", "ImagePositionPatient"} & set(ds.dir())
        assert "not for primary diagnosis" in ds.ImageComments
        assert "research use only" in ds.SeriesDescription
        assert ds.Manufacturer == made.context.manufacturer


def test_the_same_result_is_the_same_bytes(made: Made) -> None:
    again = build_captures(made.captures, made.headers[0], made.context)
    assert list(map(encode, again)) == list(map(encode, made.objects))
    other = build_captures(made.captures, made.headers[0], replace(made.context, input_digest="d2" * 32))
    assert not {ds.SOPInstanceUID for ds in other} & {ds.SOPInstanceUID for ds in made.objects}


def test_frames_of_a_multi_frame_source_are_named(made: Made) -> None:
    (source,) = without_pixels([make_enhanced_ct(make_ct_series(16, matrix=64))])
    frame = SourceFrame(str(source.SOPClassUID), str(source.SOPInstanceUID), 5)
    (ds,) = build_captures([small((frame, replace(frame, frame_number=7)))], source, made.context)
    (row,) = ds.SourceImageSequence
    assert row.ReferencedFrameNumber == [5, 7]
    assert row.ReferencedSOPClassUID == source.SOPClassUID


@pytest.mark.parametrize(("stated", "written"), [(None, "00"), ("00", "00"), ("01", "01")])
def test_a_lossy_source_makes_a_lossy_picture(made: Made, stated: str | None, written: str) -> None:
    header = deepcopy(made.headers[0])
    if stated is not None:
        header.LossyImageCompression = stated
        header.LossyImageCompressionRatio = "10"
    (ds,) = build_captures([small(())], header, made.context)
    assert ds.LossyImageCompression == written
    assert ("LossyImageCompressionRatio" in ds) == (stated == "01")


def test_a_body_part_is_taken_over_and_unknown_sides_are_said_to_be_unknown(made: Made) -> None:
    known, unknown = deepcopy(made.headers[0]), deepcopy(made.headers[0])
    known.BodyPartExamined = "CHEST"
    unknown.pop("BodyPartExamined", None)
    (first,), (second,) = (build_captures([small(())], header, made.context) for header in (known, unknown))
    assert (first.BodyPartExamined, "Laterality" in first) == ("CHEST", False)
    assert ("BodyPartExamined" in second, second.Laterality) == (False, "")


def test_odd_sizes_are_padded_to_an_even_length(made: Made, tmp_path: Path) -> None:
    capture = small(made.volume.frames[:1])
    (ds,) = build_captures([capture], made.headers[0], made.context)
    assert len(ds.PixelData) == 28
    save(ds, tmp_path / "odd.dcm")
    reread_captures([tmp_path / "odd.dcm"], [capture])


def test_what_was_not_analysed_is_a_picture_too(made: Made, tmp_path: Path) -> None:
    summary = not_analysed_json(made.headers, "TOO_THICK", "The slices are 8 mm thick.", made.context)
    captures = capture_result(summary, source_frames(made.headers))
    (ds,) = build_captures(captures, made.headers[0], made.context)
    assert len(ds.SourceImageSequence) == len(made.headers)
    save(ds, tmp_path / "sc.dcm")
    reread_captures([tmp_path / "sc.dcm"], captures)


def test_a_series_that_nobody_can_name_still_gets_its_message(made: Made, tmp_path: Path) -> None:
    known = Dataset()
    known.StudyInstanceUID, known.SeriesInstanceUID, known.Modality = "1.2.3", "1.2.4", "CT"
    summary = not_analysed_json([known], "DECODE", "No file can be read.", made.context)
    captures = capture_result(summary, source_frames([known]))
    (ds,) = build_captures(captures, known, made.context)
    assert "SourceImageSequence" not in ds
    save(ds, tmp_path / "sc.dcm")
    reread_captures([tmp_path / "sc.dcm"], captures)


@pytest.mark.parametrize("what", ["pixels", "sources", "flag", "file"])
def test_a_wrong_file_is_noticed(made: Made, tmp_path: Path, what: str) -> None:
    capture = small(made.volume.frames[:1])
    (ds,) = build_captures([capture], made.headers[0], made.context)
    if what == "pixels":
        ds.PixelData = b"\x07" + ds.PixelData[1:]
    elif what == "sources":
        del ds.SourceImageSequence[0]
    elif what == "flag":
        ds.BurnedInAnnotation = "YES"
    path = tmp_path / "sc.dcm"
    save(ds, path)
    if what == "file":
        path.write_bytes(b"nothing")
    with pytest.raises(VerificationError):
        reread_captures([path], [capture])
