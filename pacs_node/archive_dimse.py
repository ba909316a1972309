"""Questions to an archive by C-FIND, Study Root (PS3.4 C.6.2), as a client (SCU)."""

from __future__ import annotations

from pydicom import Dataset
from pydicom.multival import MultiValue
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (  # type: ignore[attr-defined]  # the module makes its names at import time
    StudyRootQueryRetrieveInformationModelFind,
)

from inference.decode import MALFORMED_FILE
from pacs_node.archive import MAX_MATCHES, ArchiveError, FoundStudy, StudyFilter
from pacs_node.association import Link, Peer
from pacs_node.destinations import OutcomeKind

_PENDING = frozenset({0xFF00, 0xFF01})
_STUDY_KEYS = (
    "StudyInstanceUID",
    "AccessionNumber",
    "RetrieveAETitle",
    "NumberOfStudyRelatedInstances",
)


class DimseArchive:
    """An archive that answers C-FIND.

    Parameters
    ----------
    name
        Of the destination in the configuration.
    peer
        Where it listens.
    seconds
        For one whole question, from the connection to the last match.
    """

    def __init__(self, name: str, peer: Peer, seconds: float) -> None:
        self.name = name
        self._peer = peer
        self._seconds = seconds

    def count(self, study_uid: str, series_uid: str) -> int:
        """Ask at the SERIES level for (0020,1209); where that is missing, count at the IMAGE level."""
        keys = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": series_uid}
        query = query_for("SERIES", {**keys, "NumberOfSeriesRelatedInstances": ""})
        matches = [match for match in self.find(query) if text_of(match, "SeriesInstanceUID") == series_uid]
        said = [number for match in matches if (number := number_of(match, "NumberOfSeriesRelatedInstances"))]
        if said or not matches:
            return max(said, default=0)
        images = self.find(query_for("IMAGE", {**keys, "SOPInstanceUID": ""}))
        return len({text_of(match, "SOPInstanceUID") for match in images} - {""})

    def studies(self, wanted: StudyFilter) -> list[FoundStudy]:
        """Ask at the STUDY level for a range of dates."""
        keys = dict.fromkeys(_STUDY_KEYS, "")
        keys["StudyDate"] = f"{wanted.first:%Y%m%d}-{wanted.last:%Y%m%d}"
        keys["ModalitiesInStudy"] = wanted.modality
        keys["StudyDescription"] = wanted.description
        found = (_study(match) for match in self.find(query_for("STUDY", keys)))
        return [study for study in found if study.study_uid]

    def modalities(self, study_uid: str) -> set[str]:
        """Ask at the SERIES level."""
        keys = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": "", "Modality": ""}
        return {text_of(match, "Modality") for match in self.find(query_for("SERIES", keys))} - {""}

    def find(self, query: Dataset) -> list[Dataset]:
        """Ask one question; the matches as they came.

        Raises
        ------
        ArchiveError
            No usable answer came.
        """
        model = StudyRootQueryRetrieveInformationModelFind
        with Link(self._peer, [build_context(model)], self._seconds) as link:
            if link.failure is not None or link.association is None:
                failure = link.failure or link.broken()
                raise ArchiveError(failure.kind, failure.detail)
            matches: list[Dataset] = []
            status: int | None = None
            try:
                for answer, identifier in link.association.send_c_find(query, model):
                    status = answer.get("Status")
                    if identifier is not None:
                        matches.append(identifier)
                    if len(matches) > MAX_MATCHES:
                        link.association.abort()
                        sentence = f"the archive answered with more than {MAX_MATCHES} matches"
                        raise ArchiveError(OutcomeKind.PERMANENT, sentence)
            except (RuntimeError, ValueError):  # the association ended meanwhile
                status = None
            if status is None or status in _PENDING:
                raise ArchiveError(OutcomeKind.TRANSIENT, link.broken().detail)
            if status != 0:
                kind = OutcomeKind.TRANSIENT if 0xA700 <= status <= 0xA7FF else OutcomeKind.PERMANENT
                raise ArchiveError(kind, f"the archive answered with status {status:04X}H")
            return matches


def query_for(level: str, keys: dict[str, str]) -> Dataset:
    """Make the identifier of a question: keywords with their values, empty ones to be answered."""
    query = Dataset()
    query.QueryRetrieveLevel = level
    for keyword, value in keys.items():
        setattr(query, keyword, value or None)
    return query


def texts_of(match: Dataset, keyword: str) -> tuple[str, ...]:
    """The values of an attribute; none where the archive sent something that is no value."""
    try:
        value = match.get(keyword)
    except MALFORMED_FILE:
        return ()
    values = value if isinstance(value, (MultiValue, list)) else [value]
    return tuple(str(item)[:64] for item in values if item not in (None, ""))


def text_of(match: Dataset, keyword: str) -> str:
    """The first value of an attribute; empty where there is none."""
    return next(iter(texts_of(match, keyword)), "")


def number_of(match: Dataset, keyword: str) -> int:
    """A count; 0 where there is none."""
    text = text_of(match, keyword).strip()
    return int(text) if text.isdecimal() else 0


def _study(match: Dataset) -> FoundStudy:
    return FoundStudy(
        study_uid=text_of(match, "StudyInstanceUID"),
        study_date=text_of(match, "StudyDate"),
        accession_number=text_of(match, "AccessionNumber"),
        description=text_of(match, "StudyDescription"),
        modalities=texts_of(match, "ModalitiesInStudy"),
        ae_titles=texts_of(match, "RetrieveAETitle"),
        n_instances=number_of(match, "NumberOfStudyRelatedInstances") or None,
    )
