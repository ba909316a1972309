"""Why a series was not analysed.

::

    InferenceError
    ├── UnsuitableSeriesError    the input can't be analysed; carries a ReasonCode and a sentence
    └── ModelUnavailableError    a card or its weights are missing or differ from the recorded sha256
"""

from __future__ import annotations

from enum import StrEnum


class ReasonCode(StrEnum):
    """Stable codes; they appear in the database, ``result.json``, the report and the command line."""

    NOT_CT = "NOT_CT"
    NOT_AN_IMAGE = "NOT_AN_IMAGE"
    NOT_CHEST = "NOT_CHEST"
    LOCALIZER = "LOCALIZER"
    DERIVED = "DERIVED"
    NOT_AXIAL = "NOT_AXIAL"
    NO_SUITABLE_SERIES = "NO_SUITABLE_SERIES"
    NOT_SELECTED = "NOT_SELECTED"
    NO_GEOMETRY = "NO_GEOMETRY"
    MIXED_GEOMETRY = "MIXED_GEOMETRY"
    MIXED_PATIENT = "MIXED_PATIENT"
    TOO_FEW_SLICES = "TOO_FEW_SLICES"
    TOO_SHORT = "TOO_SHORT"
    TOO_THICK = "TOO_THICK"
    GAP = "GAP"
    DUPLICATE = "DUPLICATE"
    CONFLICT = "CONFLICT"
    INCOMPLETE = "INCOMPLETE"
    TILT = "TILT"
    DECODE = "DECODE"
    HU_RANGE = "HU_RANGE"
    SOFTWARE_FAILURE = "SOFTWARE_FAILURE"


class InferenceError(Exception):
    """Base of this package's errors."""


class UnsuitableSeriesError(InferenceError):
    """The series can't be analysed.

    Parameters
    ----------
    code
        The stable reason code.
    sentence
        One plain sentence for a person, with the measured value and the limit.
        Contains no patient data.
    """

    def __init__(self, code: ReasonCode, sentence: str) -> None:
        super().__init__(code, sentence)
        self.code = code
        self.sentence = sentence

    def __str__(self) -> str:
        return f"{self.code}: {self.sentence}"


class ModelUnavailableError(InferenceError):
    """A model card or its weights are missing, or a sha256 differs. Never replaced by random weights."""
