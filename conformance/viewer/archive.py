"""Put studies into Orthanc: as the node sends them, and broken objects in the place of good ones."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import requests
from pydicom import Dataset

from pacs_node.dimse import send_files
from tests.peers import Orthanc

_SECONDS = 60


class StoreError(Exception):
    """Orthanc did not take an object."""


def send(archive: Orthanc, paths: Sequence[Path]) -> None:
    """Send files by C-STORE, with the node's own sender."""
    outcomes = send_files("127.0.0.1", archive.dicom_port, archive.ae_title, "PACSNODE", paths)
    failed = [outcome for outcome in outcomes if not outcome.kind.stored]
    if failed:
        raise StoreError(f"{len(failed)} of {len(paths)} objects were not stored: {failed[0].detail}")


def replace(archive: Orthanc, dataset: Dataset) -> None:
    """Put an object in the place of its series."""
    for series in archive.series(str(dataset.StudyInstanceUID)):
        if series["SeriesInstanceUID"] == dataset.SeriesInstanceUID:
            requests.delete(
                f"{archive.url}/series/{series['OrthancID']}", timeout=_SECONDS
            ).raise_for_status()
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    answer = requests.post(f"{archive.url}/instances", data=file.getvalue(), timeout=_SECONDS)
    answer.raise_for_status()
    if answer.json()["Status"] != "Success":
        raise StoreError(f"Orthanc says {answer.json()['Status']}")
