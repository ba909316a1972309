"""Files to HU with geometry: order and repetition never matter, nothing wraps, bad input is refused."""

from __future__ import annotations

import random
import shutil
from collections import defaultdict
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLSNearLossless,
)

from inference.errors import ReasonCode, UnsuitableSeriesError
from inference.load import AIR_HU, LoadedSeries, _Rescale, _to_hu, load_series, read_header
from inference.select import judge_series, judge_study
from tests.ct_factory import LOSSLESS, LOSSY, NATIVE, chest_hu, make_ct_series, make_enhanced_ct, write_series

TRUTH = chest_hu(64, 32)


def make(**change: Any) -> list[Dataset]:
    return make_ct_series(**{"matrix": 32, "pixel_spacing_mm": (10.0, 10.0), **change})


def load(datasets: list[Dataset], tmp_path: Path) -> LoadedSeries:
    return load_series(write_series(datasets, tmp_path / "series"))


def refusal(datasets: list[Dataset], tmp_path: Path) -> UnsuitableSeriesError:
    with pytest.raises(UnsuitableSeriesError) as caught:
        load(datasets, tmp_path)
    return caught.value


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("series")
    paths = write_series(make(), folder)
    return paths + [Path(shutil.copy(path, folder / f"again-{path.name}")) for path in paths[:20]]


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**16), again=st.integers(0, 20))
def test_order_and_repetition_of_files_never_matter(seed: int, again: int, files: list[Path]) -> None:
    given_files = random.Random(seed).sample(files[: 64 + again], 64 + again)
    loaded = load_series(given_files)
    np.testing.assert_array_equal(loaded.volume.array, TRUTH)
    assert len(loaded.headers) == 64
    for z, header in enumerate(loaded.headers):
        assert loaded.volume.frames[z].sop_instance_uid == header.SOPInstanceUID
        position = [float(v) for v in header.ImagePositionPatient]
        np.testing.assert_allclose(loaded.volume.index_to_lps((z, 0, 0)), position, atol=0.01)


def test_headers_keep_everything_but_the_pixels(tmp_path: Path) -> None:
    datasets = make()
    loaded = load(datasets, tmp_path)
    for header, ds in zip(loaded.headers, datasets, strict=True):
        assert "PixelData" not in header
        del ds.PixelData
        assert header == ds
    volume = loaded.volume
    assert (volume.study_uid, volume.series_uid) == (
        datasets[0].StudyInstanceUID,
        datasets[0].SeriesInstanceUID,
    )
    assert volume.frame_of_reference_uid == datasets[0].FrameOfReferenceUID
    assert volume.slice_thickness_mm == 2.5
    assert volume.spacing_mm == (2.5, 10.0, 10.0)


@pytest.mark.parametrize("syntax", [*NATIVE, *LOSSLESS])
def test_lossless_syntaxes_load_identically(syntax: str, tmp_path: Path) -> None:
    volume = load(make(transfer_syntax=syntax), tmp_path).volume
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, TRUTH)


@pytest.mark.parametrize("syntax", LOSSY)
def test_lossy_syntaxes_load_nearly(syntax: str, tmp_path: Path) -> None:
    volume = load(make(transfer_syntax=syntax, signed=syntax == JPEGLSNearLossless), tmp_path).volume
    off = np.abs(volume.array.astype(int) - TRUTH)
    assert 0 < off.max() < (90 if syntax == JPEGExtended12Bit else 20)


def test_one_series_in_several_syntaxes(tmp_path: Path) -> None:
    kinds = [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, JPEGLossless]
    rows = [make(transfer_syntax=kind) for kind in kinds]
    mixed = [rows[z % 4][z] for z in range(64)]
    np.testing.assert_array_equal(load(mixed, tmp_path).volume.array, TRUTH)


@pytest.mark.parametrize("legacy", [False, True])
def test_multiframe_is_the_volume_of_its_single_frames(legacy: bool, tmp_path: Path) -> None:
    shuffled = random.Random(2).sample(make(), 64)
    enhanced = make_enhanced_ct(shuffled, legacy=legacy)
    loaded = load([enhanced], tmp_path)
    np.testing.assert_array_equal(loaded.volume.array, TRUTH)
    assert len(loaded.headers) == 1
    assert loaded.headers[0].SOPInstanceUID == enhanced.SOPInstanceUID
    groups = enhanced.PerFrameFunctionalGroupsSequence
    for z, frame in enumerate(loaded.volume.frames):
        assert frame.frame_number is not None
        position = groups[frame.frame_number - 1].PlanePositionSequence[0].ImagePositionPatient
        np.testing.assert_allclose(
            loaded.volume.index_to_lps((z, 0, 0)), list(map(float, position)), atol=0.01
        )


def test_legacy_conversion_by_highdicom_loads_identically(tmp_path: Path) -> None:
    """An independent writer of functional groups (frames in the order that it chooses)."""
    singles = random.Random(6).sample(make(), 64)
    converted = LegacyConvertedEnhancedCTImage(
        legacy_datasets=singles,
        series_instance_uid="2.25.11",
        series_number=2,
        sop_instance_uid="2.25.12",
        instance_number=1,
    )
    loaded = load([converted], tmp_path)
    np.testing.assert_array_equal(loaded.volume.array, TRUTH)
    np.testing.assert_allclose(loaded.volume.spacing_mm, (2.5, 10.0, 10.0))
    np.testing.assert_allclose(loaded.volume.index_to_lps((0, 0, 0)), (-157.5, -150.0, -90.0))


def test_multiframe_rescale_of_each_frame(tmp_path: Path) -> None:
    enhanced = make_enhanced_ct(make())
    transformation = enhanced.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
    del enhanced.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
    for z, group in enumerate(enhanced.PerFrameFunctionalGroupsSequence):
        group.PixelValueTransformationSequence = deepcopy(transformation)
        group.PixelValueTransformationSequence[0].RescaleIntercept = -1024 + z % 2
    expected = TRUTH + (np.arange(64) % 2)[:, None, None]
    np.testing.assert_array_equal(load([enhanced], tmp_path).volume.array, expected)


@pytest.mark.parametrize(
    ("signed", "bits", "intercept"),
    [(True, 16, -1024.0), (True, 16, 0.0), (True, 12, 0.0), (False, 16, -1024.0), (False, 12, -1024.0)],
)
def test_stored_form_does_not_change_hu(signed: bool, bits: int, intercept: float, tmp_path: Path) -> None:
    volume = load(make(signed=signed, bits_stored=bits, intercept=intercept), tmp_path).volume
    np.testing.assert_array_equal(volume.array, np.clip(TRUTH, -1024, None) if not signed else TRUTH)


def test_air_never_wraps_to_bright_whatever_slice_comes_first(tmp_path: Path) -> None:
    """The buffer's type isn't taken from a first slice without negative values (a known bug elsewhere)."""
    hu = TRUTH.copy()
    hu[0] = np.abs(hu[0]) % 200
    volume = load(make(hu=hu, signed=True, intercept=0.0), tmp_path).volume
    assert volume.array.min() < -1000
    np.testing.assert_array_equal(volume.array, hu)


def test_values_beyond_16_bits_are_clipped_not_wrapped(tmp_path: Path) -> None:
    hu = TRUTH.copy()
    hu[30, 16, 16] = 32767
    datasets = make(hu=hu, signed=True, intercept=0.0)
    for ds in datasets:
        ds.RescaleIntercept = 100
    volume = load(datasets, tmp_path).volume
    assert volume.array[30, 16, 16] == 32767
    assert volume.array[30, 0, 0] == hu[30, 0, 0] + 100


def test_the_largest_rescale_that_is_accepted_clips_and_never_wraps() -> None:
    stored = np.array([0, 1, 65535], np.uint16)
    for slope, intercept, expected in ((1e4, 1e6, [32767] * 3), (-1e4, -1e6, [-32768] * 3)):
        rescale = _Rescale(slope, intercept, None)
        assert _to_hu(stored, rescale, np.dtype(np.int16)).tolist() == expected


def test_slope_of_each_slice(tmp_path: Path) -> None:
    datasets = make(slope=1.0, intercept=0.0)
    for ds in datasets[::2]:
        values = np.frombuffer(ds.PixelData, "<i2") * 2
        ds.PixelData, ds.RescaleSlope, ds.RescaleIntercept = (values + 20).astype("<i2").tobytes(), 0.5, -10
    volume = load(datasets, tmp_path).volume
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, TRUTH)


@pytest.mark.parametrize(
    ("signed", "value", "limit", "written"),
    [
        (True, 63536, None, -2000),  # signed pixels, padding written as unsigned, as real scanners do
        (True, -2000, None, -2000),
        (False, 65535, None, 65535),
        (False, 60000, 65535, 61234),
        (False, 65535, 60000, 61234),
    ],
)
def test_padding_becomes_air(
    signed: bool, value: int, limit: int | None, written: int, tmp_path: Path
) -> None:
    datasets = make(signed=signed)
    for ds in datasets:
        pixels = np.frombuffer(ds.PixelData, "<i2" if signed else "<u2").reshape(32, 32).copy()
        pixels[:2] = written
        ds.PixelData = pixels.tobytes()
        ds.add_new("PixelPaddingValue", "SS" if value < 0 else "US", value)
        if limit is not None:
            ds.add_new("PixelPaddingRangeLimit", "US", limit)
    array = load(datasets, tmp_path).volume.array
    assert set(array[:, :2].ravel().tolist()) == {AIR_HU}
    np.testing.assert_array_equal(
        array[:, 2:], TRUTH[:, 2:] if signed else np.clip(TRUTH[:, 2:], -1024, None)
    )


@pytest.mark.parametrize(
    ("keyword", "value", "words"),
    [
        ("RescaleType", "Z_EFF", "Z_EFF"),
        ("RescaleSlope", 0, "Slope"),
        ("RescaleSlope", 1e9, "large"),
        ("RescaleIntercept", 0, "at least 1 %"),
        ("RescaleIntercept", None, "at least 1 %"),
    ],
)
def test_values_that_are_not_hounsfield_units_are_refused(
    keyword: str, value: Any, words: str, tmp_path: Path
) -> None:
    datasets = make(signed=False)
    for ds in datasets:
        if value is None:
            del ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType
        else:
            setattr(ds, keyword, value)
    reason = refusal(datasets, tmp_path)
    assert (reason.code, words in reason.sentence) == (ReasonCode.HU_RANGE, True), reason


def test_rescale_left_out_of_values_in_hu_is_no_reason_to_refuse(tmp_path: Path) -> None:
    datasets = make(intercept=0.0)
    for ds in datasets:
        del ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType
    np.testing.assert_array_equal(load(datasets, tmp_path).volume.array, TRUTH)


def test_raw_unsigned_16_bit_air_is_refused(tmp_path: Path) -> None:
    datasets = make(intercept=0.0)
    for ds in datasets:
        ds.PixelRepresentation = 0  # -1000 now reads 64536
    assert refusal(datasets, tmp_path).code == ReasonCode.HU_RANGE


def test_body_without_air_is_refused(tmp_path: Path) -> None:
    hu = np.full((64, 32, 32), 40, dtype=np.int16)
    assert refusal(make(hu=hu), tmp_path).code == ReasonCode.HU_RANGE


def test_same_uid_with_other_pixels_is_a_conflict(tmp_path: Path) -> None:
    datasets = make()
    other = make(hu=TRUTH + np.int16(1))[10]
    for order in ([*datasets, other], [other, *datasets]):
        assert refusal(order, tmp_path).code == ReasonCode.CONFLICT


def test_same_image_in_two_transfer_syntaxes_counts_once(tmp_path: Path) -> None:
    datasets = make() + make(transfer_syntax=JPEGLossless)[:5]
    np.testing.assert_array_equal(load(datasets, tmp_path).volume.array, TRUTH)


@pytest.mark.parametrize(
    ("code", "change"),
    [
        (ReasonCode.TOO_FEW_SLICES, {"n_slices": 5}),
        (ReasonCode.LOCALIZER, {"n_slices": 2, "image_type": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
        (ReasonCode.NOT_CT, {"modality": "MR", "sop_class_uid": "1.2.840.10008.5.1.4.1.1.4"}),
        (ReasonCode.TOO_THICK, {"n_slices": 40, "spacing_mm": 8}),
        (ReasonCode.GAP, {"drop": [30]}),
        (ReasonCode.DUPLICATE, {"duplicates": [30]}),
    ],
)
def test_unsuitable_series_are_not_loaded(code: ReasonCode, change: dict[str, Any], tmp_path: Path) -> None:
    assert refusal(make(**change), tmp_path).code == code


@pytest.mark.filterwarnings("ignore:End of file reached:UserWarning")
def test_damaged_slice_is_a_decode_refusal(tmp_path: Path) -> None:
    paths = write_series(make(transfer_syntax=JPEGLossless), tmp_path)
    paths[40].write_bytes(paths[40].read_bytes()[:-300])
    with pytest.raises(UnsuitableSeriesError) as caught:
        load_series(paths)
    assert caught.value.code == ReasonCode.DECODE


def test_file_changed_after_its_header_was_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_series(make(), tmp_path)
    monkeypatch.setattr("inference.load.decode_frames", lambda _ds: iter([np.zeros((8, 8), np.int16)]))
    with pytest.raises(UnsuitableSeriesError, match="don't fit their header"):
        load_series(paths)


def test_volume_too_large_for_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference.load.LARGEST_VOLUME", 64 * 32 * 32 - 1)
    reason = refusal(make(), tmp_path)
    assert (reason.code, "larger than" in reason.sentence) == (ReasonCode.DECODE, True)


def test_elements_that_can_not_be_parsed_are_left_out(tmp_path: Path) -> None:
    ds = make(n_slices=1)[0]
    ds.add_new("PatientWeight", "LO", "abcdef")
    path = write_series([ds], tmp_path)[0]
    # Six bytes as a list of four-byte integers: pydicom raises when the element is read.
    content = path.read_bytes().replace(b"\x10\x00\x30\x10LO", b"\x10\x00\x30\x10UL")
    path.write_bytes(content)
    header = read_header(path)
    assert "PatientWeight" not in header
    assert header.PatientID == ds.PatientID


def test_file_without_identity_is_not_an_image(tmp_path: Path) -> None:
    ds = make(n_slices=1)[0]
    path = write_series([ds], tmp_path)[0]
    path.write_bytes(path.read_bytes().replace(b"\x08\x00\x18\x00UI", b"\x08\x00\x19\x00UI"))
    with pytest.raises(UnsuitableSeriesError) as caught:
        read_header(path)
    assert caught.value.code == ReasonCode.NOT_AN_IMAGE


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "shape", "spacing"),
    [
        ("LIDC-IDRI-0001", (133, 512, 512), (2.5, 0.703125, 0.703125)),
        ("C3N-00247", (99, 512, 512), (3.0, 0.564453, 0.564453)),
        ("Lung_Dx-A0001", (64, 512, 512), (5.0, 0.841797, 0.841797)),
    ],
)
def test_real_series(
    name: str, shape: tuple[int, ...], spacing: tuple[float, ...], real_ct: Callable[[str], Path]
) -> None:
    paths = sorted(real_ct(name).rglob("*.dcm"))
    loaded = load_series(random.Random(name).sample(paths, len(paths)))
    volume = loaded.volume
    assert volume.array.shape == shape
    np.testing.assert_allclose(volume.spacing_mm, spacing, atol=1e-5)
    for z, header in enumerate(loaded.headers):
        position = [float(v) for v in header.ImagePositionPatient]
        np.testing.assert_allclose(volume.index_to_lps((z, 0, 0)), position, atol=0.01)
    by_uid = {str(ds.SOPInstanceUID): ds for ds in map(dcmread, paths)}
    for z in (0, shape[0] // 2, shape[0] - 1):
        ds = by_uid[volume.frames[z].sop_instance_uid]
        hu = ds.pixel_array.astype(int) * int(ds.RescaleSlope) + int(ds.RescaleIntercept)
        image = ds.pixel_array.view(np.uint16) != ds.get("PixelPaddingValue")
        np.testing.assert_array_equal(volume.array[z][image], hu[image])
        assert set(volume.array[z][~image].tolist()) <= {AIR_HU}


@pytest.mark.shared_data
@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_odd_real_files_end_in_a_verdict_or_a_volume(shared_data: Path, tmp_path: Path) -> None:
    """Each file below dicom/ as its own series, and each folder as one: nothing else is ever raised."""
    root = shared_data / "dicom"
    if not root.is_dir():
        pytest.skip("no folder dicom in the collection")
    archives = list(root.glob("*.tar.xz"))
    for archive in archives:
        shutil.unpack_archive(archive, tmp_path / archive.name, filter="data")
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in sorted([*root.rglob("*"), *tmp_path.rglob("*")]):
        if path.is_file():
            folders[path.parent].append(path)
    n_files, n_headers, codes = 0, 0, set()
    for paths in folders.values():
        series: dict[str, list[Dataset]] = defaultdict(list)
        for group in [[path] for path in paths] + [paths]:
            with pytest.raises(UnsuitableSeriesError, match=r"\.$"):  # none is a whole chest
                load_series(group)
        for path in paths:
            n_files += 1
            try:
                header = read_header(path)
            except UnsuitableSeriesError as reason:
                codes.add(reason.code)
                continue
            n_headers += 1
            verdict = judge_series([header])
            assert not verdict.suitable
            series[str(header.get("SeriesInstanceUID"))].append(header)
        verdicts = judge_study(series)
        assert len(verdicts) == len(series)
        assert all(verdict.code is not None for verdict in verdicts)
    assert codes == {ReasonCode.NOT_AN_IMAGE}
    assert n_files > 100
    assert n_headers > 60
