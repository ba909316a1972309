"""Pictures of a result as Secondary Captures (PS3.3 A.8.1), for a PACS that shows neither SEG nor SR.

Single-frame RGB, uncompressed: what every archive takes. Weasis, for one, lists Secondary Capture Image
Storage among its default storage classes, but not the Multi-frame True Color one. The pictures have no
pixel spacing: a page, or a slice beside its enlargements, can't be measured in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.sr.coding import Code
from pydicom.uid import SecondaryCaptureImageStorage

from dicom_sr.context import ResultContext
from dicom_sr.header import (
    code_item,
    contributing_equipment,
    finish,
    instance_ids,
    reference,
    stamp,
)
from dicom_sr.keyimages import KeyImage
from dicom_sr.pages import to_pixels
from dicom_sr.paper import summary_pages
from dicom_sr.source import copied, patient_and_study
from dicom_sr.verify import VerificationError
from inference.types import SourceFrame, Volume

DESCRIPTION = "Automatic lung nodules, pictures (research use only)"
SOURCE_IMAGE = Code("121322", "DCM", "Source image for image processing operation")


@dataclass(frozen=True, slots=True)
class Capture:
    """One picture and what it was made of.

    Parameters
    ----------
    pixels
        RGB, shape (rows, columns, 3).
    sources
        The images that it shows or speaks of.
    derivation
        How it was made, at most 1024 characters.
    comment
        What it says, as text.
    orientation
        Directions of rows and columns (0020,0020), e.g. ``("L", "P")``; None for a page of text.
    names_patient
        Whether the pixels identify the patient: Burned In Annotation (0028,0301).
    """

    pixels: NDArray[np.uint8]
    sources: tuple[SourceFrame, ...]
    derivation: str
    comment: str
    orientation: tuple[str, str] | None
    names_patient: bool


def capture_result(
    summary: Mapping[str, Any],
    sources: Sequence[SourceFrame],
    volume: Volume | None = None,
    key_images: Sequence[KeyImage] = (),
) -> list[Capture]:
    """Take the summary page and then each key image.

    Parameters
    ----------
    summary
        From `dicom_sr.summary.result_json` or `not_analysed_json`.
    sources
        What the summary speaks of.
    volume
        What the key images are slices of; None where there are none.
    """
    out = [
        Capture(
            to_pixels(page),
            tuple(sources),
            "Page of text that sums up an automatic analysis of the source images.",
            f"{summary['notice']} Page {number} of the summary.",
            None,
            names_patient=True,
        )
        for number, page in enumerate(summary_pages(summary), start=1)
    ]
    if volume is not None:
        out += [_key_slice(image, volume.frames[image.slice_index]) for image in key_images]
    return out


def source_frames(headers: Sequence[Dataset]) -> tuple[SourceFrame, ...]:
    """The instances of a series that name themselves in full, for a result without a volume."""
    return tuple(SourceFrame(sop_class, uid) for _, _, sop_class, uid in instance_ids(headers))


def build_captures(
    captures: Sequence[Capture], header: Dataset, context: ResultContext, *, role: str = "sc"
) -> list[Dataset]:
    """Build one object for each picture, all in one series.

    Parameters
    ----------
    header
        Of the source series, without pixel data.
    role
        What the UIDs are made of, beside source, input and version.

    Returns
    -------
    list of Dataset
        Secondary Capture Image Storage, Explicit VR Little Endian, with file meta information.
    """
    return [_object(capture, n, header, context, role) for n, capture in enumerate(captures, start=1)]


def reread_captures(paths: Sequence[Path], captures: Sequence[Capture]) -> None:
    """Check pixels, sources and annotation flag of the written files.

    Raises
    ------
    VerificationError
        With every difference that was found.
    """
    differences = []
    for path, capture in zip(paths, captures, strict=True):
        try:
            dataset = dcmread(path)
            pixels = dataset.pixel_array
        except (OSError, InvalidDicomError, AttributeError, ValueError, RuntimeError) as error:
            raise VerificationError([f"{path.name} can't be read back: {error!r}"]) from error
        if not np.array_equal(pixels, capture.pixels):
            differences.append(f"{path.name} shows other pixels than were drawn")
        named = {row.ReferencedSOPInstanceUID for row in dataset.get("SourceImageSequence", ())}
        if named != {frame.sop_instance_uid for frame in capture.sources}:
            differences.append(f"{path.name} names other sources than it was made of")
        if (dataset.BurnedInAnnotation == "YES") != capture.names_patient:
            differences.append(f"{path.name} is wrong about what is burned in")
    if differences:
        raise VerificationError(differences)


def _key_slice(image: KeyImage, frame: SourceFrame) -> Capture:
    with Image.open(image.path) as picture:
        pixels = np.array(picture.convert("RGB"))
    return Capture(
        pixels,
        (frame,),
        "Slice in a lung window beside two enlargements, with the outline of the automatic segmentation.",
        image.caption,
        ("L", "P"),
        names_patient=False,
    )


def _object(capture: Capture, number: int, header: Dataset, context: ResultContext, role: str) -> Dataset:
    series_uid = str(header.SeriesInstanceUID)
    out = Dataset()
    out.SOPClassUID = SecondaryCaptureImageStorage
    out.SOPInstanceUID = context.uid(series_uid, f"{role}-{number}")
    out.SeriesInstanceUID = context.uid(series_uid, f"{role}-series")
    out.SeriesNumber = context.series_numbers.sc
    out.InstanceNumber = number
    out.Modality = "OT"
    out.ConversionType = "WSD"
    out.ImageType = ["DERIVED", "SECONDARY"]
    out.SeriesDescription = DESCRIPTION
    _body_part(out, header)
    out.update(patient_and_study(header))
    stamp(out, context)
    out.ContributingEquipmentSequence = contributing_equipment(header, context)
    out.DerivationDescription = capture.derivation
    out.ImageComments = capture.comment[:10240]
    out.PatientOrientation = list(capture.orientation) if capture.orientation else ""
    out.BurnedInAnnotation = "YES" if capture.names_patient else "NO"
    out.RecognizableVisualFeatures = "NO"
    _refer(out, capture.sources, series_uid)
    _lossy(out, header)
    _pixels(out, capture.pixels)
    finish(out, header)
    return out


def _body_part(out: Dataset, header: Dataset) -> None:
    """As the source says; without a body part nobody knows whether it is paired: Laterality is unknown."""
    for keyword in ("BodyPartExamined", "Laterality"):
        if (element := copied(header, keyword)) is not None:
            out.add(element)
    if "BodyPartExamined" not in out and "Laterality" not in out:
        out.Laterality = ""


def _refer(out: Dataset, sources: Sequence[SourceFrame], series_uid: str) -> None:
    """General Reference and Common Instance Reference (PS3.3 C.12.4, C.12.2)."""
    frames: dict[tuple[str, str], list[int]] = {}
    for frame in sources:
        numbers = frames.setdefault((frame.sop_class_uid, frame.sop_instance_uid), [])
        if frame.frame_number is not None:
            numbers.append(frame.frame_number)
    if not frames:
        return
    out.SourceImageSequence = []
    for instance, numbers in frames.items():
        item = reference(*instance)
        if numbers:
            item.ReferencedFrameNumber = numbers
        item.PurposeOfReferenceCodeSequence = [code_item(SOURCE_IMAGE)]
        out.SourceImageSequence.append(item)
    series = Dataset()
    series.SeriesInstanceUID = series_uid
    series.ReferencedInstanceSequence = [reference(*instance) for instance in frames]
    out.ReferencedSeriesSequence = [series]


def _lossy(out: Dataset, header: Dataset) -> None:
    """Once lossy, always lossy (PS3.3 C.7.6.1.1.5)."""
    out.LossyImageCompression = "00"
    for keyword in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if header.get("LossyImageCompression") == "01" and (element := copied(header, keyword)) is not None:
            out.add(element)


def _pixels(out: Dataset, pixels: NDArray[np.uint8]) -> None:
    out.Rows, out.Columns, out.SamplesPerPixel = pixels.shape
    out.PhotometricInterpretation = "RGB"
    out.PlanarConfiguration = 0
    out.BitsAllocated = out.BitsStored = 8
    out.HighBit = 7
    out.PixelRepresentation = 0
    data = pixels.tobytes()
    out.PixelData = data + b"\x00" * (len(data) % 2)
    out["PixelData"].VR = "OB"
