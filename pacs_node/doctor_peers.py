"""What ``pacs-node doctor`` asks the destinations: whether they answer, and take what we send."""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    generate_uid,
)

from dicom_sr.header import LABEL_MAP_STORAGE
from dicom_sr.profiles import ORDER, Form
from pacs_node import tls
from pacs_node.association import Failure
from pacs_node.commitment import PUSH_MODEL
from pacs_node.config import DicomDestination, DicomWebDestination, Settings
from pacs_node.delivery import make_destination
from pacs_node.destinations import Destination, ObjectRef
from pacs_node.dimse import DimseDestination
from pacs_node.doctor import EXPIRES_SOON
from pacs_node.doctor_findings import Finding, Level
from pacs_node.errors import ConfigurationError
from pacs_node.spool import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

_SYNTAXES = {"Explicit VR Little Endian": ExplicitVRLittleEndian, "Implicit VR": ImplicitVRLittleEndian}
_FIND = UID("1.2.840.10008.5.1.4.1.2.2.1")
_RETRIEVALS = {"c-move": UID("1.2.840.10008.5.1.4.1.2.2.2"), "c-get": UID("1.2.840.10008.5.1.4.1.2.2.3")}
TEST_PATIENT = "PACS-NODE-TEST"
_NOTICE = "Test of pacs-node doctor. No patient, no finding: may be deleted. Not for primary diagnosis."


def check_destination(
    item: DicomDestination | DicomWebDestination, settings: Settings, now: datetime
) -> Iterator[Finding]:
    """Ask one destination; no object is sent."""
    about = f"destination {item.name}"
    destination = _made(item, settings)
    if isinstance(destination, Finding):
        yield destination
        return
    if isinstance(item, DicomDestination) and item.tls_ca_file is not None:
        yield from _peer_certificate(item, settings, now)
    answer = destination.echo()
    took = f"{answer.seconds * 1000:.0f} ms"
    if not answer.ok:
        yield Finding(Level.PROBLEM, about, f"{answer.detail} ({took})", _silent(item, settings))
        return
    yield Finding(Level.GOOD, about, f"{answer.detail} ({took})")
    if isinstance(destination, DimseDestination):
        yield from _accepted(destination, item.forms, about)
        yield from _services(destination, item, settings)
    else:
        sentence = "what it takes is only known when it is sent (STOW-RS negotiates nothing)"
        yield Finding(Level.GOOD, about, f"{sentence}; --send-test {item.name} tries")


def _made(item: DicomDestination | DicomWebDestination, settings: Settings) -> Destination | Finding:
    try:
        return make_destination(item, settings)
    except ConfigurationError as error:
        about = f"destination {item.name}"
        return Finding(Level.PROBLEM, about, str(error), "correct the file named here")


def _silent(item: DicomDestination | DicomWebDestination, settings: Settings) -> str:
    if isinstance(item, DicomWebDestination):
        return f"check url, user and password_file, and that {item.url} can be reached from here"
    ours = item.calling_ae_title or settings.listener.ae_title
    return (
        f"check host, port and ae_title, that {item.host}:{item.port} can be reached from here, and that it "
        f"knows the AE title {ours} with this machine's address"
    )


def sop_class_of(form: Form) -> UID:
    """SOP class of a form of a result."""
    if form.kind == "seg":
        return LABEL_MAP_STORAGE if form.labelmap else SegmentationStorage
    if form.kind == "sr":
        return EnhancedSRStorage if form.enhanced else Comprehensive3DSRStorage
    return {"sc": SecondaryCaptureImageStorage, "pdf": EncapsulatedPDFStorage}[form.kind]


def _accepted(destination: DimseDestination, forms: tuple[str, ...], about: str) -> Iterator[Finding]:
    wanted = {sop_class_of(Form.parse(name)): name for name in (*ORDER, *forms)}
    pairs = [(str(uid), str(syntax)) for uid in wanted for syntax in _SYNTAXES.values()]
    taken = destination.accepted(pairs)
    if isinstance(taken, Failure):
        yield Finding(Level.PROBLEM, about, taken.detail, "try again; look into the destination's log")
        return
    for uid, form in wanted.items():
        names = [name for name, syntax in _SYNTAXES.items() if (str(uid), str(syntax)) in taken]
        if names:
            yield Finding(Level.GOOD, about, f"takes {uid.name} in {' and '.join(names)}")
        elif form in forms:
            todo = f"let it accept SOP class {uid}, or choose another profile or `send` for it"
            yield Finding(Level.PROBLEM, about, f"doesn't take {uid.name}, which it is to get", todo)
        else:
            yield Finding(Level.GOOD, about, f"doesn't take {uid.name}, which it isn't to get")


def _services(
    destination: DimseDestination, item: DicomDestination | DicomWebDestination, settings: Settings
) -> Iterator[Finding]:
    """Ask for the services that the settings rely on, besides storage."""
    about = f"destination {item.name}"
    needed: dict[UID, str] = {}
    if item.verify == "commitment":
        needed[PUSH_MODEL] = 'storage commitment: let it accept that, or set verify = "c-find"'
    if item.verify == "c-find":
        needed[_FIND] = 'queries: let it accept them, or set verify = "none"'
    if settings.archive.destination == item.name:
        needed[_FIND] = "queries (archive.destination names it): let it accept them"
        if way := _RETRIEVALS.get(settings.priors.retrieve):
            name = settings.priors.retrieve.upper()
            needed[way] = f"{name} (priors.retrieve): let it accept that, or choose another way"
    if not needed:
        return
    taken = destination.accepted([(str(uid), str(syntax)) for uid in needed for syntax in _SYNTAXES.values()])
    if isinstance(taken, Failure):
        yield Finding(Level.PROBLEM, about, taken.detail, "try again; look into the destination's log")
        return
    for uid, words in needed.items():
        service, _, todo = words.partition(": ")
        if any(str(uid) == accepted for accepted, _ in taken):
            yield Finding(Level.GOOD, about, f"answers {service}")
        else:
            yield Finding(Level.PROBLEM, about, f"doesn't answer {service}", todo)


def _peer_certificate(item: DicomDestination, settings: Settings, now: datetime) -> Iterator[Finding]:
    files = settings.client_tls_files(item)
    if files is None:
        return
    about = f"destination {item.name}"
    context = tls.client_context(files, about)
    try:
        ends = tls.peer_certificate_ends(context, item.host, item.port, item.tls_server_name or item.host)
    except ssl.SSLCertVerificationError as error:
        todo = "put its certificate or authority into tls_ca_file; its name is held against tls_server_name"
        yield Finding(Level.PROBLEM, about, f"its certificate is not trusted: {error.verify_message}", todo)
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or type(error).__name__
        todo = "check that it speaks TLS on this port and trusts our certificate"
        yield Finding(Level.PROBLEM, about, f"no TLS connection: {reason}", todo)
    else:
        level = Level.WARNING if ends - now < EXPIRES_SOON else Level.GOOD
        todo = "have its certificate renewed" if level is Level.WARNING else ""
        yield Finding(level, about, f"its certificate is valid until {ends:%Y-%m-%d}", todo)


def send_test(
    item: DicomDestination | DicomWebDestination, settings: Settings, now: datetime
) -> Iterator[Finding]:
    """Send a capture and a report about nobody, in a study of their own, and ask for them."""
    about = f"destination {item.name}"
    destination = _made(item, settings)
    if isinstance(destination, Finding):
        yield destination
        return
    study = str(generate_uid())
    with tempfile.TemporaryDirectory() as directory:
        for make in (_test_capture, _test_report):
            ds = make(study, now)
            path = Path(directory) / "test.dcm"
            ds.save_as(path, enforce_file_format=True)
            yield from _send_one(destination, path, ds, about)
    yield Finding(
        Level.GOOD,
        about,
        f"test study {study} of patient {TEST_PATIENT}",
        "delete it there when you have looked at it",
    )


def _send_one(destination: Destination, path: Path, ds: Dataset, about: str) -> Iterator[Finding]:
    what = UID(ds.SOPClassUID).name
    outcome = destination.send([path])[0]
    if not outcome.kind.stored:
        todo = "let it take this SOP class, or send it something else; its log says more"
        yield Finding(Level.PROBLEM, about, f"{what}: {outcome.detail}", todo)
        return
    ref = ObjectRef(ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID, ds.SOPClassUID)
    there = destination.verify([ref])[ref.sop_instance_uid]
    if there:
        yield Finding(Level.GOOD, about, f"{what}: stored, and found there")
    elif there is None:
        todo = 'arrival can\'t be proved: let the destination answer queries, or set verify = "none"'
        yield Finding(Level.WARNING, about, f"{what}: stored; it doesn't answer whether it has it", todo)
    else:
        todo = "look for it there: a filter or a delay may keep it back"
        yield Finding(Level.PROBLEM, about, f"{what}: it says stored, but doesn't find it", todo)


def _test_object(sop_class: UID, study: str, modality: str, now: datetime) -> Dataset:
    """Patient, study, series and equipment (PS3.3 C.7) of an object about nobody."""
    at = now.astimezone(UTC)
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study, generate_uid()
    ds.PatientName, ds.PatientID = "TEST^PACS-NODE", TEST_PATIENT
    ds.PatientBirthDate = ds.PatientSex = ""
    ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = "TEST", "", ""
    ds.StudyDate = ds.ContentDate = at.strftime("%Y%m%d")
    ds.StudyTime = ds.ContentTime = at.strftime("%H%M%S")
    ds.StudyDescription = ds.SeriesDescription = "pacs-node doctor: TEST, may be deleted"
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = modality, 1, 1
    ds.Manufacturer = "pacs-node"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    ds.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return ds


def _test_capture(study: str, now: datetime) -> Dataset:
    """A grey square (PS3.3 A.8.1)."""
    ds = _test_object(SecondaryCaptureImageStorage, study, "OT", now)
    ds.ConversionType, ds.PatientOrientation, ds.Laterality = "WSD", "", ""
    ds.ImageComments = _NOTICE
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows = ds.Columns = 64
    ds.BitsAllocated = ds.BitsStored = 8
    ds.HighBit, ds.PixelRepresentation = 7, 0
    ds.PixelData = bytes([128]) * 64 * 64
    return ds


def _test_report(study: str, now: datetime) -> Dataset:
    """A report with one sentence (PS3.3 A.35.13)."""
    ds = _test_object(Comprehensive3DSRStorage, study, "SR", now)
    ds.ReferencedPerformedProcedureStepSequence, ds.PerformedProcedureCodeSequence = [], []
    ds.CompletionFlag, ds.VerificationFlag = "PARTIAL", "UNVERIFIED"
    ds.ValueType, ds.ContinuityOfContent = "CONTAINER", "SEPARATE"
    ds.ConceptNameCodeSequence = [_code("18748-4", "LN", "Diagnostic imaging report")]
    item = Dataset()
    item.RelationshipType, item.ValueType, item.TextValue = "CONTAINS", "TEXT", _NOTICE
    item.ConceptNameCodeSequence = [_code("121106", "DCM", "Comment")]
    ds.ContentSequence = [item]
    return ds


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    ds = Dataset()
    ds.CodeValue, ds.CodingSchemeDesignator, ds.CodeMeaning = value, scheme, meaning
    return ds
