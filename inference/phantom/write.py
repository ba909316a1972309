"""Write the phantom as a series of CT Image Storage instances (PS3.3 A.3)."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, ExplicitVRLittleEndian

from inference.phantom.build import Phantom
from inference.uids import derived_uid

_SYNTHETIC = "SYNTHETIC PHANTOM - computed from geometric shapes, no patient"


def write_phantom(
    phantom: Phantom,
    directory: Path | str,
    *,
    patient_id: str = "PHANTOM-0001",
    created: datetime = datetime(2020, 1, 1, 12, 0, 0),  # noqa: DTZ001 - DICOM DA and TM are local time
    transfer_syntax: str = ExplicitVRLittleEndian,
) -> list[Path]:
    """Write one file for each slice.

    Parameters
    ----------
    phantom
        What to write.
    directory
        Made if missing.
    patient_id
        (0010,0020); the UIDs depend on it, so two patients never share a study.
    created
        Study, series and content date and time.
    transfer_syntax
        Any syntax that pydicom can encode here: uncompressed, deflated, RLE, JPEG-LS, JPEG 2000.

    Returns
    -------
    list of Path
        In the order of the volume's slices.

    Raises
    ------
    NotImplementedError, RuntimeError
        From pydicom: it has no encoder for `transfer_syntax`.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(phantom.volume.array.shape[0]):
        dataset = _instance(phantom, number, patient_id, created)
        if transfer_syntax != ExplicitVRLittleEndian:
            _encode(dataset, transfer_syntax)
        path = folder / f"CT{number + 1:04d}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


def _encode(dataset: FileDataset, transfer_syntax: str) -> None:
    syntax = UID(transfer_syntax)
    if syntax.is_encapsulated:
        dataset.compress(syntax, generate_instance_uid=False)
    else:
        dataset.file_meta.TransferSyntaxUID = syntax


def _instance(phantom: Phantom, number: int, patient_id: str, created: datetime) -> FileDataset:
    """One slice as a data set with file meta information."""
    volume = phantom.volume
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(volume.frames[number].sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(derived_uid(volume.frames[number].sop_instance_uid, patient_id))
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", Dataset(), file_meta=meta, preamble=b"\0" * 128)
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    _patient_and_study(dataset, phantom, patient_id, created)
    _series_and_equipment(dataset, phantom, patient_id, created)
    _plane(dataset, phantom, number, created)
    _pixels(dataset, phantom, number)
    return dataset


def _patient_and_study(dataset: Dataset, phantom: Phantom, patient_id: str, created: datetime) -> None:
    dataset.PatientName = "SYNTHETIC^PHANTOM"
    dataset.PatientID = patient_id
    dataset.PatientBirthDate = ""
    dataset.PatientSex = "O"
    dataset.PatientComments = _SYNTHETIC
    dataset.StudyInstanceUID = derived_uid(phantom.volume.study_uid, patient_id)
    dataset.StudyDate = dataset.SeriesDate = created.strftime("%Y%m%d")
    dataset.StudyTime = dataset.SeriesTime = created.strftime("%H%M%S")
    dataset.AccessionNumber = f"SYN{phantom.seed:06d}"
    dataset.StudyID = f"SYN{phantom.seed}"
    dataset.StudyDescription = "SYNTHETIC PHANTOM CHEST CT"
    dataset.ReferringPhysicianName = ""


def _series_and_equipment(dataset: Dataset, phantom: Phantom, patient_id: str, created: datetime) -> None:
    dataset.Modality = "CT"
    dataset.SeriesInstanceUID = derived_uid(phantom.volume.series_uid, patient_id)
    dataset.SeriesNumber = 2
    dataset.SeriesDescription = f"SYNTHETIC PHANTOM CHEST {phantom.kernel.value.upper()}"
    dataset.ProtocolName = "SYNTHETIC PHANTOM CHEST"
    dataset.BodyPartExamined = "CHEST"
    dataset.PatientPosition = "HFS"
    dataset.Manufacturer = "SYNTHETIC (no scanner)"
    dataset.ManufacturerModelName = "SYNTHETIC CHEST PHANTOM"
    dataset.DeviceSerialNumber = f"SEED-{phantom.seed}"
    dataset.SoftwareVersions = "1"
    dataset.FrameOfReferenceUID = derived_uid(phantom.volume.frame_of_reference_uid, patient_id)
    dataset.PositionReferenceIndicator = ""
    dataset.ContentDate = dataset.AcquisitionDate = created.strftime("%Y%m%d")
    dataset.ContentTime = dataset.AcquisitionTime = created.strftime("%H%M%S")


def _plane(dataset: Dataset, phantom: Phantom, number: int, created: datetime) -> None:
    """Image Plane and CT Image modules."""
    volume = phantom.volume
    z, y, x = volume.spacing_mm
    corner = volume.index_to_lps((float(number), 0.0, 0.0))
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.AcquisitionNumber = 1
    # a scan from the head to the feet: instance 1 is the highest slice
    dataset.InstanceNumber = volume.array.shape[0] - number
    dataset.ImageComments = _SYNTHETIC
    dataset.ImagePositionPatient = [f"{value:.4f}" for value in corner]
    dataset.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    dataset.PixelSpacing = [f"{y:.6g}", f"{x:.6g}"]
    dataset.SliceThickness = f"{volume.slice_thickness_mm or z:.6g}"
    dataset.SpacingBetweenSlices = f"{z:.6g}"
    dataset.SliceLocation = f"{corner[2]:.4f}"
    dataset.KVP = "120"
    dataset.XRayTubeCurrent = 100
    dataset.ExposureTime = 500
    dataset.GantryDetectorTilt = "0"
    dataset.ConvolutionKernel = f"SYNTH-{phantom.kernel.value.upper()}"
    dataset.ReconstructionDiameter = f"{volume.array.shape[2] * x:.6g}"
    dataset.InstanceCreationDate = created.strftime("%Y%m%d")
    dataset.InstanceCreationTime = created.strftime("%H%M%S")
    source = Dataset()
    source.CodeValue, source.CodingSchemeDesignator, source.CodeMeaning = "51185008", "SCT", "Chest"
    dataset.AnatomicRegionSequence = DicomSequence([source])


def _pixels(dataset: Dataset, phantom: Phantom, number: int) -> None:
    stored = (phantom.volume.array[number].astype(np.int32) + 1024).clip(0, 4095).astype("<u2")
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "-1024", "1", "HU"
    dataset.WindowCenter, dataset.WindowWidth = ["-600", "40"], ["1500", "400"]
    dataset.WindowCenterWidthExplanation = ["LUNG", "SOFT TISSUE"]
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OW"
