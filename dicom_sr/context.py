"""Who says it, when, and about which input: everything in the objects that isn't the finding itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from dicom_sr.template import BUILT_IN, Template
from dicom_sr.wording import ENGLISH, NOT_REVIEWED, RESEARCH_USE, Wording
from inference.types import ModelCard
from inference.uids import derived_uid

__all__ = [
    "DEFAULT_SERIES_NUMBERS",
    "MANUFACTURER",
    "NOT_REVIEWED",
    "RESEARCH_USE",
    "OtherSeries",
    "Predecessor",
    "ResultContext",
    "SeriesNumbers",
    "card_device_uid",
]

MANUFACTURER = "pacs-node project"


class Predecessor(NamedTuple):
    """An object of an earlier result of the same series."""

    study_uid: str
    series_uid: str
    sop_class_uid: str
    sop_instance_uid: str


class OtherSeries(NamedTuple):
    """A series of the study that was not analysed, and why."""

    series_uid: str
    modality: str
    code: str
    sentence: str


class SeriesNumbers(NamedTuple):
    """(0020,0011) of the result series."""

    seg: int
    sr: int
    sc: int = 1003
    pdf: int = 1004


DEFAULT_SERIES_NUMBERS = SeriesNumbers(seg=1001, sr=1002)


@dataclass(frozen=True, slots=True)
class ResultContext:
    """Provenance of one result. The same context and result give byte-identical objects.

    Parameters
    ----------
    software_version
        Of the node, (0018,1020) of the objects.
    pipeline_version
        Changes whenever the same input could give another result; the algorithm version in SEG and SR.
    input_digest
        Identifies the exact set of instances that was analysed.
    created_at
        Every date and time in the objects, so that a rerun repeats them. Must know its time zone.
    cards
        All models and algorithms that took part, in the order of use.
    manufacturer_model_name
        Name of the algorithm as a whole; equal in Contributing Equipment, observer and segments.
    institution
        Where the node runs; None leaves it out.
    predecessors
        SEG and SR of the result that this one replaces.
    other_series
        The study's series that were not analysed.
    uid_salt
        Part of the UIDs, for a caller whose repetition isn't the same result (other dates).
    wording
        Language of the report's sentences; another one is another document.
    template
        Of the draft narrative; another one is another document.
    preliminary
        Preliminary Flag (0040,A496) of the report: PRELIMINARY or FINAL, as the site wants it.

    Raises
    ------
    ValueError
        `created_at` without time zone, or a text that DICOM LO (64 characters, no backslash) can't hold.
    """

    software_version: str
    pipeline_version: str
    input_digest: str
    created_at: datetime
    cards: tuple[ModelCard, ...] = ()
    manufacturer: str = MANUFACTURER
    manufacturer_model_name: str = "pacs-node chest CT nodules"
    device_serial_number: str = "1"
    institution: str | None = None
    predecessors: tuple[Predecessor, ...] = ()
    series_numbers: SeriesNumbers = DEFAULT_SERIES_NUMBERS
    other_series: tuple[OtherSeries, ...] = ()
    uid_salt: str = ""
    wording: Wording = ENGLISH
    template: Template = BUILT_IN
    preliminary: bool = True

    def __post_init__(self) -> None:
        if self.created_at.tzinfo is None:
            raise ValueError("created_at has no time zone")
        texts = {
            "software_version": self.software_version,
            "pipeline_version": self.pipeline_version,
            "manufacturer": self.manufacturer,
            "manufacturer_model_name": self.manufacturer_model_name,
            "device_serial_number": self.device_serial_number,
        }
        for name, text in texts.items():
            if not text or len(text) > 64 or "\\" in text:
                raise ValueError(f"{name} = {text!r} must have 1 to 64 characters and no backslash")
        if self.institution and (len(self.institution) > 64 or "\\" in self.institution):
            raise ValueError("institution must have at most 64 characters and no backslash")
        if not self.input_digest:
            raise ValueError("input_digest is empty")

    @property
    def device_uid(self) -> str:
        """UID of the algorithm as a whole: another one for each pipeline, software or model version."""
        parts = [f"{c.name}\x1e{c.version}\x1e{c.weights_sha256 or ''}" for c in self.cards]
        return derived_uid(
            "device", self.manufacturer_model_name, self.software_version, self.pipeline_version, *parts
        )

    def uid(self, source_series_uid: str, role: str) -> str:
        """UID of an object of this result: of source series, input, pipeline version and `role`."""
        salt = [self.uid_salt] if self.uid_salt else []
        return derived_uid(source_series_uid, self.input_digest, self.pipeline_version, role, *salt)


def card_device_uid(card: ModelCard) -> str:
    """UID of one model: another one for each version and each weights file."""
    return derived_uid("model", card.name, card.version, card.weights_sha256 or "")
