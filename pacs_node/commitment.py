"""Storage commitment (PS3.4 Annex J): what its messages say, in either role."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from io import BytesIO
from typing import NamedTuple

from pydicom import DataElement, Dataset
from pydicom.config import IGNORE
from pydicom.datadict import tag_for_keyword
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from inference.decode import MALFORMED_FILE
from inference.uids import is_uid

PUSH_MODEL = UID("1.2.840.10008.1.20.1")
"""SOP class; its one instance is `WELL_KNOWN`."""

WELL_KNOWN = UID("1.2.840.10008.1.20.1.1")
TRANSFER_SYNTAXES = (ImplicitVRLittleEndian, ExplicitVRLittleEndian)

REQUEST_COMMITMENT = 1
"""Action Type ID (PS3.4 table J.3-1)."""

ALL_COMMITTED, SOME_FAILED = 1, 2
"""Event Type IDs (PS3.4 table J.3-2)."""

MAX_OBJECTS = 100_000


class FailureReason(IntEnum):
    """(0008,1197) of an object that isn't committed (PS3.3 C.14.1.1)."""

    PROCESSING_FAILURE = 0x0110
    NO_SUCH_OBJECT = 0x0112
    CLASS_INSTANCE_CONFLICT = 0x0119
    CLASS_NOT_SUPPORTED = 0x0122
    DUPLICATE_TRANSACTION = 0x0131
    RESOURCE_LIMITATION = 0x0213


class MalformedNoticeError(ValueError):
    """The data set says nothing that storage commitment knows; the text is a sentence of ours."""


class Reference(NamedTuple):
    """One object that is asked about."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True)
class Request:
    """Action Information of the N-ACTION (PS3.4 J.3.2.1.1.1)."""

    transaction_uid: str
    objects: tuple[Reference, ...]

    def dataset(self) -> Dataset:
        """As it is sent."""
        ds = Dataset()
        ds.add(_uid_element("TransactionUID", self.transaction_uid))
        ds.ReferencedSOPSequence = [_item(reference) for reference in self.objects]
        return ds


@dataclass(frozen=True, slots=True)
class Report:
    """Event Information of the N-EVENT-REPORT (PS3.4 J.3.3.1.1.1).

    Parameters
    ----------
    committed
        What is kept.
    failed
        What isn't, with the Failure Reason of each.
    """

    transaction_uid: str
    committed: tuple[Reference, ...]
    failed: tuple[tuple[Reference, int], ...] = ()

    @property
    def event_type(self) -> int:
        """Event Type ID."""
        return SOME_FAILED if self.failed else ALL_COMMITTED

    def dataset(self) -> Dataset:
        """As it is sent; a sequence without items is left out."""
        ds = Dataset()
        ds.add(_uid_element("TransactionUID", self.transaction_uid))
        if self.committed:
            ds.ReferencedSOPSequence = [_item(reference) for reference in self.committed]
        if self.failed:
            ds.FailedSOPSequence = []
            for reference, reason in self.failed:
                item = _item(reference)
                item.FailureReason = int(reason)
                ds.FailedSOPSequence.append(item)
        return ds


def _item(reference: Reference) -> Dataset:
    item = Dataset()
    item.add(_uid_element("ReferencedSOPClassUID", reference.sop_class_uid))
    item.add(_uid_element("ReferencedSOPInstanceUID", reference.sop_instance_uid))
    return item


def _uid_element(keyword: str, uid: str) -> DataElement:
    """Without pydicom's check, which writes a peer's odd UID to the log; ours is `_check_uid`."""
    return DataElement(tag_for_keyword(keyword) or 0, "UI", uid, validation_mode=IGNORE)


def _uid_of(ds: Dataset, keyword: str) -> str:
    """The same for reading: not decoded by pydicom; empty where it is missing."""
    if keyword not in ds:
        return ""
    value = ds.get_item(keyword).value
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value or "")
    return text.rstrip("\0 ")


def encoded(dataset: Dataset, transfer_syntax_uid: str) -> bytes:
    """Return the bytes of a data set of this module in one of `TRANSFER_SYNTAXES`."""
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, UID(transfer_syntax_uid).is_implicit_VR
    write_dataset(stream, dataset)
    return stream.getvalue()


def read_request(data: bytes | bytearray, transfer_syntax_uid: str) -> Request:
    """Read the data set of an N-ACTION.

    Raises
    ------
    MalformedNoticeError
        It has no transaction, no object, an object without UIDs, or more objects than `MAX_OBJECTS`.
    """
    ds = _read(data, transfer_syntax_uid)
    try:
        objects = tuple(dict.fromkeys(_references(ds, "ReferencedSOPSequence")))
        transaction_uid = _uid_of(ds, "TransactionUID")
    except MalformedNoticeError:
        raise
    except MALFORMED_FILE as error:
        raise MalformedNoticeError("the request can't be parsed") from error
    _check_uid(transaction_uid, "Transaction UID")
    if not objects:
        raise MalformedNoticeError("the request names no object")
    return Request(transaction_uid, objects)


def read_report(data: bytes | bytearray, transfer_syntax_uid: str) -> Report:
    """Read the data set of an N-EVENT-REPORT.

    What stands among the failed isn't committed, wherever else it stands.

    Raises
    ------
    MalformedNoticeError
        It has no transaction, or an object without UIDs.
    """
    return report_of(_read(data, transfer_syntax_uid))


def report_of(ds: Dataset) -> Report:
    """Read a decoded N-EVENT-REPORT; see `read_report`."""
    try:
        reasons = [item.get("FailureReason") for item in ds.get("FailedSOPSequence") or []]
        references = list(_references(ds, "FailedSOPSequence"))
        failed = {
            reference: reason if isinstance(reason, int) else int(FailureReason.PROCESSING_FAILURE)
            for reference, reason in zip(references, reasons, strict=True)
        }
        kept = dict.fromkeys(_references(ds, "ReferencedSOPSequence"))
        transaction_uid = _uid_of(ds, "TransactionUID")
    except MalformedNoticeError:
        raise
    except MALFORMED_FILE as error:
        raise MalformedNoticeError("the report can't be parsed") from error
    _check_uid(transaction_uid, "Transaction UID")
    committed = tuple(reference for reference in kept if reference not in failed)
    return Report(transaction_uid, committed, tuple(failed.items()))


def _read(data: bytes | bytearray, transfer_syntax_uid: str) -> Dataset:
    syntax = UID(transfer_syntax_uid)
    try:
        return read_dataset(
            BytesIO(data),
            is_implicit_VR=syntax.is_implicit_VR,
            is_little_endian=syntax.is_little_endian,
        )
    except MALFORMED_FILE as error:
        raise MalformedNoticeError(f"the data set can't be parsed ({type(error).__name__})") from error


def _references(ds: Dataset, keyword: str) -> Iterator[Reference]:
    items: Sequence[Dataset] = ds.get(keyword) or []
    if len(items) > MAX_OBJECTS:
        raise MalformedNoticeError(f"{len(items)} objects; at most {MAX_OBJECTS} are taken")
    for item in items:
        uids = Reference(_uid_of(item, "ReferencedSOPClassUID"), _uid_of(item, "ReferencedSOPInstanceUID"))
        for uid in uids:
            _check_uid(uid, "Referenced SOP UID")
        yield uids


def _check_uid(uid: str, name: str) -> None:
    if not is_uid(uid):
        raise MalformedNoticeError(f"{name} is missing or no valid UID")
