from __future__ import annotations

from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from dicom_sr.part10 import encode, save
from dicom_sr.pdf import build_pdf, print_report, reread_pdf
from dicom_sr.summary import not_analysed_json
from dicom_sr.verify import VerificationError
from tests.ct_factory import make_ct_series
from tests.finding_factory import make_context, without_pixels

CONTEXT = make_context()
#: not a PDF in full: only what these tests look at; of odd length
DOCUMENT = b"%PDF-1.4 document"


@pytest.fixture(scope="module")
def headers() -> list[Dataset]:
    return without_pixels(make_ct_series(3, matrix=8))


def test_the_document_comes_back_byte_for_byte(headers: list[Dataset], tmp_path: Path) -> None:
    ds = build_pdf(DOCUMENT, headers, CONTEXT)
    save(ds, tmp_path / "pdf.dcm")
    read = dcmread(tmp_path / "pdf.dcm")
    assert len(read.EncapsulatedDocument) == 18
    assert read.EncapsulatedDocument[: read.EncapsulatedDocumentLength] == DOCUMENT
    assert read.MIMETypeOfEncapsulatedDocument == "application/pdf"
    reread_pdf(tmp_path / "pdf.dcm", DOCUMENT, headers)


def test_it_is_a_document_of_the_study_that_nobody_reviewed(headers: list[Dataset]) -> None:
    ds = build_pdf(DOCUMENT, headers, CONTEXT)
    assert (ds.Modality, ds.VerificationFlag, ds.BurnedInAnnotation) == ("DOC", "UNVERIFIED", "YES")
    assert (ds.PatientID, ds.StudyInstanceUID) == (headers[0].PatientID, headers[0].StudyInstanceUID)
    assert ds.SeriesInstanceUID == CONTEXT.uid(headers[0].SeriesInstanceUID, "pdf-series")
    assert ds.SeriesNumber == 1004
    assert "research use only" in ds.SeriesDescription
    assert [row.ReferencedSOPInstanceUID for row in ds.SourceInstanceSequence] == [
        header.SOPInstanceUID for header in headers
    ]


def test_the_same_result_is_the_same_bytes(headers: list[Dataset]) -> None:
    assert encode(build_pdf(DOCUMENT, headers, CONTEXT)) == encode(build_pdf(DOCUMENT, headers, CONTEXT))
    other = build_pdf(DOCUMENT, headers, make_context(input_digest="d2" * 32))
    assert other.SOPInstanceUID != build_pdf(DOCUMENT, headers, CONTEXT).SOPInstanceUID


def test_the_printed_report_goes_in_whole(headers: list[Dataset], tmp_path: Path) -> None:
    summary = not_analysed_json(headers, "TOO_THICK", "The slices are 8 mm thick.", CONTEXT)
    document = print_report(summary, CONTEXT)
    assert document.startswith(b"%PDF-")
    save(build_pdf(document, headers, CONTEXT), tmp_path / "pdf.dcm")
    reread_pdf(tmp_path / "pdf.dcm", document, headers)


@pytest.mark.parametrize("what", ["document", "sources", "file", "kind"])
def test_a_wrong_file_is_noticed(headers: list[Dataset], tmp_path: Path, what: str) -> None:
    path = tmp_path / "pdf.dcm"
    document = b"nothing that a reader opens" if what == "kind" else DOCUMENT
    ds = build_pdf(document, headers, CONTEXT)
    if what == "document":
        ds.EncapsulatedDocument = b"%PDF-1.4 DOCUMENT\x00"
    elif what == "sources":
        del ds.SourceInstanceSequence[1]
    save(ds, path)
    if what == "file":
        path.write_bytes(b"nothing")
    with pytest.raises(VerificationError):
        reread_pdf(path, document, headers)
