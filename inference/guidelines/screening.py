"""Whether an examination is a lung cancer screening: by what its images say, or by the site's word.

Lung-RADS holds for screening only and Fleischner for anything but screening, so what nobody says stays open.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pydicom import Dataset

from inference.headers import sequence, text

#: CPT and HCPCS: low dose CT of the thorax for lung cancer screening
SCREENING_CODES = frozenset({"71271", "G0297", "S8032"})
#: CPT: diagnostic CT of the thorax without, with, and without and with contrast
DIAGNOSTIC_CODES = frozenset({"71250", "71260", "71270"})
_CODES = ("ProcedureCodeSequence", "RequestedProcedureCodeSequence")
_TEXTS = (
    "StudyDescription",
    "RequestedProcedureDescription",
    "ReasonForTheRequestedProcedure",
    "ProtocolName",
)
_IN_REQUEST = "RequestAttributesSequence"
_SCREENING = re.compile(
    r"\b(lung|chest|thora\w*|ld ?ct|low.?dose|lcs)\b.*\bscreen|\bscreen\w*\b.*\b(lung|chest|ld ?ct)"
)


@dataclass(frozen=True, slots=True)
class Occasion:
    """Why the examination was made, as far as it is known.

    Parameters
    ----------
    screening
        Whether for lung cancer screening; None where nothing says so.
    because
        What decided, for a reader.
    prior
        Whether there is a prior chest CT to compare with; None where nobody knows.
    """

    screening: bool | None
    because: str
    prior: bool | None = None


def occasion_of(header: Dataset, *, site_says: bool | None = None) -> Occasion:
    """Decide by rule: the site's word, then a procedure code, then the words of the request.

    Parameters
    ----------
    header
        Of one image.
    site_says
        That all, or none, of the examinations that come here are screening; None to look at the header.
    """
    if site_says is not None:
        return Occasion(site_says, "as the settings or the command say")
    for name, code in _codes(header):
        if code in SCREENING_CODES | DIAGNOSTIC_CODES:
            return Occasion(code in SCREENING_CODES, f"procedure code {code} in {name}")
    for name, words in _texts(header):
        if _SCREENING.search(words.casefold().replace("_", " ")):
            return Occasion(True, f"the words of {name}")
    return Occasion(None, "no attribute of the images says")


def _requests(header: Dataset) -> Iterator[Dataset]:
    yield header
    yield from sequence(header, _IN_REQUEST)


def _codes(header: Dataset) -> Iterator[tuple[str, str]]:
    for holder in _requests(header):
        for keyword in _CODES:
            for item in sequence(holder, keyword):
                yield keyword, text(item, "CodeValue")


def _texts(header: Dataset) -> Iterator[tuple[str, str]]:
    for holder in _requests(header):
        for keyword in _TEXTS:
            yield keyword, text(holder, keyword)
