"""The words of a clinical record: sex, smoking, what is refused, and why something was left out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from inference.errors import InferenceError

RATINGS = frozenset(
    {
        *("subtlety", "internalstructure", "calcification", "sphericity", "margin", "lobulation"),
        *("spiculation", "texture", "malignancy", "subtlety_score", "internal_structure"),
        *("lobular_pattern", "nodule_type", "suspicion", "lung_rads"),
    }
)
"""Names of a radiologist's judgement of the nodule; as an item of a record each is refused."""


class RecordCode(StrEnum):
    """Stable codes of what was wrong with a record or an item of it."""

    UNREADABLE = "UNREADABLE"
    SCHEMA = "SCHEMA"
    NO_MATCH = "NO_MATCH"
    AMBIGUOUS = "AMBIGUOUS"
    MISMATCH = "MISMATCH"
    UNCONFIRMED = "UNCONFIRMED"
    NO_ANSWER = "NO_ANSWER"
    DATE_VALUE = "DATE_VALUE"
    AFTER_STUDY = "AFTER_STUDY"
    UNIT_VALUE = "UNIT_VALUE"
    AGE_RANGE = "AGE_RANGE"
    SEX_VALUE = "SEX_VALUE"
    SMOKING_VALUE = "SMOKING_VALUE"
    PACK_YEARS_RANGE = "PACK_YEARS_RANGE"
    YEARS_QUIT_RANGE = "YEARS_QUIT_RANGE"
    FLAG_VALUE = "FLAG_VALUE"
    TEXT_VALUE = "TEXT_VALUE"
    CONTRADICTION = "CONTRADICTION"
    CONFLICT = "CONFLICT"
    UNKNOWN_ITEM = "UNKNOWN_ITEM"
    RATING_REFUSED = "RATING_REFUSED"


class RecordError(InferenceError):
    """A record can't be used at all.

    Parameters
    ----------
    code
        Why.
    sentence
        For a person; holds no value of the record.
    """

    def __init__(self, code: RecordCode, sentence: str) -> None:
        super().__init__(code, sentence)
        self.code = code
        self.sentence = sentence

    def __str__(self) -> str:
        return f"{self.code}: {self.sentence}"


class Sex(StrEnum):
    """As the published risk models know it."""

    FEMALE = "female"
    MALE = "male"


class Smoking(StrEnum):
    """Smoking status. DICOM says only whether the patient smokes: its NO is `NOT_CURRENT`."""

    NEVER = "never"
    FORMER = "former"
    CURRENT = "current"
    NOT_CURRENT = "not current"


@dataclass(frozen=True, slots=True)
class RecordIssue:
    """Something that was left out or overruled. `sentence` holds no value of the record."""

    code: RecordCode
    item: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.code}: {self.sentence}"
