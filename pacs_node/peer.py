"""A receiving peer in one process, for ``pacs-node demo`` and tests. It is not a PACS."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from pydicom import Dataset, dcmread
from pydicom.uid import UID, AllTransferSyntaxes, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.presentation import AllStoragePresentationContexts
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # the module makes its names at import time
    StudyRootQueryRetrieveInformationModelFind,
    Verification,
)

_SYNTAXES = [ExplicitVRLittleEndian, *(uid for uid in AllTransferSyntaxes if uid != ExplicitVRLittleEndian)]
"""In the order of preference: an acceptor takes the first of its own list."""

_PENDING = 0xFF00
_SUCCESS = 0x0000
_OUT_OF_RESOURCES = 0xA700
_CANNOT_UNDERSTAND = 0xC000


@dataclass(frozen=True, slots=True)
class ReceivedObject:
    """One object that arrived, and the file that keeps it.

    Parameters
    ----------
    received_at
        ``time.monotonic()``, s.
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    calling_ae: str
    received_at: float

    def read(self) -> Dataset:
        """Read the file."""
        return dcmread(self.path)


class ReceivingPeer:
    """Listens on a loopback port and keeps what it is sent.

    For demonstrations and tests: it answers C-ECHO, C-STORE of every storage class that pynetdicom knows,
    and C-FIND at the IMAGE level by UIDs; it knows no access control, no durability and no duplicates.

    Parameters
    ----------
    directory
        Where the files go, under names of its own choice; made where it is missing.
    ae_title
        Its AE title. Any called AE title is taken.
    port
        0 lets the system choose a free one; see the attribute `port`.
    on_store
        Called for each arriving object with its SOP Instance UID, from the thread of its association,
        before it is kept; may return another status to answer with, and the object is then not kept.
    """

    def __init__(
        self,
        directory: Path,
        *,
        ae_title: str = "PEER",
        port: int = 0,
        on_store: Callable[[str], int | None] | None = None,
    ) -> None:
        self.directory = directory
        self.ae_title = ae_title
        self.port = port
        self._on_store = on_store
        self._objects: list[ReceivedObject] = []
        self._arrived = threading.Condition()
        self._entity = AE(ae_title=ae_title)
        self._entity.maximum_pdu_size = 131072
        self._entity.network_timeout = 60
        for context in AllStoragePresentationContexts:
            if context.abstract_syntax is not None:
                self._entity.add_supported_context(context.abstract_syntax, _SYNTAXES)
        syntaxes = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
        self._entity.add_supported_context(Verification, syntaxes)
        self._entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind, syntaxes)

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        server = self._entity.start_server(
            ("127.0.0.1", self.port),
            block=False,
            evt_handlers=[(evt.EVT_C_STORE, self._store), (evt.EVT_C_FIND, self._find)],
        )
        if server is not None:
            self.port = int(server.server_address[1])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entity.shutdown()

    @property
    def objects(self) -> list[ReceivedObject]:
        """What has arrived so far, in order; a copy."""
        with self._arrived:
            return list(self._objects)

    def wait_for(self, predicate: Callable[[list[ReceivedObject]], bool], timeout: float) -> bool:
        """Wait until `predicate` holds for `objects`; False when `timeout` seconds passed before."""
        with self._arrived:
            return self._arrived.wait_for(lambda: predicate(list(self._objects)), timeout)

    def _store(self, event: evt.Event) -> int:
        request = cast(C_STORE, event.request)
        sop_class, sop_instance = str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID)
        answer = self._on_store(sop_instance) if self._on_store is not None else None
        if answer is not None:
            return answer
        with self._arrived:
            number = len(self._objects) + 1
            path = self.directory / f"{number:06d}.dcm"
            try:
                # Only our own bytes around the data set: the preamble is 128 zeros (CVE-2019-11687).
                path.write_bytes(event.encoded_dataset())
                header = dcmread(path, stop_before_pixels=True)
                study, series = str(header.StudyInstanceUID), str(header.SeriesInstanceUID)
            except OSError:
                return _OUT_OF_RESOURCES
            except (AttributeError, ValueError, KeyError):
                path.unlink(missing_ok=True)
                return _CANNOT_UNDERSTAND
            calling = str(event.assoc.requestor.ae_title).strip()
            now = time.monotonic()
            self._objects.append(ReceivedObject(path, sop_class, sop_instance, study, series, calling, now))
            self._arrived.notify_all()
        return _SUCCESS

    def _find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        query = event.identifier
        if query.get("QueryRetrieveLevel") != "IMAGE":
            yield _CANNOT_UNDERSTAND, None
            return
        for item in {held.sop_instance_uid: held for held in self.objects}.values():
            keys = {
                "StudyInstanceUID": item.study_uid,
                "SeriesInstanceUID": item.series_uid,
                "SOPInstanceUID": item.sop_instance_uid,
            }
            if all(_matches(query.get(keyword), uid) for keyword, uid in keys.items()):
                yield _PENDING, _identifier(keys)


def _matches(wanted: object, uid: str) -> bool:
    """Single value, list of UID and universal matching (PS3.4 C.2.2.2)."""
    if not wanted:
        return True
    return uid in ([wanted] if isinstance(wanted, str) else list(wanted))  # type: ignore[call-overload]  # MultiValue


def _identifier(keys: dict[str, str]) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "IMAGE"
    for keyword, uid in keys.items():
        setattr(identifier, keyword, UID(uid))
    return identifier
