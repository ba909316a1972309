"""Questions to an archive by QIDO-RS (PS3.18 10.6)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydicom.datadict import tag_for_keyword

from pacs_node.archive import MAX_MATCHES, ArchiveError, FoundStudy, StudyFilter
from pacs_node.destinations import OutcomeKind
from pacs_node.dicomweb import DicomWebDestination

_PAGE = 1000


class DicomWebArchive:
    """An archive that answers QIDO-RS.

    Parameters
    ----------
    destination
        How it is reached.
    """

    def __init__(self, destination: DicomWebDestination) -> None:
        self._destination = destination

    @property
    def name(self) -> str:
        """Of the destination in the configuration."""
        return self._destination.name

    def count(self, study_uid: str, series_uid: str) -> int:
        """Ask for (0020,1209) of the series; where that is missing, count its instances."""
        found = self._destination.search(
            "series",
            study_uid=study_uid,
            filters={"SeriesInstanceUID": series_uid},
            fields=["NumberOfSeriesRelatedInstances"],
            limit=_PAGE,
        )
        matches = [match for match in found if text_of(match, "SeriesInstanceUID") == series_uid]
        said = [number for match in matches if (number := number_of(match, "NumberOfSeriesRelatedInstances"))]
        if said or not matches:
            return max(said, default=0)
        images = self.search_all("instances", study_uid=study_uid, series_uid=series_uid, filters={})
        return len({text_of(match, "SOPInstanceUID") for match in images} - {""})

    def studies(self, wanted: StudyFilter) -> list[FoundStudy]:
        """Ask for the studies of a range of dates."""
        filters = {
            "StudyDate": f"{wanted.first:%Y%m%d}-{wanted.last:%Y%m%d}",
            "ModalitiesInStudy": wanted.modality,
        }
        if wanted.description:
            filters["StudyDescription"] = wanted.description
        fields = ["StudyDescription", "RetrieveAETitle", "NumberOfStudyRelatedInstances"]
        found = (_study(match) for match in self.search_all("studies", filters=filters, fields=fields))
        return [study for study in found if study.study_uid]

    def modalities(self, study_uid: str) -> set[str]:
        """Ask for the series of a study."""
        found = self.search_all("series", study_uid=study_uid, filters={})
        return {text_of(match, "Modality") for match in found} - {""}

    def search_all(self, what: str, **question: Any) -> list[dict[str, Any]]:
        """All pages; an archive that repeats the first page for ever ends with nothing new."""
        matches: dict[str, dict[str, Any]] = {}
        key = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID"}.get(what, "SOPInstanceUID")
        while True:
            page = self._destination.search(what, limit=_PAGE, offset=len(matches), **question)
            fresh = {uid: match for match in page if (uid := text_of(match, key)) and uid not in matches}
            matches |= fresh
            if len(matches) > MAX_MATCHES:
                sentence = f"the archive answered with more than {MAX_MATCHES} matches"
                raise ArchiveError(OutcomeKind.PERMANENT, sentence)
            if not fresh or len(page) < _PAGE:
                return list(matches.values())


def texts_of(match: dict[str, Any], keyword: str) -> tuple[str, ...]:
    """The values of an attribute in DICOM JSON (PS3.18 F.2); none where it is absent or malformed."""
    element = match.get(f"{tag_for_keyword(keyword):08X}")
    values: Iterable[Any] = element.get("Value") or () if isinstance(element, dict) else ()
    return tuple(str(value)[:64] for value in values if isinstance(value, (str, int)))


def text_of(match: dict[str, Any], keyword: str) -> str:
    """The first value of an attribute in DICOM JSON; empty where there is none."""
    return next(iter(texts_of(match, keyword)), "")


def number_of(match: dict[str, Any], keyword: str) -> int:
    """A count; 0 where there is none."""
    text = text_of(match, keyword).strip()
    return int(text) if text.isdecimal() else 0


def _study(match: dict[str, Any]) -> FoundStudy:
    return FoundStudy(
        study_uid=text_of(match, "StudyInstanceUID"),
        study_date=text_of(match, "StudyDate"),
        accession_number=text_of(match, "AccessionNumber"),
        description=text_of(match, "StudyDescription"),
        modalities=texts_of(match, "ModalitiesInStudy"),
        ae_titles=texts_of(match, "RetrieveAETitle"),
        n_instances=number_of(match, "NumberOfStudyRelatedInstances") or None,
    )
