from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEGLSLossless

from inference.phantom import (
    DEFAULT_NODULES,
    Attachment,
    Kernel,
    NoduleSpec,
    Phantom,
    make_phantom,
    random_specs,
    write_phantom,
)
from inference.types import Attenuation, Laterality

CREATED = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
SHAPE, SPACING = (75, 128, 128), (4.0, 2.75, 2.75)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(1, SHAPE, SPACING)


def test_same_seed_gives_same_voxels_and_uids_another_seed_does_not(phantom: Phantom) -> None:
    again, other = make_phantom(1, SHAPE, SPACING), make_phantom(2, SHAPE, SPACING)
    assert np.array_equal(again.volume.array, phantom.volume.array)
    assert again.volume.series_uid == phantom.volume.series_uid
    assert again.nodules == phantom.nodules
    assert not np.array_equal(other.volume.array, phantom.volume.array)
    assert other.volume.series_uid != phantom.volume.series_uid


def test_lungs_lie_on_their_side_and_the_left_one_is_smaller(phantom: Phantom) -> None:
    for label, sign in ((1, -1), (2, 1)):
        voxels = np.argwhere(phantom.truth == label)
        assert sign * phantom.volume.index_to_lps(voxels)[:, 0].mean() > 40
    litres = [(phantom.truth == label).sum() * phantom.volume.voxel_volume_mm3 / 1e6 for label in (1, 2)]
    assert 4.5 > litres[0] > litres[1] > 1.2


def test_the_body_is_not_its_own_mirror_image(phantom: Phantom) -> None:
    right, left = (phantom.truth == label for label in (1, 2))
    mirrored = right[:, :, ::-1]  # the grid is centred on the midline
    assert 2 * (mirrored & left).sum() / (mirrored.sum() + left.sum()) < 0.92
    below = int(phantom.volume.lps_to_index((0.0, 0.0, -40.0))[0].round())
    heart = (phantom.volume.array[below] > -50) & (phantom.truth[below] == 0)
    columns = np.nonzero(heart[35:65])[1]  # in front of the spine
    x = (columns - (SHAPE[2] - 1) / 2) * SPACING[2]
    assert x[np.abs(x) < 80].mean() > 8
    liver, other = (
        phantom.volume.array[tuple(np.round(phantom.volume.lps_to_index((x, -20.0, -120.0))).astype(int))]
        for x in (-60.0, 60.0)
    )
    assert abs(int(liver) - int(other)) > 25


def test_tissues_have_plausible_hu(phantom: Phantom) -> None:
    hu = phantom.volume.array
    assert hu.dtype == np.int16
    assert -900 < np.median(hu[phantom.truth == 1]) < -780
    assert np.median(hu[phantom.truth == 3]) < -800
    liver = np.round(phantom.volume.lps_to_index((-60.0, 0.0, -120.0))).astype(int)
    assert 40 < hu[tuple(slice(i - 2, i + 3) for i in liver)].mean() < 75
    assert hu.max() > 300  # bone


def test_every_nodule_is_where_and_what_it_says(phantom: Phantom) -> None:
    assert len(phantom.nodules) == len(DEFAULT_NODULES)
    for nodule in phantom.nodules:
        mask = phantom.truth == nodule.label
        centre = phantom.volume.index_to_lps(np.argwhere(mask)).mean(axis=0)
        assert np.linalg.norm(centre - nodule.centre_lps) < 4
        assert mask.sum() * phantom.volume.voxel_volume_mm3 == pytest.approx(nodule.volume_mm3)
        assert (nodule.centre_lps[0] > 0) == (nodule.laterality is Laterality.LEFT)
        sphere = np.pi / 6 * nodule.diameter_mm**3
        low = 0.4 if nodule.attachment is Attachment.JUXTAPLEURAL else 0.75
        grain = 6 * phantom.volume.voxel_volume_mm3
        assert low * sphere - grain < nodule.volume_mm3 < 1.35 * sphere + grain


def test_attenuation_shows_in_the_voxels(phantom: Phantom) -> None:
    mean = {}
    for nodule in phantom.nodules[:4]:
        index = np.round(phantom.volume.lps_to_index(nodule.centre_lps)).astype(int)
        mean[nodule.attenuation, nodule.diameter_mm] = phantom.volume.array[tuple(index)]
    assert mean[Attenuation.SOLID, 20.0] > -80
    assert -800 < mean[Attenuation.GROUND_GLASS, 13.0] < -400


def test_sharp_kernel_is_noisier(phantom: Phantom) -> None:
    sharp = make_phantom(1, SHAPE, SPACING, (), kernel=Kernel.SHARP)
    air = [p.volume.array[5:10, :10, :10].astype(float).std() for p in (phantom, sharp)]
    assert air[1] > 1.5 * air[0]
    assert sharp.nodules == ()


def test_thick_slices_soften_a_small_nodule(phantom: Phantom) -> None:
    thick = make_phantom(1, SHAPE, SPACING, slice_thickness_mm=10.0)
    assert thick.nodules == phantom.nodules
    mask = phantom.truth == phantom.nodules[-1].label
    assert thick.volume.array[mask].mean() < phantom.volume.array[mask].mean() - 100


def test_a_grid_smaller_than_a_chest_and_an_impossible_nodule_are_refused() -> None:
    with pytest.raises(ValueError, match="a chest needs"):
        make_phantom(0, (20, 64, 64), (4.0, 2.75, 2.75))
    with pytest.raises(ValueError, match="2 to 40 mm"):
        NoduleSpec(60.0)


def test_random_specs_stay_in_range() -> None:
    specs = random_specs(np.random.default_rng(0), 200)
    assert all(4 <= spec.diameter_mm <= 34 for spec in specs)
    assert {spec.attenuation for spec in specs} == set(Attenuation)
    assert {spec.attachment for spec in specs} == set(Attachment)


def test_written_series_reads_back(phantom: Phantom, tmp_path: Path) -> None:
    paths = write_phantom(phantom, tmp_path, patient_id="PHANTOM-0007", created=CREATED)
    assert len(paths) == SHAPE[0]
    first, last = pydicom.dcmread(paths[0]), pydicom.dcmread(paths[-1])
    assert str(first.PatientName) == "SYNTHETIC^PHANTOM"
    for keyword in ("SeriesDescription", "ImageComments", "ProtocolName", "Manufacturer"):
        assert "SYNTHETIC" in first[keyword].value
    assert first.StudyDate == "20240506"
    assert first.SeriesInstanceUID == last.SeriesInstanceUID
    assert first.SOPInstanceUID != last.SOPInstanceUID
    assert float(last.ImagePositionPatient[2]) > float(first.ImagePositionPatient[2])
    hu = first.pixel_array.astype(int) * int(first.RescaleSlope) + int(first.RescaleIntercept)
    assert np.array_equal(hu, phantom.volume.array[0])
    corner = phantom.volume.index_to_lps((0.0, 0.0, 0.0))
    assert [float(v) for v in first.ImagePositionPatient] == pytest.approx(corner, abs=1e-4)


def test_written_series_is_deterministic_and_differs_by_patient(phantom: Phantom, tmp_path: Path) -> None:
    one, two, three = (
        write_phantom(phantom, tmp_path / name, patient_id=patient)[0]
        for name, patient in (("a", "PHANTOM-1"), ("b", "PHANTOM-1"), ("c", "PHANTOM-2"))
    )
    assert one.read_bytes() == two.read_bytes()
    assert pydicom.dcmread(one).StudyInstanceUID != pydicom.dcmread(three).StudyInstanceUID


def test_compressed_transfer_syntax_keeps_the_pixels(phantom: Phantom, tmp_path: Path) -> None:
    path = write_phantom(phantom, tmp_path, transfer_syntax=JPEGLSLossless)[30]
    dataset = pydicom.dcmread(path)
    assert dataset.file_meta.TransferSyntaxUID == JPEGLSLossless
    assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
    assert np.array_equal(dataset.pixel_array.astype(int) - 1024, phantom.volume.array[30])


@pytest.mark.peer("dciodvfy")
def test_written_slice_passes_dciodvfy(phantom: Phantom, tmp_path: Path) -> None:
    path = write_phantom(phantom, tmp_path)[40]
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False, timeout=60)
    assert "CTImage" in done.stdout + done.stderr
    assert not [line for line in done.stderr.splitlines() if line.startswith("Error")]
