"""Synthetic CT series for tests: plausible chest voxels, complete headers, no patient.

Everything is deterministic: the same arguments give the same bytes and UIDs. `seed` changes all UIDs, so
that two series or studies never share one by accident.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import deepcopy
from math import cos, radians, sin
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import (
    JPEG2000,
    UID,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    LegacyConvertedEnhancedCTImageStorage,
    RLELossless,
)

from inference.uids import derived_uid

NATIVE = (
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
LOSSLESS = (
    RLELossless,
    JPEG2000Lossless,
    HTJ2KLossless,
    JPEGLSLossless,
    JPEGLossless,
    JPEGLosslessSV1,
)
LOSSY = (JPEG2000, JPEGLSNearLossless, JPEGExtended12Bit)
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


def chest_hu(n_slices: int, matrix: int = 64) -> NDArray[np.int16]:
    """HU of a crude thorax, shape (n_slices, matrix, matrix): air -1000, body 40, lungs -850, spine 400.

    The patient's right lung (smaller x) is larger than the left one, and one 30 HU ball lies in it in
    the middle slices, so that a mirrored or reversed volume is seen.
    """
    y, x = np.mgrid[0:matrix, 0:matrix] / matrix - 0.5
    grey = np.random.default_rng(7)
    out = np.empty((n_slices, matrix, matrix), dtype=np.int16)
    for z in range(n_slices):
        height = np.sin(np.pi * (z + 0.5) / n_slices) ** 0.5
        picture = np.full((matrix, matrix), -1000.0)
        picture[(x / 0.45) ** 2 + (y / 0.32) ** 2 < 1] = 40
        picture[((x + 0.19) / (0.17 * height)) ** 2 + ((y + 0.01) / (0.24 * height)) ** 2 < 1] = -850
        picture[((x - 0.20) / (0.14 * height)) ** 2 + (y / (0.21 * height)) ** 2 < 1] = -850
        picture[x**2 + (y - 0.2) ** 2 < 0.05**2] = 400
        ball = 0.03**2 - ((z - n_slices / 2) / n_slices) ** 2
        picture[(x + 0.2) ** 2 + (y + 0.05) ** 2 < ball] = 30
        out[z] = np.round(picture + grey.normal(0, 8, picture.shape))
    return out


def make_ct_series(
    n_slices: int = 64,
    *,
    seed: str = "a",
    matrix: int = 64,
    hu: NDArray[np.int16] | None = None,
    pixel_spacing_mm: tuple[float, float] = (5.0, 5.0),
    spacing_mm: float = 2.5,
    thickness_mm: float | None = None,
    origin_mm: tuple[float, float, float] = (-157.5, -150.0, -90.0),
    orientation: Sequence[float] = AXIAL,
    tilt_degrees: float = 0.0,
    jitter_mm: float = 0.0,
    drop: Collection[int] = (),
    duplicates: Collection[int] = (),
    image_type: Sequence[str] | None = ("ORIGINAL", "PRIMARY", "AXIAL"),
    modality: str = "CT",
    sop_class_uid: str = CTImageStorage,
    body_part: str | None = "CHEST",
    kernel: str | None = "STANDARD",
    description: str = "SYNTHETIC PHANTOM",
    mixed_frame_of_reference: bool = False,
    mixed_patient: bool = False,
    signed: bool = True,
    bits_stored: int = 16,
    slope: float = 1.0,
    intercept: float = -1024.0,
    transfer_syntax: str = ExplicitVRLittleEndian,
    patient_id: str = "SYNTHETIC-1",
    study_uid: str | None = None,
    series_uid: str | None = None,
    series_number: int = 1,
) -> list[Dataset]:
    """Make one CT series as single-frame Datasets, in slice order, with file meta and pixels.

    The defaults are suitable for analysis: 64 slices of 64 x 64, 2.5 mm apart, 320 mm field of view.

    Parameters
    ----------
    n_slices
        Slices before `drop` and `duplicates`.
    seed
        Changes every UID (study too, unless `study_uid` is given).
    hu
        Own voxels, shape (n_slices, rows, columns), HU; default `chest_hu`.
    pixel_spacing_mm
        (0028,0030): distance between rows, distance between columns.
    spacing_mm, thickness_mm
        Distance of neighbouring slices along the normal, and (0018,0050) (default: the same).
    tilt_degrees
        Gantry tilt: the slices are turned about the x axis while the table still moves along z.
    jitter_mm
        Half-width of a uniform error of each slice position along the normal.
    drop
        Indices left out (a gap).
    duplicates
        Indices that come twice: same position, another SOP Instance UID, other pixels.
    image_type, body_part, kernel
        None leaves the attribute out.
    signed, bits_stored, slope, intercept
        How HU become stored values; values out of range are clipped.
    transfer_syntax
        Any of `NATIVE`, `LOSSLESS`, `LOSSY`; JPEG Extended stores 12 bits unsigned whatever is asked.

    Returns
    -------
    list of Dataset
        In slice order along the normal; InstanceNumber counts from 1 in the same order.
    """
    voxels = chest_hu(n_slices, matrix) if hu is None else hu
    if len(voxels) != n_slices:
        raise ValueError(f"{len(voxels)} slices of HU for n_slices={n_slices}")
    row, column = _tilted(np.asarray(orientation, dtype=float), tilt_degrees)
    normal = np.cross(row, column)
    step = np.array([0.0, 0.0, spacing_mm / normal[2]]) if tilt_degrees else normal * spacing_mm
    noise = np.random.default_rng(11).uniform(-jitter_mm, jitter_mm, n_slices)
    if transfer_syntax == JPEGExtended12Bit:
        signed, bits_stored = False, 12
    indices = sorted([i for i in range(n_slices) if i not in drop] + list(duplicates))
    out: list[Dataset] = []
    for number, index in enumerate(indices, start=1):
        again = number > 1 and indices[number - 2] == index
        ds = _header(seed, number, again=again)
        ds.SOPClassUID = sop_class_uid
        ds.Modality = modality
        ds.StudyInstanceUID = study_uid or derived_uid("ct-factory", seed, "study")
        ds.SeriesInstanceUID = series_uid or derived_uid("ct-factory", seed, "series", str(series_number))
        ds.SOPInstanceUID = derived_uid(ds.SeriesInstanceUID, str(index), "again" if again else "once")
        ds.SeriesNumber = series_number
        ds.SeriesDescription = description
        ds.PatientID = "SYNTHETIC-OTHER" if mixed_patient and number == 2 else patient_id
        frame = "other" if mixed_frame_of_reference and number == 2 else "frame"
        ds.FrameOfReferenceUID = derived_uid(ds.StudyInstanceUID, frame)
        _optional(ds, image_type, body_part, kernel)
        if tilt_degrees:
            ds.GantryDetectorTilt = tilt_degrees
        ds.SliceThickness = spacing_mm if thickness_mm is None else thickness_mm
        ds.PixelSpacing = list(pixel_spacing_mm)
        ds.ImageOrientationPatient = [round(float(v), 6) for v in (*row, *column)]
        position = np.asarray(origin_mm) + index * step + noise[index] * normal
        ds.ImagePositionPatient = [round(float(v), 6) for v in position]
        picture = voxels[index] + np.int16(100 * again)
        _store_pixels(ds, picture, signed=signed, bits_stored=bits_stored, slope=slope, intercept=intercept)
        _encode(ds, transfer_syntax)
        out.append(ds)
    return out


def make_enhanced_ct(series: Sequence[Dataset], *, legacy: bool = False) -> Dataset:
    """Make one (Legacy Converted) Enhanced CT multi-frame image of uncompressed single frames.

    Orientation, spacing and rescale are shared functional groups; position and content are per frame.
    The frames lie in the given order. It holds what geometry, voxels and references need, not every
    acquisition macro of the IOD: dciodvfy finds those missing.
    """
    first = series[0]
    ds = Dataset()
    ds.update({e.tag: deepcopy(e) for e in first if e.keyword not in _PER_FRAME})
    ds.SOPClassUID = LegacyConvertedEnhancedCTImageStorage if legacy else EnhancedCTImageStorage
    ds.SOPInstanceUID = derived_uid(first.SOPInstanceUID, ds.SOPClassUID)
    ds.InstanceNumber = 1
    ds.NumberOfFrames = len(series)
    ds.ImageType = [*first.get("ImageType", ["ORIGINAL", "PRIMARY", "AXIAL"])[:2], "VOLUME", "NONE"]
    ds.PixelPresentation = "MONOCHROME"
    ds.VolumetricProperties = "VOLUME"
    ds.VolumeBasedCalculationTechnique = "NONE"
    ds.ContentDate, ds.ContentTime = "20200101", "120000"
    ds.PresentationLUTShape = "IDENTITY"
    ds.BurnedInAnnotation, ds.LossyImageCompression = "NO", "00"
    ds.DimensionOrganizationType = "3D"
    organization = derived_uid(ds.SOPInstanceUID, "dimensions")
    ds.DimensionOrganizationSequence = _item(DimensionOrganizationUID=organization)
    ds.DimensionIndexSequence = DicomSequence(
        _dimension(pointer, organization) for pointer in (0x00209056, 0x00209057)
    )
    ds.SharedFunctionalGroupsSequence = DicomSequence([_shared_group(first, legacy=legacy)])
    ds.PerFrameFunctionalGroupsSequence = DicomSequence(_frame_group(s, i) for i, s in enumerate(series, 1))
    ds.PixelData = b"".join(s.PixelData for s in series)
    _encode(ds, ExplicitVRLittleEndian)
    return ds


def write_series(datasets: Sequence[Dataset], directory: Path) -> list[Path]:
    """Write each Dataset as a DICOM file ``0000.dcm``, ``0001.dcm`` ... and return the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, ds in enumerate(datasets):
        path = directory / f"{number:04d}.dcm"
        ds.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


_PER_FRAME = {
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "BodyPartExamined",
    "ConvolutionKernel",
    "KVP",
    "PixelData",
    "InstanceNumber",
}


def _tilted(orientation: NDArray[np.float64], degrees: float) -> tuple[NDArray[np.float64], ...]:
    angle = radians(degrees)
    turn = np.array([[1, 0, 0], [0, cos(angle), -sin(angle)], [0, sin(angle), cos(angle)]])
    return turn @ orientation[:3], turn @ orientation[3:]


def _header(seed: str, number: int, *, again: bool) -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientName = "Synthetic^Phantom"
    ds.PatientBirthDate, ds.PatientSex = "19500101", "O"
    ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = "20200101"
    ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = "120000"
    ds.AccessionNumber = f"ACC-{seed}"[:16]
    ds.StudyID = "1"
    ds.ReferringPhysicianName = ""
    ds.StudyDescription = "SYNTHETIC CHEST PHANTOM"
    ds.Manufacturer, ds.ManufacturerModelName = "Synthetic", "ct_factory"
    ds.PatientPosition = "HFS"
    ds.PositionReferenceIndicator = ""
    ds.AcquisitionNumber = 2 if again else 1
    ds.InstanceNumber = number
    ds.KVP = 120
    return ds


def _optional(ds: Dataset, image_type: Sequence[str] | None, body: str | None, kernel: str | None) -> None:
    if image_type is not None:
        ds.ImageType = list(image_type)
    if body is not None:
        ds.BodyPartExamined = body
    if kernel is not None:
        ds.ConvolutionKernel = kernel


def _store_pixels(
    ds: Dataset, hu: NDArray[np.int16], *, signed: bool, bits_stored: int, slope: float, intercept: float
) -> None:
    low, high = (
        (-(1 << bits_stored - 1), (1 << bits_stored - 1) - 1) if signed else (0, (1 << bits_stored) - 1)
    )
    stored = np.clip(np.round((hu - intercept) / slope), low, high)
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = hu.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, bits_stored, bits_stored - 1
    ds.PixelRepresentation = int(signed)
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = slope, intercept, "HU"
    ds.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()
    ds["PixelData"].VR = "OW"


def _encode(ds: Dataset, transfer_syntax: str) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ds.SOPClassUID
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta = meta
    if transfer_syntax in NATIVE:
        meta.TransferSyntaxUID = UID(transfer_syntax)
        if transfer_syntax == ExplicitVRBigEndian:
            ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
        return
    if transfer_syntax in (RLELossless, JPEG2000Lossless, JPEGLSLossless):
        ds.compress(transfer_syntax, generate_instance_uid=False)
        return
    if transfer_syntax == JPEG2000:
        ds.compress(transfer_syntax, j2k_psnr=[90], generate_instance_uid=False)
        return
    if transfer_syntax == JPEGLSNearLossless:
        ds.compress(transfer_syntax, jls_error=2, generate_instance_uid=False)
        return
    pixels = np.frombuffer(ds.PixelData, "<i2" if ds.PixelRepresentation else "<u2").reshape(
        ds.Rows, ds.Columns
    )
    ds.PixelData = encapsulate([encode_frame(pixels, transfer_syntax, ds.BitsStored)])
    ds["PixelData"].VR = "OB"
    meta.TransferSyntaxUID = UID(transfer_syntax)


def encode_frame(pixels: NDArray[np.integer], transfer_syntax: str, bits: int) -> bytes:
    """One frame through imagecodecs: HTJ2K, JPEG lossless (predictor 1) or 12-bit JPEG Extended."""
    if transfer_syntax == HTJ2KLossless:
        return bytes(imagecodecs.htj2k_encode(pixels, reversible=True))
    if transfer_syntax in (JPEGLossless, JPEGLosslessSV1):
        return bytes(imagecodecs.ljpeg_encode(pixels.view(np.uint16), bitspersample=bits))
    if transfer_syntax == JPEGExtended12Bit:
        return bytes(imagecodecs.jpeg8_encode(pixels.view(np.uint16), level=98, bitspersample=12))
    raise ValueError(f"no encoder for {transfer_syntax}")


def _item(**elements: object) -> DicomSequence:
    ds = Dataset()
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return DicomSequence([ds])


def _dimension(pointer: int, organization: str) -> Dataset:
    ds = Dataset()
    ds.DimensionIndexPointer, ds.FunctionalGroupPointer = pointer, 0x00209111
    ds.DimensionOrganizationUID = organization
    return ds


def _shared_group(first: Dataset, *, legacy: bool) -> Dataset:
    group = Dataset()
    group.PixelMeasuresSequence = _item(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness)
    group.PlaneOrientationSequence = _item(ImageOrientationPatient=first.ImageOrientationPatient)
    group.PixelValueTransformationSequence = _item(
        RescaleSlope=first.RescaleSlope, RescaleIntercept=first.RescaleIntercept, RescaleType="HU"
    )
    kind = [*first.get("ImageType", ["ORIGINAL", "PRIMARY"])[:2], "VOLUME" if not legacy else "AXIAL", "NONE"]
    group.CTImageFrameTypeSequence = _item(
        FrameType=kind,
        PixelPresentation="MONOCHROME",
        VolumetricProperties="VOLUME",
        VolumeBasedCalculationTechnique="NONE",
    )
    region = Dataset()
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = (
        "51185008",
        "SCT",
        "Thoracic structure",
    )
    group.FrameAnatomySequence = _item(AnatomicRegionSequence=DicomSequence([region]), FrameLaterality="U")
    return group


def _frame_group(single: Dataset, number: int) -> Dataset:
    group = Dataset()
    group.PlanePositionSequence = _item(ImagePositionPatient=single.ImagePositionPatient)
    group.FrameContentSequence = _item(
        StackID="1", InStackPositionNumber=number, DimensionIndexValues=[1, number]
    )
    return group
