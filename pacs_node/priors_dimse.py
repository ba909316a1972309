"""Earlier examinations from an archive that speaks DIMSE: C-FIND to find, C-GET or C-MOVE to fetch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

from pydicom import Dataset
from pynetdicom import evt
from pynetdicom.presentation import build_context, build_role
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # the module makes its names at import time
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from inference.decode import DECODABLE_TRANSFER_SYNTAXES
from inference.same_patient import Identity
from inference.select import CT_STORAGE
from pacs_node.archive import ArchiveError, day_of
from pacs_node.archive_dimse import DimseArchive, number_of, query_for, text_of, texts_of
from pacs_node.association import Link, Peer
from pacs_node.destinations import OutcomeKind
from pacs_node.errors import NodeError
from pacs_node.priors_archive import FoundExamination, FoundSeries, Patience
from pacs_node.priors_move import MoveReceiver, MoveSettings
from pacs_node.priors_store import PriorFolder

_OUT_OF_RESOURCES = 0xA700
_IDENTITY = ("PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientName")


class DimsePriors:
    """An archive that is asked by C-FIND.

    Parameters
    ----------
    name
        Of the destination in the configuration.
    peer
        Where it listens.
    seconds
        For one question.
    move
        Where it is to send to by C-MOVE; None to fetch by C-GET.
    """

    def __init__(self, name: str, peer: Peer, seconds: float, move: MoveSettings | None = None) -> None:
        self.name = name
        self._peer, self._move = peer, move
        self._archive = DimseArchive(name, peer, seconds)

    def examinations(self, patient_id: str, first: date, last: date) -> list[FoundExamination]:
        """Ask at the STUDY level for the studies of a patient ID."""
        keys = dict.fromkeys(
            ("StudyInstanceUID", *_IDENTITY, "ModalitiesInStudy", "StudyDescription"), ""
        ) | {"PatientID": patient_id, "StudyDate": f"{first:%Y%m%d}-{last:%Y%m%d}"}
        return [
            FoundExamination(
                text_of(match, "StudyInstanceUID"),
                day_of(text_of(match, "StudyDate")),
                Identity(*(text_of(match, keyword).strip() for keyword in _IDENTITY)),
                texts_of(match, "ModalitiesInStudy"),
                text_of(match, "StudyDescription"),
            )
            for match in self._archive.find(query_for("STUDY", keys))
        ]

    def series(self, study_uid: str) -> list[FoundSeries]:
        """Ask at the SERIES level."""
        keys = dict.fromkeys(("SeriesInstanceUID", "Modality", "NumberOfSeriesRelatedInstances"), "")
        query = query_for("SERIES", {"StudyInstanceUID": study_uid} | keys)
        return [
            FoundSeries(
                text_of(match, "SeriesInstanceUID"),
                text_of(match, "Modality"),
                number_of(match, "NumberOfSeriesRelatedInstances"),
            )
            for match in self._archive.find(query)
        ]

    def images(self, study_uid: str, series_uid: str) -> list[str]:
        """Ask at the IMAGE level."""
        keys = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": series_uid, "SOPInstanceUID": ""}
        return [text_of(match, "SOPInstanceUID") for match in self._archive.find(query_for("IMAGE", keys))]

    def fetch(
        self, study_uid: str, series_uid: str, images: Sequence[str], folder: PriorFolder, patience: Patience
    ) -> list[Path]:
        """Fetch one image at the IMAGE level, more as their series."""
        keys = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": series_uid}
        query = query_for("SERIES", keys)
        if len(images) == 1:
            query = query_for("IMAGE", keys | {"SOPInstanceUID": images[0]})
        if self._move is None:
            return self._get(query, folder, patience)
        return self._moved(query, images, self._move, folder, patience)

    def _get(self, query: Dataset, folder: PriorFolder, patience: Patience) -> list[Path]:
        kept = _Kept(folder)
        model = StudyRootQueryRetrieveInformationModelGet
        # one context for each syntax, so that the archive need not encode anew what it has
        contexts = [
            build_context(uid, syntax) for uid in CT_STORAGE for syntax in DECODABLE_TRANSFER_SYNTAXES
        ]
        seconds = patience.left()
        with Link(
            self._patient_peer(seconds),
            [build_context(model), *contexts],
            seconds,
            ext_neg=[build_role(uid, scp_role=True) for uid in CT_STORAGE],
            handlers=[(evt.EVT_C_STORE, kept.take), (evt.EVT_DATA_RECV, kept.count)],
        ) as link:
            if link.failure is not None or link.association is None:
                failure = link.failure or link.broken()
                raise ArchiveError(failure.kind, failure.detail)
            try:
                answers = link.association.send_c_get(query, model)
                status = _last_status(answers, kept, link, patience)
            except (RuntimeError, ValueError):  # not accepted, or ended meanwhile
                status = None
            kept.check()
            _check_status(status, link)
        return kept.paths

    def _moved(
        self,
        query: Dataset,
        images: Sequence[str],
        move: MoveSettings,
        folder: PriorFolder,
        patience: Patience,
    ) -> list[Path]:
        model = StudyRootQueryRetrieveInformationModelMove
        with MoveReceiver(move, self._peer, images, folder, patience) as receiver:
            seconds = patience.left()
            with Link(self._patient_peer(seconds), [build_context(model)], seconds) as link:
                if link.failure is not None or link.association is None:
                    failure = link.failure or link.broken()
                    raise ArchiveError(failure.kind, failure.detail)
                try:
                    answers = link.association.send_c_move(query, move.ae_title, model)
                    status = _last_status(answers, receiver, link, patience)
                except (RuntimeError, ValueError):  # not accepted, or ended meanwhile
                    status = None
                receiver.check()
                _check_status(status, link)
            return receiver.paths()

    def _patient_peer(self, seconds: float) -> Peer:
        """An archive may say nothing while it gets a study from its tapes, or sends it elsewhere."""
        limits = replace(self._peer.timeouts, progress=seconds, object=seconds)
        return replace(self._peer, timeouts=limits)


class _Kept:
    """What comes by C-GET, in the thread that asked for it."""

    def __init__(self, folder: PriorFolder) -> None:
        self.paths: list[Path] = []
        self._folder = folder
        self._trouble: Exception | None = None
        self._received = 0

    def take(self, event: evt.Event) -> int:
        """Write one object as it came."""
        try:
            self.paths.append(self._folder.write(event.encoded_dataset()))
        except (OSError, NodeError) as error:
            self._trouble = error
            return _OUT_OF_RESOURCES
        return 0x0000

    def count(self, event: evt.Event) -> None:
        """End an association that brings more than there is room for, in one object or in many."""
        self._received += len(event.data)
        if self._received > self._folder.left + self._folder.size:
            event.assoc.abort()

    @property
    def failed(self) -> bool:
        """Whether nothing more can be kept."""
        return self._trouble is not None

    def check(self) -> None:
        """Raise what happened while something was written."""
        if self._trouble is not None:
            raise self._trouble


def _last_status(
    answers: Iterable[tuple[Dataset, Dataset | None]],
    kept: _Kept | MoveReceiver,
    link: Link,
    patience: Patience,
) -> int | None:
    status: int | None = None
    for answer, _ in answers:
        status = answer.get("Status")
        try:
            patience.left()
        except ArchiveError:
            status = None
        if (status is None or kept.failed) and link.association is not None:
            link.association.abort()
            return None
    return status


def _check_status(status: int | None, link: Link) -> None:
    """B000 means that some images did not come: that is seen by those that did."""
    if status is None:
        raise ArchiveError(OutcomeKind.TRANSIENT, link.broken().detail)
    if status not in (0x0000, 0xB000):
        kind = OutcomeKind.TRANSIENT if 0xA700 <= status <= 0xA7FF else OutcomeKind.PERMANENT
        raise ArchiveError(kind, f"the archive answered with status {status:04X}H")
