"""Write an object as a DICOM file: the same dataset always gives the same bytes."""

from __future__ import annotations

import hashlib
import os
from io import BytesIO
from pathlib import Path

from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from inference.uids import derived_uid

IMPLEMENTATION_CLASS_UID = UID(derived_uid("pacs-node", "implementation"))
IMPLEMENTATION_VERSION_NAME = "PACS_NODE"


def file_meta(dataset: Dataset) -> FileMetaDataset:
    """Complete file meta information for Explicit VR Little Endian (PS3.10 section 7.1)."""
    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(dataset.SOPClassUID)
    meta.MediaStorageSOPInstanceUID = UID(dataset.SOPInstanceUID)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
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
