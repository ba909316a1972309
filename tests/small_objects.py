"""The smallest valid objects that a peer stores: one CT series and a report of the same study."""

from __future__ import annotations

from pathlib import Path

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import Comprehensive3DSRStorage, ExplicitVRLittleEndian

from inference.uids import derived_uid
from pacs_node.destinations import ObjectRef
from tests.ct_factory import make_ct_series, write_series

_COPIED = (
    "SpecificCharacterSet",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)


def write_ct(directory: Path, seed: str = "a", n_slices: int = 3) -> list[Path]:
    """Write a tiny synthetic CT series."""
    return write_series(make_ct_series(n_slices, seed=seed, matrix=16), directory)


def write_sr(directory: Path, seed: str = "a", *, text: str = "Synthetic.") -> Path:
    """Write a Comprehensive 3D SR of the study of ``write_ct`` with the same seed."""
    source = make_ct_series(1, seed=seed, matrix=16)[0]
    report = Dataset()
    for keyword in _COPIED:
        setattr(report, keyword, source.get(keyword, ""))
    report.SOPClassUID = Comprehensive3DSRStorage
    report.SOPInstanceUID = derived_uid("small sr", seed)
    report.SeriesInstanceUID = derived_uid("small sr series", seed)
    report.Modality = "SR"
    report.SeriesNumber = report.InstanceNumber = 1
    report.Manufacturer = "Synthetic"
    report.ContentDate, report.ContentTime = "20260101", "120000"
    report.ReferencedPerformedProcedureStepSequence = Sequence()
    report.PerformedProcedureCodeSequence = Sequence()
    report.CompletionFlag, report.VerificationFlag = "COMPLETE", "UNVERIFIED"
    report.ValueType, report.ContinuityOfContent = "CONTAINER", "SEPARATE"
    report.ConceptNameCodeSequence = Sequence([_code("126000", "Imaging Measurement Report")])
    item = Dataset()
    item.RelationshipType, item.ValueType, item.TextValue = "CONTAINS", "TEXT", text
    item.ConceptNameCodeSequence = Sequence([_code("121106", "Comment")])
    report.ContentSequence = Sequence([item])
    report.file_meta = FileMetaDataset()
    report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "report.dcm"
    report.save_as(path, enforce_file_format=True)
    return path


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code


def reference(dataset: Dataset) -> ObjectRef:
    """The keys of an object for ``Destination.verify``."""
    return ObjectRef(
        str(dataset.StudyInstanceUID),
        str(dataset.SeriesInstanceUID),
        str(dataset.SOPInstanceUID),
        str(dataset.SOPClassUID),
    )
