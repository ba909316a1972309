"""Write an object as a DICOM file: the same dataset always gives the same bytes."""

from __future__ import annotations

import hashlib
import os
from io import BytesIO
from pathlib import Path

from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

IMPLEMENTATION_CLASS_UID = UID("2.25.184562349201867712354298617237645120934")
"""Of this software (PS3.7 D.3.3.2): in all files and in all associations, of every version the same."""


def implementation_version_name(software_version: str) -> str:
    """Implementation Version Name of a version, at most 16 characters (PS3.7 D.3.3.2.4)."""
    return f"PACSNODE_{software_version}"[:16]


def file_meta(dataset: Dataset) -> FileMetaDataset:
    """Complete file meta information for Explicit VR Little Endian (PS3.10 section 7.1)."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(dataset.SOPClassUID)
    meta.MediaStorageSOPInstanceUID = UID(dataset.SOPInstanceUID)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = implementation_version_name(str(dataset.get("SoftwareVersions") or ""))
    return meta


def encode(dataset: Dataset) -> bytes:
    """The object as Part 10 bytes with a zero preamble."""
    plain = Dataset(dataset)
    plain.file_meta = file_meta(dataset)
    plain.preamble = b"\x00" * 128
    buffer = BytesIO()
    dcmwrite(buffer, plain, enforce_file_format=True)
    return buffer.getvalue()


def save(dataset: Dataset, path: Path) -> str:
    """Write `dataset` to `path` durably (fsync of the file and its folder) and return its sha256.

    The file appears complete or not at all: it is written beside `path` and renamed.

    Returns
    -------
    str
        Hex digest of the file's bytes.
    """
    content = encode(dataset)
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return hashlib.sha256(content).hexdigest()
