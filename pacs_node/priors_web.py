"""Earlier examinations from an archive that speaks DICOMweb: QIDO-RS to find, WADO-RS to fetch."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path

from inference.same_patient import Identity
from pacs_node.archive import day_of
from pacs_node.archive_web import DicomWebArchive, number_of, text_of, texts_of
from pacs_node.dicomweb import DicomWebDestination
from pacs_node.priors_archive import FoundExamination, FoundSeries, Patience
from pacs_node.priors_store import PriorFolder

_IDENTITY = ("PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex")


class WebPriors:
    """An archive that is asked by QIDO-RS and gives images by WADO-RS, each by a request of its own.

    Parameters
    ----------
    destination
        How it is reached.
    """

    def __init__(self, destination: DicomWebDestination) -> None:
        self._destination = destination
        self._archive = DicomWebArchive(destination)

    @property
    def name(self) -> str:
        """Of the destination in the configuration."""
        return self._destination.name

    def examinations(self, patient_id: str, first: date, last: date) -> list[FoundExamination]:
        """Ask for the studies of a patient ID."""
        filters = {"PatientID": patient_id, "StudyDate": f"{first:%Y%m%d}-{last:%Y%m%d}"}
        fields = [*_IDENTITY, "ModalitiesInStudy", "StudyDescription"]
        return [
            FoundExamination(
                text_of(match, "StudyInstanceUID"),
                day_of(text_of(match, "StudyDate")),
                Identity(*(text_of(match, keyword).strip() for keyword in _IDENTITY)),
                texts_of(match, "ModalitiesInStudy"),
                text_of(match, "StudyDescription"),
            )
            for match in self._archive.search_all("studies", filters=filters, fields=fields)
        ]

    def series(self, study_uid: str) -> list[FoundSeries]:
        """Ask for the series of a study."""
        fields = ["NumberOfSeriesRelatedInstances"]
        return [
            FoundSeries(
                text_of(match, "SeriesInstanceUID"),
                text_of(match, "Modality"),
                number_of(match, "NumberOfSeriesRelatedInstances"),
            )
            for match in self._archive.search_all("series", study_uid=study_uid, filters={}, fields=fields)
        ]

    def images(self, study_uid: str, series_uid: str) -> list[str]:
        """Ask for the instances of a series."""
        found = self._archive.search_all("instances", study_uid=study_uid, series_uid=series_uid, filters={})
        return [text_of(match, "SOPInstanceUID") for match in found]

    def fetch(
        self, study_uid: str, series_uid: str, images: Sequence[str], folder: PriorFolder, patience: Patience
    ) -> list[Path]:
        """Retrieve the images one after the other; ends with the first that can't be had."""
        paths = []
        with self._destination.retrieving(folder.left, patience.left()) as retrieve:
            for uid in images:
                patience.left()
                file = retrieve(f"studies/{study_uid}/series/{series_uid}/instances/{uid}")
                paths.append(folder.write(file))
        return paths
