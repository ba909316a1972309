"""Studies of one patient at several dates, for tests of where earlier examinations come from."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from pydicom import Dataset

from inference.same_patient import Identity
from pacs_node.priors_archive import Fetcher, Patience, PriorSource
from pacs_node.priors_search import Gathered, Search, Wanted
from pacs_node.priors_store import PriorFolder
from pacs_node.reader import OpenReader
from tests.small_node import chest

PATIENT = "SYNTHETIC-1"
NOW = Identity(PATIENT, "", "19500101", "O", "Synthetic^Phantom")
TODAY = date(2020, 1, 1)


def examination(
    day: date, seed: str, n_slices: int = 12, *, spacing_mm: float = 3.0, **changes: str
) -> list[Dataset]:
    """A suitable series of a day, of the same patient but for the changes (keyword to value)."""
    series = chest(n_slices, seed=seed, spacing_mm=spacing_mm)
    for ds in series:
        ds.StudyDate = ds.AcquisitionDate = f"{day:%Y%m%d}"
        for keyword, value in changes.items():
            setattr(ds, keyword, value)
    return series


def scout(study: list[Dataset]) -> list[Dataset]:
    """A localizer of the same study."""
    found = chest(1, seed="scout", image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    for ds in found:
        for keyword in ("StudyInstanceUID", "StudyDate", "PatientID", "PatientBirthDate", "PatientSex"):
            setattr(ds, keyword, study[0][keyword].value)
    return found


def look_in(source: PriorSource, directory: Path, *, seconds: float = 30.0, number: int = 1) -> Gathered:
    """Ask a source for what is earlier than today, as a worker does; `directory` gets what is fetched."""
    folder = PriorFolder(directory / "fetched", max_bytes=1 << 26, reserve_bytes=0)
    fetcher = Fetcher(source, OpenReader(), NOW, folder, Patience(seconds))
    wanted = Wanted(NOW, "1.2.3", TODAY, date(2015, 1, 1))
    return Search(OpenReader(), wanted, (), number).ask(source, fetcher)
