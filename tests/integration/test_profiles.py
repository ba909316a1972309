"""What arrives where, and that it is valid: the objects of every profile, real validators, real peers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import requests
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.uid import (
    BasicTextSRStorage,
    EncapsulatedPDFStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
)

from dicom_sr.profiles import PROFILES, chosen, form_name
from inference.errors import ReasonCode
from pacs_node.destinations import Destination, ObjectRef, OutcomeKind
from pacs_node.dicomweb import DicomWebDestination
from pacs_node.dimse import DimseDestination
from pacs_node.request import CaseFile, CaseOutcome, Refusal
from tests.ct_factory import write_series
from tests.packed_case import FORMS, SERIES, packing
from tests.peers import Orthanc, orthanc, storescp

VERIFICATION = "1.2.840.10008.1.1"
#: What a peer that knows neither SEG nor Comprehensive SR takes; these stand in Weasis's default list too.
OLD_CLASSES = (
    SecondaryCaptureImageStorage,
    BasicTextSRStorage,
    EnhancedSRStorage,
    EncapsulatedPDFStorage,
)
LEGACY = ("seg", "sr:enhanced", "sc", "sc", "sc", "pdf")
#: As in test_validators: Device UID in Contributing Equipment, which IHE AIR asks for.
WAIVED = ("UI Device UID", "this is a Standard Extended SOP Class")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CaseOutcome]:
    """Every form of a result with two findings, and of one that was not analysed."""
    with packing(tmp_path_factory.mktemp("results")) as pack:
        refusal = Refusal(ReasonCode.TOO_THICK, "The slices are 8 mm thick.")
        return {"analysed": pack(FORMS), "refused": pack(FORMS, refusal=refusal)}


def goes_to(profile: str, outcome: CaseOutcome) -> list[CaseFile]:
    objects = [file for file in outcome.files if file.sop_instance_uid is not None]
    forms = {form_name(file.kind, file.encoding) for file in objects}
    wanted = chosen(PROFILES[profile].forms, forms)
    return [file for file in objects if form_name(file.kind, file.encoding) in wanted]


def form_names(files: list[CaseFile]) -> tuple[str, ...]:
    return tuple(form_name(file.kind, file.encoding) for file in files)


def complaints(path: Path) -> list[str]:
    done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False, timeout=60)
    lines = (done.stdout + done.stderr).splitlines()
    return [
        line for line in lines if line.startswith(("Error", "Warning")) and not line.strip().endswith(WAIVED)
    ]


@pytest.mark.peer("dciodvfy")
@pytest.mark.parametrize("status", ["analysed", "refused"])
def test_pictures_and_document_are_valid(status: str, outcomes: Mapping[str, CaseOutcome]) -> None:
    files = [file for file in outcomes[status].files if file.kind in {"sc", "pdf"}]
    assert len(files) == {"analysed": 4, "refused": 2}[status]
    assert {file.path.name: complaints(file.path) for file in files} == {file.path.name: [] for file in files}


@pytest.mark.peer("dciodvfy")
@pytest.mark.parametrize(
    ("name", "keyword"), [("sc-01.dcm", "ConversionType"), ("pdf.dcm", "BurnedInAnnotation")]
)
def test_the_validator_would_notice(
    name: str, keyword: str, outcomes: Mapping[str, CaseOutcome], tmp_path: Path
) -> None:
    ds = dcmread(next(file.path for file in outcomes["analysed"].files if file.path.name == name))
    del ds[keyword]
    ds.save_as(tmp_path / name)
    assert any(line.startswith("Error") for line in complaints(tmp_path / name))


@pytest.mark.peer("dcentvfy")
def test_all_objects_of_the_study_agree_about_patient_and_study(
    outcomes: Mapping[str, CaseOutcome], tmp_path: Path
) -> None:
    source = write_series(SERIES, tmp_path)
    made = [file.path for file in goes_to("legacy", outcomes["analysed"])]
    done = subprocess.run(
        ["dcentvfy", *source, *made], capture_output=True, text=True, check=False, timeout=60
    )
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    assert [line for line in lines if "Accession" not in line] == []


def association_profile(directory: Path) -> Path:
    """DCMTK's own way to say what a peer accepts."""
    classes = (VERIFICATION, *OLD_CLASSES)
    lines = ["[[TransferSyntaxes]]", "[Plain]"]
    lines += [
        f"TransferSyntax{n} = {uid}"
        for n, uid in enumerate((ExplicitVRLittleEndian, ImplicitVRLittleEndian), 1)
    ]
    lines += ["[[PresentationContexts]]", "[Old]"]
    lines += [f"PresentationContext{n} = {uid}\\Plain" for n, uid in enumerate(classes, 1)]
    lines += ["[[Profiles]]", "[Old]", "PresentationContexts = Old"]
    path = directory / "storescp.cfg"
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
    return path


@pytest.mark.peer("storescp", "echoscu")
def test_what_an_old_peer_takes_of_each_profile_and_that_the_rest_is_named(
    outcomes: Mapping[str, CaseOutcome], tmp_path: Path
) -> None:
    stored, refused, arrived = {}, {}, set()
    with storescp(tmp_path / "peer", "-xf", str(association_profile(tmp_path)), "Old") as peer:
        destination = DimseDestination("old", "127.0.0.1", peer.port, "OLD", "NODE", verify="none")
        for profile in PROFILES:
            files = goes_to(profile, outcomes["analysed"])
            answers = destination.send([file.path for file in files])
            names = form_names(files)
            stored[profile] = [n for n, a in zip(names, answers, strict=True) if a.kind is OutcomeKind.STORED]
            refused[profile] = {n: a for n, a in zip(names, answers, strict=True) if not a.kind.stored}
            arrived |= {a.sop_instance_uid for a in answers if a.kind.stored}
        received = {str(dcmread(path).SOPInstanceUID) for path in peer.files()}
    assert stored == {
        "standard": [],
        "ohif": [],
        "slicer": [],
        "weasis": ["sr:enhanced"],
        "legacy": ["sr:enhanced", "sc", "sc", "sc", "pdf"],
    }
    assert received == arrived
    assert {name for profile in refused.values() for name in profile} == {
        "seg",
        "sr",
        "seg:all-frames",
        "sr:all-frames",
    }
    for unwanted in refused.values():
        for name, answer in unwanted.items():
            what = "Segmentation Storage" if name.startswith("seg") else "Comprehensive 3D SR Storage"
            assert answer.kind is OutcomeKind.PERMANENT
            assert f"accepts no presentation context for {what}" in answer.detail


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as running:
        yield running


def preview(pacs: Orthanc, row: Mapping[str, str]) -> NDArray[np.uint8]:
    answer = requests.get(f"{pacs.url}/instances/{row['OrthancID']}/preview", timeout=30)
    with Image.open(BytesIO(answer.content)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.peer("orthanc", "orthanc-dicomweb")
@pytest.mark.parametrize("way", ["dimse", "web"])
def test_a_pacs_gets_all_of_a_legacy_result_and_shows_it(
    way: str, pacs: Orthanc, outcomes: Mapping[str, CaseOutcome]
) -> None:
    destination: Destination = (
        DimseDestination("pacs", "127.0.0.1", pacs.dicom_port, pacs.ae_title, "NODE")
        if way == "dimse"
        else DicomWebDestination("pacs", pacs.dicomweb_url)
    )
    files = goes_to("legacy", outcomes["analysed"])
    assert form_names(files) == LEGACY
    objects = [dcmread(file.path) for file in files]
    answers = destination.send([file.path for file in files])
    assert {answer.kind for answer in answers} == {OutcomeKind.STORED}
    assert set(destination.verify([key(ds) for ds in objects]).values()) == {True}
    there = {row["SOPInstanceUID"]: row for row in pacs.instances(str(objects[0].StudyInstanceUID))}
    assert set(there) == {str(ds.SOPInstanceUID) for ds in objects}
    assert len(pacs.series(str(objects[0].StudyInstanceUID))) == 4
    for ds in objects:
        row = there[str(ds.SOPInstanceUID)]
        assert dcmread(BytesIO(pacs.file(row["OrthancID"]))) == ds
        if ds.SOPClassUID == SecondaryCaptureImageStorage:
            assert np.array_equal(preview(pacs, row), ds.pixel_array)
        if ds.SOPClassUID == EncapsulatedPDFStorage:
            document = requests.get(f"{pacs.url}/instances/{row['OrthancID']}/pdf", timeout=30).content
            assert document == ds.EncapsulatedDocument[: len(document)]
            assert len(document) >= ds.EncapsulatedDocumentLength
    pacs.clear()


def key(ds: Dataset) -> ObjectRef:
    return ObjectRef(
        str(ds.StudyInstanceUID), str(ds.SeriesInstanceUID), str(ds.SOPInstanceUID), str(ds.SOPClassUID)
    )
