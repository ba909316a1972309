"""The printed report as an Encapsulated PDF (PS3.3 A.45.1), for a PACS that shows no structured report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.uid import EncapsulatedPDFStorage

from dicom_sr.codes import REPORT_TITLE
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
from dicom_sr.pages import to_pdf
from dicom_sr.pairimages import PairImages
from dicom_sr.paper import report_pages
from dicom_sr.source import copied, patient_and_study
from dicom_sr.verify import VerificationError

DOCUMENT_TITLE = "Automatic lung nodule report"
DESCRIPTION = "Automatic lung nodule report, PDF (research use only)"


def print_report(
    summary: dict[str, Any],
    context: ResultContext,
    *,
    key_images: Sequence[KeyImage] = (),
    overview: Path | None = None,
    pairs: Sequence[PairImages] = (),
) -> bytes:
    """Print a result as PDF; the same result gives the same bytes.

    Parameters
    ----------
    summary
        From `dicom_sr.summary.result_json` or `not_analysed_json`.
    pairs
        Pictures of the comparison with a prior examination.
    """
    pages = report_pages(summary, key_images, overview, pairs)
    return to_pdf(pages, title=DOCUMENT_TITLE, created_at=context.created_at)


def build_pdf(
    document: bytes, headers: Sequence[Dataset], context: ResultContext, *, role: str = "pdf"
) -> Dataset:
    """Put a printed report into a DICOM object.

    Parameters
    ----------
    document
        The PDF.
    headers
        Headers of the source series; those that name themselves in full become Source Instances.
    role
        What the UIDs are made of, beside source, input and version.

    Returns
    -------
    Dataset
        Encapsulated PDF Storage, UNVERIFIED, Burned In Annotation YES: its pages name the patient.
    """
    source = headers[0]
    series_uid = str(source.SeriesInstanceUID)
    out = Dataset()
    out.SOPClassUID = EncapsulatedPDFStorage
    out.SOPInstanceUID = context.uid(series_uid, role)
    out.SeriesInstanceUID = context.uid(series_uid, f"{role}-series")
    out.SeriesNumber = context.series_numbers.pdf
    out.InstanceNumber = 1
    out.Modality = "DOC"
    out.ConversionType = "WSD"
    out.SeriesDescription = DESCRIPTION
    out.update(patient_and_study(source))
    stamp(out, context)
    acquired = copied(source, "AcquisitionDateTime")
    out.AcquisitionDateTime = "" if acquired is None else acquired.value
    out.ContributingEquipmentSequence = contributing_equipment(source, context)
    out.BurnedInAnnotation = "YES"
    out.RecognizableVisualFeatures = "NO"
    out.VerificationFlag = "UNVERIFIED"
    out.DocumentTitle = DOCUMENT_TITLE
    out.ConceptNameCodeSequence = [code_item(REPORT_TITLE)]
    instances = dict.fromkeys((sop_class, uid) for _, _, sop_class, uid in instance_ids(headers))
    if instances:
        out.SourceInstanceSequence = [reference(*instance) for instance in instances]
    out.MIMETypeOfEncapsulatedDocument = "application/pdf"
    out.EncapsulatedDocumentLength = len(document)
    out.EncapsulatedDocument = document + b"\x00" * (len(document) % 2)
    finish(out, source)
    return out


def reread_pdf(path: Path, document: bytes, headers: Sequence[Dataset]) -> None:
    """Check that the file holds exactly this document and names every source.

    Raises
    ------
    VerificationError
        With every difference that was found.
    """
    try:
        dataset = dcmread(path)
    except (OSError, InvalidDicomError) as error:
        raise VerificationError([f"{path.name} can't be read back: {error!r}"]) from error
    differences = []
    if dataset.EncapsulatedDocument[: dataset.EncapsulatedDocumentLength] != document:
        differences.append("the encapsulated document isn't the one that was printed")
    if not document.startswith(b"%PDF-"):
        differences.append("the encapsulated document is no PDF")
    named = {row.ReferencedSOPInstanceUID for row in dataset.get("SourceInstanceSequence", ())}
    if named != {uid for *_, uid in instance_ids(headers)}:
        differences.append("the source instances aren't those of the series")
    if differences:
        raise VerificationError(differences)
