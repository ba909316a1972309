"""The objects to be checked: their path, header and kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

SEG, LABELMAP, SR, SC, PDF, CT, OTHER = "SEG", "LABELMAP", "SR", "SC", "PDF", "CT", "other"
KINDS = (SEG, LABELMAP, SR, SC, PDF, CT, OTHER)

_STORAGE = "1.2.840.10008.5.1.4.1.1"
LABEL_MAP_STORAGE = f"{_STORAGE}.66.7"
_KIND_OF_CLASS = {
    f"{_STORAGE}.66.4": SEG,
    LABEL_MAP_STORAGE: LABELMAP,
    f"{_STORAGE}.7": SC,
    f"{_STORAGE}.7.2": SC,
    f"{_STORAGE}.7.4": SC,
    f"{_STORAGE}.104.1": PDF,
    f"{_STORAGE}.2": CT,
    f"{_STORAGE}.2.1": CT,
    f"{_STORAGE}.2.2": CT,
}
_SR_CLASSES = f"{_STORAGE}.88."
_KEY_OBJECT_SELECTION = f"{_STORAGE}.88.59"


@dataclass(frozen=True, slots=True)
class Subject:
    """A file that is checked.

    Parameters
    ----------
    path
        The file.
    header
        Its data set without pixel data.
    kind
        One of `KINDS`.
    context
        It only stands beside the objects that are checked, such as the source CT: tools that look at a whole
        study read it, no other does.
    """

    path: Path
    header: Dataset
    kind: str
    context: bool = False


def kind_of(sop_class_uid: str) -> str:
    """Name the kind of object that a storage SOP class makes (PS3.4 B.5)."""
    if sop_class_uid.startswith(_SR_CLASSES) and sop_class_uid != _KEY_OBJECT_SELECTION:
        return SR
    return _KIND_OF_CLASS.get(sop_class_uid, OTHER)


def read_subject(path: Path, *, context: bool = False) -> Subject:
    """Read one file.

    Raises
    ------
    ValueError
        The file is no DICOM file.
    """
    try:
        header = dcmread(path, stop_before_pixels=True)
    except InvalidDicomError as error:
        raise ValueError(f"{path} is no DICOM file") from error
    return Subject(path, header, kind_of(str(header.get("SOPClassUID", ""))), context)


def read_subjects(paths: Iterable[Path], *, context: Iterable[Path] = ()) -> Iterator[Subject]:
    """Read files and, through all their folders, the DICOM files of folders.

    Raises
    ------
    ValueError
        A file that was named itself is no DICOM file.
    """
    for named, beside in ((paths, False), (context, True)):
        for path in named:
            yield from _below(path, beside) if path.is_dir() else (read_subject(path, context=beside),)


def _below(directory: Path, context: bool) -> Iterator[Subject]:
    for path in sorted(item for item in directory.rglob("*") if item.is_file()):
        try:
            yield read_subject(path, context=context)
        except ValueError:
            continue
