"""Where results go: the port, what it answers, and a fake for tests.

Two real implementations: `pacs_node.dimse.DimseDestination` (C-STORE) and
`pacs_node.dicomweb.DicomWebDestination` (STOW-RS).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from pydicom import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_file_meta_info

from inference.uids import is_uid

logger = logging.getLogger(__name__)


class OutcomeKind(StrEnum):
    """What the answer for one object means for its delivery."""

    STORED = "stored"
    WARNING_STORED = "warning-stored"
    """Stored, and the receiver says that it changed or doubted something."""
    TRANSIENT = "transient"
    """Not stored; trying again later can help."""
    PERMANENT = "permanent"
    """Not stored; only a person can help."""

    @property
    def stored(self) -> bool:
        """Whether the receiver has the object."""
        return self in (OutcomeKind.STORED, OutcomeKind.WARNING_STORED)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer for one object.

    Parameters
    ----------
    sop_instance_uid
        The object; empty where its file could not be read.
    kind
        What to do next.
    status
        The DICOM status (PS3.4 B.2.3, PS3.7 C) or failure reason (PS3.3 C.14), an HTTP status where only
        that came, None where no answer came.
    detail
        One sentence of ours for a person: no text of the peer, no patient data.
    """

    sop_instance_uid: str
    kind: OutcomeKind
    status: int | None
    detail: str


@dataclass(frozen=True, slots=True)
class EchoResult:
    """Whether a destination answers, how long it took (s), and one sentence."""

    ok: bool
    seconds: float
    detail: str


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """The unique keys of one object from the study down."""

    study_uid: str
    series_uid: str
    sop_instance_uid: str
    sop_class_uid: str


class Destination(Protocol):
    """A place that results are delivered to."""

    @property
    def name(self) -> str:
        """The name in the configuration."""
        ...

    def send(self, paths: Sequence[Path]) -> tuple[Outcome, ...]:
        """Send DICOM files in this order; one outcome for each path, always, in their order.

        Never raises for what a peer, the network or an unreadable file does.
        """
        ...

    def echo(self) -> EchoResult:
        """Ask whether the destination answers, without sending an object."""
        ...

    def verify(self, objects: Sequence[ObjectRef]) -> dict[str, bool | None]:
        """Ask which objects the destination has, by SOP Instance UID; None where it can't tell."""
        ...


class UnreadableFileError(Exception):
    """A file that was to be sent can't be read as a DICOM file; the text says why, without its path.

    Parameters
    ----------
    kind
        TRANSIENT where the disk may recover, PERMANENT where the content is wrong.
    """

    def __init__(self, kind: OutcomeKind, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind

    def outcome(self) -> Outcome:
        """The outcome to report for the file."""
        return Outcome("", self.kind, None, str(self))


def _undecoded_uid(meta: Dataset, keyword: str) -> str:
    """Return a UID without pydicom's decoding, which writes a value that is not valid to the log."""
    if keyword not in meta:
        return ""
    value = meta.get_item(keyword).value
    text = value.decode("ascii", errors="replace") if isinstance(value, bytes) else str(value or "")
    return text.rstrip("\0 ")


@dataclass(frozen=True, slots=True)
class ObjectFile:
    """A DICOM file (PS3.10) and what its File Meta Information says about it."""

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str

    @classmethod
    def read(cls, path: Path) -> ObjectFile:
        """Read only the File Meta Information of `path`.

        Raises
        ------
        UnreadableFileError
            No such file, not PS3.10, or one of the three UIDs is missing.
        """
        try:
            meta = read_file_meta_info(path)
        except FileNotFoundError:
            raise UnreadableFileError(OutcomeKind.PERMANENT, "the file is gone") from None
        except OSError as error:
            sentence = f"the file can't be read ({error.strerror or type(error).__name__})"
            raise UnreadableFileError(OutcomeKind.TRANSIENT, sentence) from error
        except (InvalidDicomError, ValueError, KeyError, EOFError) as error:
            raise UnreadableFileError(OutcomeKind.PERMANENT, "the file is not DICOM") from error
        names = ("MediaStorageSOPClassUID", "MediaStorageSOPInstanceUID", "TransferSyntaxUID")
        uids = [_undecoded_uid(meta, name) for name in names]
        if not all(uids):
            raise UnreadableFileError(OutcomeKind.PERMANENT, "the file has no complete meta information")
        if not all(is_uid(uid) for uid in uids):
            raise UnreadableFileError(OutcomeKind.PERMANENT, "the file has a UID that is not valid")
        return cls(path, *uids)


_STATUS = {
    0x0000: (OutcomeKind.STORED, "stored"),
    0x0001: (OutcomeKind.WARNING_STORED, "stored; optional attributes are not supported"),
    0x0107: (OutcomeKind.WARNING_STORED, "stored; some attributes were not recognised"),
    0x0110: (OutcomeKind.TRANSIENT, "processing failure at the receiver"),
    0x0111: (OutcomeKind.STORED, "the receiver had it already"),
    0x0112: (OutcomeKind.PERMANENT, "no such object"),
    0x0116: (OutcomeKind.WARNING_STORED, "stored; an attribute value is out of range"),
    0x0117: (OutcomeKind.PERMANENT, "the receiver finds the SOP Instance UID invalid"),
    0x0122: (OutcomeKind.PERMANENT, "the receiver does not support the SOP class"),
    0x0124: (OutcomeKind.PERMANENT, "the receiver refused: not authorised"),
    0x0210: (OutcomeKind.TRANSIENT, "the receiver saw the message ID twice"),
    0x0213: (OutcomeKind.TRANSIENT, "the receiver is out of resources"),
    0xB000: (OutcomeKind.WARNING_STORED, "stored; the receiver coerced data elements"),
    0xB006: (OutcomeKind.WARNING_STORED, "stored; the receiver discarded elements"),
    0xB007: (OutcomeKind.WARNING_STORED, "stored; the receiver finds that it does not match its SOP class"),
    0xC122: (OutcomeKind.PERMANENT, "the receiver does not support the transfer syntax"),
    0xFE00: (OutcomeKind.TRANSIENT, "the receiver cancelled"),
}
"""Single values of PS3.7 Annex C, PS3.4 B.2.3 and PS3.4 Table B.2-1 / PS3.18 Failure Reasons."""

_STATUS_RANGES = (
    (0xA700, 0xA7FF, OutcomeKind.TRANSIENT, "the receiver is out of resources"),
    (0xA900, 0xA9FF, OutcomeKind.PERMANENT, "the receiver finds that it does not match its SOP class"),
    (0xB000, 0xBFFF, OutcomeKind.WARNING_STORED, "stored with a warning"),
    (0xC000, 0xCFFF, OutcomeKind.PERMANENT, "the receiver can't understand it"),
    (0x0100, 0x02FF, OutcomeKind.PERMANENT, "the receiver refused the request"),
    (0xA000, 0xAFFF, OutcomeKind.PERMANENT, "the receiver refused it"),
)


def classify_status(status: int) -> tuple[OutcomeKind, str]:
    """Say what a storage status means.

    Parameters
    ----------
    status
        DICOM status of a C-STORE response, or Failure Reason (0008,1197) of a STOW-RS response; both use
        the values of PS3.7 Annex C and PS3.4 B.2.3.

    Returns
    -------
    tuple
        The kind and a clause. A value that no table names is transient: a retry ends in the dead letters,
        a wrong "permanent" would lose the result at once.
    """
    if status in _STATUS:
        return _STATUS[status]
    for low, high, kind, clause in _STATUS_RANGES:
        if low <= status <= high:
            return kind, clause
    return OutcomeKind.TRANSIENT, "a status that no table names"


def outcome_of_status(sop_instance_uid: str, status: int) -> Outcome:
    """Return the outcome that a DICOM status means for one object."""
    kind, clause = classify_status(status)
    return Outcome(sop_instance_uid, kind, status, f"{clause} (status {status:04X}H)")


def log_outcomes(name: str, outcomes: Collection[Outcome]) -> None:
    """Write how many objects destination `name` stored, and each reason why it didn't store another once."""
    stored = sum(outcome.kind.stored for outcome in outcomes)
    logger.info("%s: %d of %d objects stored", name, stored, len(outcomes))
    for detail in sorted({outcome.detail for outcome in outcomes if not outcome.kind.stored}):
        logger.warning("%s: %s", name, detail)


class FakeDestination:
    """A destination that keeps objects in memory and answers by script.

    Parameters
    ----------
    name
        As in the configuration.
    script
        One entry for each object that arrives, in order: a DICOM status (int), or a kind for an answer
        without a status, e.g. ``OutcomeKind.TRANSIENT`` for a broken connection. When it is used up every
        object is stored.
    answers
        False: `echo` fails and `send` gives transient outcomes for all, as if nobody listened.
    can_verify
        False: `verify` answers None for all.

    Attributes
    ----------
    stored
        Bytes of the stored objects by SOP Instance UID. Remove one to play a receiver that lost it.
    attempts
        The SOP Instance UIDs of all objects that arrived, stored or not, in order.
    """

    def __init__(
        self,
        name: str = "fake",
        script: Iterable[int | OutcomeKind] = (),
        *,
        answers: bool = True,
        can_verify: bool = True,
    ) -> None:
        self.name = name
        self.answers = answers
        self.can_verify = can_verify
        self.stored: dict[str, bytes] = {}
        self.attempts: list[str] = []
        self._script = list(script)

    def send(self, paths: Sequence[Path]) -> tuple[Outcome, ...]:
        """Answer each file by the script."""
        return tuple(self._receive(path) for path in paths)

    def _receive(self, path: Path) -> Outcome:
        try:
            file = ObjectFile.read(path)
        except UnreadableFileError as error:
            return error.outcome()
        uid = file.sop_instance_uid
        if not self.answers:
            return Outcome(uid, OutcomeKind.TRANSIENT, None, "nobody listens")
        self.attempts.append(uid)
        entry = self._script.pop(0) if self._script else 0x0000
        if isinstance(entry, OutcomeKind):
            outcome = Outcome(uid, entry, None, "scripted")
        else:
            outcome = outcome_of_status(uid, entry)
        if outcome.kind.stored:
            self.stored[uid] = path.read_bytes()
        return outcome

    def echo(self) -> EchoResult:
        """Say whether it answers."""
        return EchoResult(self.answers, 0.0, "answers" if self.answers else "nobody listens")

    def verify(self, objects: Sequence[ObjectRef]) -> dict[str, bool | None]:
        """Say what it has."""
        tells = self.can_verify and self.answers
        return {
            item.sop_instance_uid: item.sop_instance_uid in self.stored if tells else None for item in objects
        }
