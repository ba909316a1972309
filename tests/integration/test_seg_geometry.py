"""Hard geometry: every mask voxel lies in the patient where the source's own header puts it, to 0.01 mm.

The truth is PS3.3 equation C.7.6.2.1-1 with Image Position, Orientation and Pixel Spacing of the source
image, computed here from the files and from nothing else. It is held against what others make of the written
SEG: its own attributes, highdicom, dcmqi (volumes read by SimpleITK) and SimpleITK's own reading of the CT.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray
from pydicom import Dataset, dcmread

from dicom_sr.part10 import save
from dicom_sr.report import build_report
from dicom_sr.seg import SegEncoding, build_seg
from dicom_sr.verify import reread
from inference.geometry import judge_geometry
from inference.types import Finding, Volume
from tests.ct_factory import AXIAL, make_ct_series, make_enhanced_ct, write_series
from tests.finding_factory import make_context, make_finding, make_result, without_pixels

ITK: Any = SimpleITK  # its functions have no types

Points = NDArray[np.float64]
TOLERANCE_MM = 0.01
DCMQI = Path(sys.executable).with_name("segimage2itkimage")

FEET_FIRST = (1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
PRONE = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)
GANTRY_20 = (1.0, 0.0, 0.0, 0.0, 0.939693, 0.342020)
TWISTED = (0.978148, 0.207912, 0.0, -0.202808, 0.954136, 0.220235)

#: slice distance, matrix, (row, column) spacing, orientation, origin
CASES: dict[str, tuple[float, tuple[int, int], tuple[float, float], tuple[float, ...], tuple[float, ...]]] = {
    "0.4 mm slices": (0.4, (16, 16), (0.35, 0.35), AXIAL, (-180.3, -170.7, 1043.25)),
    "5 mm slices": (5.0, (16, 16), (0.976562, 0.976562), AXIAL, (-250.0, -250.0, -1250.5)),
    "descending z": (1.25, (16, 16), (0.7, 0.7), FEET_FIRST, (-170.1, 160.2, 33.3)),
    "prone": (2.0, (16, 16), (0.8, 0.8), PRONE, (170.4, 160.6, -20.0)),
    "whole gantry tilted": (1.0, (16, 16), (0.703125, 0.703125), GANTRY_20, (-180.0, -150.0, -400.25)),
    "turned about two axes": (2.5, (16, 16), (0.7, 0.9), TWISTED, (-111.11, -222.22, 333.33)),
    "non-square pixels": (2.5, (16, 16), (0.5, 1.25), AXIAL, (-157.5, -150.0, -90.0)),
    "odd matrix": (2.5, (17, 23), (0.8, 0.8), AXIAL, (0.0, 0.0, 0.0)),
    "odd matrix, turned": (0.75, (19, 13), (0.65, 0.8), TWISTED, (12.5, 40.0, -1000.0)),
}


@dataclass(frozen=True)
class Case:
    """A series, its SEG on disk and the true places of the mask's voxels."""

    folder: Path
    volume: Volume
    headers: list[Dataset]
    findings: tuple[Finding, ...]
    truth: tuple[Points, ...]

    @property
    def seg(self) -> Path:
        return self.folder / "seg.dcm"


def extent(spacing_mm: float) -> int:
    """So many slices that the node would accept the series."""
    return max(50, int(np.ceil(150 / spacing_mm)) + 1)


def make_series(name: str, **changes: Any) -> list[Dataset]:
    spacing, (rows, columns), pixels, orientation, origin = CASES[name]
    count = extent(spacing)
    hu = np.zeros((count, rows, columns), np.int16)
    options: dict[str, Any] = {
        "hu": hu,
        "spacing_mm": spacing,
        "pixel_spacing_mm": pixels,
        "orientation": orientation,
        "origin_mm": origin,
    }
    return make_ct_series(count, **{**options, **changes})


def lopsided(volume: Volume, origin: tuple[int, int, int], name: str) -> Finding:
    """No mirror image, no turn and no shift of it is the same mask."""
    mask = np.zeros((4, 5, 6), dtype=bool)
    mask[0, 0, 0] = mask[0, 0, 1] = mask[0, 1, 0] = True
    mask[1, :, :3] = True
    mask[2, 0:2, 0:5] = mask[2, 3, 0] = True
    mask[3, 0, 5] = mask[3, 4, 0] = True
    z, y, x = origin
    return make_finding(volume, origin, name=name, mask=mask, key_slice=z + 1, key_point=(y + 2.0, x + 1.0))


def by_the_standard(series: list[Dataset], volume: Volume, finding: Finding) -> Points:
    """PS3.3 C.7.6.2.1-1 for each voxel of the mask, with the header of the very image it was drawn on."""
    images = {str(ds.SOPInstanceUID): ds for ds in series}
    out = []
    for dz, dy, dx in np.argwhere(finding.mask):
        frame = volume.frames[finding.origin[0] + dz]
        ds = images[frame.sop_instance_uid]
        position, spacing = ds.ImagePositionPatient, ds.PixelSpacing
        row, column = np.array(ds.ImageOrientationPatient[:3]), np.array(ds.ImageOrientationPatient[3:])
        j, i = finding.origin[2] + dx, finding.origin[1] + dy
        out.append(np.array(position) + row * float(spacing[1]) * j + column * float(spacing[0]) * i)
    return np.array(out, dtype=float)


def volume_of(headers: list[Dataset]) -> tuple[Volume, list[Dataset]]:
    """By the node's own judgement of the geometry, and the headers in its slice order."""
    grid = judge_geometry(headers)
    first = headers[0]
    by_uid = {str(h.SOPInstanceUID): h for h in headers}
    volume = Volume(
        np.zeros(grid.shape, np.int16),
        grid.affine_index_to_lps,
        grid.frame_of_reference_uid,
        str(first.StudyInstanceUID),
        str(first.SeriesInstanceUID),
        grid.frames,
        grid.thickness_mm,
    )
    ordered = [by_uid[uid] for uid in dict.fromkeys(f.sop_instance_uid for f in grid.frames)]
    return volume, ordered


def write_case(series: list[Dataset], folder: Path, **options: Any) -> Case:
    write_series(series[::-1], folder / "ct")
    volume, headers = volume_of(without_pixels(series))
    middle = len(volume.frames) // 2
    findings = (lopsided(volume, (middle, 2, 3), "near"), lopsided(volume, (middle + 9, 7, 4), "far"))
    context = make_context()
    seg = build_seg(volume, findings, headers, context, **options)
    save(seg, folder / "seg.dcm")
    result = make_result(volume, findings, context)
    save(build_report(volume, result, seg, headers, context), folder / "sr.dcm")
    reread(volume, result, folder / "seg.dcm", folder / "sr.dcm")
    truth = tuple(by_the_standard(series, volume, f) for f in findings)
    return Case(folder, volume, headers, findings, truth)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    made: dict[str, Case] = {}

    def make(name: str) -> Case:
        if name not in made:
            made[name] = write_case(make_series(name), tmp_path_factory.mktemp("case"))
        return made[name]

    return make


def agree(found: Points, truth: Points) -> None:
    """The same number of voxels, each within the tolerance of one of its own."""
    assert len(found) == len(truth)
    apart = np.linalg.norm(found[:, None] - truth[None], axis=2)
    assert apart.min(axis=1).max() <= TOLERANCE_MM
    assert len(set(apart.argmin(axis=1).tolist())) == len(truth)


def from_attributes(path: Path, number: int) -> Points:
    seg = dcmread(path)
    shared, out = seg.SharedFunctionalGroupsSequence[0], []
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float)
    rows, columns = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
    for group, plane in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number:
            corner = np.array(group.PlanePositionSequence[0].ImagePositionPatient, dtype=float)
            out += [
                corner + cosines[:3] * columns * x + cosines[3:] * rows * y for y, x in np.argwhere(plane)
            ]
    return np.array(out)


def by_highdicom(path: Path, number: int) -> Points:
    volume = hd.seg.segread(path).get_volume(combine_segments=True)
    index = np.argwhere(volume.array == number)
    return np.asarray(index @ volume.affine[:3, :3].T + volume.affine[:3, 3])


def by_dcmqi(path: Path, folder: Path, count: int) -> list[Points]:
    """dcmqi writes one NRRD for each segment; SimpleITK says where its voxels lie."""
    folder.mkdir()
    command = [DCMQI, "--inputDICOM", path, "--outputDirectory", folder, "--outputType", "nrrd"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((folder / "meta.json").read_text())["segmentAttributes"]) == count
    return [by_simpleitk(ITK.ReadImage(str(folder / f"{n}.nrrd"))) for n in range(1, count + 1)]


def by_simpleitk(image: Any) -> Points:
    """Places of the voxels above zero; ITK's world is LPS as DICOM's is."""
    index = np.argwhere(ITK.GetArrayViewFromImage(image) > 0)
    where = [image.TransformIndexToPhysicalPoint(tuple(int(v) for v in one[::-1])) for one in index]
    return np.array(where)


@pytest.mark.parametrize("name", CASES)
def test_attributes_and_highdicom(name: str, case: Callable[[str], Case]) -> None:
    made = case(name)
    for number, truth in enumerate(made.truth, start=1):
        agree(from_attributes(made.seg, number), truth)
        agree(by_highdicom(made.seg, number), truth)


@pytest.mark.skipif(not DCMQI.exists(), reason="dcmqi has programs for Linux on x86-64 only")
@pytest.mark.parametrize("name", CASES)
def test_dcmqi(name: str, case: Callable[[str], Case], tmp_path: Path) -> None:
    made = case(name)
    for found, truth in zip(by_dcmqi(made.seg, tmp_path / "out", 2), made.truth, strict=True):
        agree(found, truth)


@pytest.mark.parametrize("name", CASES)
def test_simpleitk_puts_the_ct_where_the_mask_is(name: str, case: Callable[[str], Case]) -> None:
    """SimpleITK reads the CT by itself; the voxel that the SEG's place falls on is the mask's voxel."""
    made = case(name)
    reader = ITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(made.folder / "ct")))
    ct = reader.Execute()
    slices = made.volume.array.shape[0]
    # ITK's slices may run the other way; its own direction says so
    along = np.array(ct.GetDirection()).reshape(3, 3)[:, 2] @ made.volume.affine_index_to_lps[:3, 0] > 0
    for number, finding in enumerate(made.findings, start=1):
        points = by_highdicom(made.seg, number)
        index = np.array([ct.TransformPhysicalPointToContinuousIndex(p.tolist()) for p in points])[:, ::-1]
        index[:, 0] = index[:, 0] if along else slices - 1 - index[:, 0]
        expected = np.argwhere(finding.mask) + np.array(finding.origin)
        mm = np.array(made.volume.spacing_mm)
        agree(index * mm, expected * mm)


def test_a_label_map_and_all_frames_lie_there_too(tmp_path: Path) -> None:
    series = make_series("odd matrix, turned")
    forms: tuple[dict[str, Any], ...] = ({"encoding": SegEncoding.LABELMAP}, {"omit_empty_frames": False})
    for number, options in enumerate(forms, start=1):
        (tmp_path / str(number)).mkdir()
        made = write_case(series, tmp_path / str(number), **options)
        for segment, truth in enumerate(made.truth, start=1):
            agree(by_highdicom(made.seg, segment), truth)


def test_several_acquisitions_in_one_study_and_in_one_series(tmp_path: Path) -> None:
    """Two series with one frame of reference, shifted; the second one in two acquisitions, sent mixed."""
    first = make_series("5 mm slices", seed="one")
    second = make_series(
        "5 mm slices",
        seed="two",
        series_number=2,
        study_uid=first[0].StudyInstanceUID,
        origin_mm=(-251.5, -240.25, -1251.75),
    )
    for number, ds in enumerate(second):
        ds.AcquisitionNumber = 1 + (number >= len(second) // 2)
        ds.FrameOfReferenceUID = first[0].FrameOfReferenceUID
    made = []
    for name, series in (("one", first), ("two", second)):
        (tmp_path / name).mkdir()
        made.append(write_case(series, tmp_path / name))
    for one in made:
        agree(by_highdicom(one.seg, 1), one.truth[0])
        referenced = dcmread(one.seg).ReferencedSeriesSequence
        assert [item.SeriesInstanceUID for item in referenced] == [one.volume.series_uid]
    shift = np.abs(made[0].truth[0] - made[1].truth[0])
    np.testing.assert_allclose(shift, np.broadcast_to([1.5, 9.75, 1.25], shift.shape), atol=1e-6)


@pytest.mark.parametrize("name", ["descending z", "turned about two axes"])
def test_enhanced_ct(name: str, tmp_path: Path) -> None:
    singles = make_series(name)
    enhanced = make_enhanced_ct(singles)
    volume, headers = volume_of(without_pixels([enhanced]))
    finding = lopsided(volume, (20, 3, 4), "one")
    seg = build_seg(volume, [finding], headers, make_context())
    save(seg, tmp_path / "seg.dcm")
    by_frame = dict(enumerate(singles, start=1))
    as_single = replace(
        volume,
        frames=tuple(
            replace(f, sop_instance_uid=str(by_frame[f.frame_number or 0].SOPInstanceUID))
            for f in volume.frames
        ),
    )
    agree(by_highdicom(tmp_path / "seg.dcm", 1), by_the_standard(singles, as_single, finding))


def test_a_shifted_mask_would_be_noticed(case: Callable[[str], Case], tmp_path: Path) -> None:
    made = case("non-square pixels")
    seg = dcmread(made.seg)
    for group in seg.PerFrameFunctionalGroupsSequence:
        x, y, z = group.PlanePositionSequence[0].ImagePositionPatient
        group.PlanePositionSequence[0].ImagePositionPatient = [x + 0.02, y, z]
    seg.save_as(tmp_path / "seg.dcm")
    with pytest.raises(AssertionError):
        agree(by_highdicom(tmp_path / "seg.dcm", 1), made.truth[0])
    swapped = dcmread(made.seg)
    measures = swapped.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.PixelSpacing = measures.PixelSpacing[::-1]
    swapped.save_as(tmp_path / "swapped.dcm")
    with pytest.raises(AssertionError):
        agree(from_attributes(tmp_path / "swapped.dcm", 1), made.truth[0])
