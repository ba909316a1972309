"""What is asked of files that a peer has sent: the only code of the node that opens them.

Each task is a function of paths that gives what JSON can hold, so that it can run in a process that is thrown
away; see `pacs_node.reader`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from inference.compare import same_content
from inference.errors import ReasonCode, UnsuitableSeriesError
from inference.geometry import has_no_gaps
from inference.headers import examination_day, number, patient, text
from inference.load import decode_slices, plan_series, read_header
from inference.same_patient import Identity
from inference.select import SeriesVerdict, judge_series, kernel_softness
from pacs_node.returned_files import compare_masks, read_object

Progress = Callable[[], None]

_MOST_NAMES = 64
_OF_SLICES = (ReasonCode.TOO_FEW_SLICES, ReasonCode.TOO_SHORT, ReasonCode.NO_GEOMETRY)


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What one image says of itself and of its patient.

    Parameters
    ----------
    day
        Of the examination; None where it doesn't say.
    code
        Why an image like this is none to analyse, whatever its series; None if nothing speaks against it.
    softness
        Of its kernel, see `inference.select.kernel_softness`.
    """

    identity: Identity
    study_uid: str
    series_uid: str
    sop_instance_uid: str
    day: date | None
    code: ReasonCode | None
    thickness_mm: float | None
    softness: int


def judge(paths: Sequence[Path], progress: Progress, *, series_uid: str) -> dict[str, Any]:
    """Judge a series by its headers.

    Returns
    -------
    dict
        ``verdict``: the fields of a `SeriesVerdict`; ``patients``, ``manufacturers``: what the headers name.
    """
    headers = []
    try:
        for path in paths:
            headers.append(read_header(path))
            progress()
        verdict = judge_series(headers, series_uid=series_uid)
    except UnsuitableSeriesError as error:
        headers = []
        verdict = SeriesVerdict(series_uid, suitable=False, code=error.code, sentence=error.sentence)
    return {
        "verdict": asdict(verdict),
        "patients": sorted({patient(header) for header in headers})[:_MOST_NAMES],
        "manufacturers": sorted({text(header, "Manufacturer") for header in headers})[:_MOST_NAMES],
    }


def gaps(paths: Sequence[Path], progress: Progress) -> bool:
    """Whether the slices have no gap; False where they can't be read."""
    headers = []
    try:
        for path in paths:
            headers.append(read_header(path))
            progress()
        return has_no_gaps(headers)
    except UnsuitableSeriesError:
        return False


def compare(paths: Sequence[Path], _progress: Progress) -> bool:
    """Whether two files hold the same object; see `inference.compare.same_content`."""
    first, second = paths
    return same_content(first, second)


def screen(paths: Sequence[Path], progress: Progress) -> list[bool]:
    """Which files' headers can be read."""
    readable = []
    for path in paths:
        try:
            read_header(path)
            readable.append(True)
        except UnsuitableSeriesError:
            readable.append(False)
        progress()
    return readable


def describe(paths: Sequence[Path], progress: Progress) -> list[dict[str, Any] | None]:
    """What each image says of itself and of its patient, by its header alone.

    Returns
    -------
    list
        For each file the fields of an `ImageFacts`; None for one that can't be read.
    """
    found: list[dict[str, Any] | None] = []
    for path in paths:
        try:
            header = read_header(path)
        except UnsuitableSeriesError:
            found.append(None)
        else:
            day = examination_day(header)
            facts = judge_series([header])
            # one image is no series: what is said of slices isn't meant
            of_slices = facts.code in _OF_SLICES
            found.append(
                {
                    "identity": Identity.of(header).to_json(),
                    "study_uid": text(header, "StudyInstanceUID"),
                    "series_uid": text(header, "SeriesInstanceUID"),
                    "sop_instance_uid": text(header, "SOPInstanceUID"),
                    "day": day and day.isoformat(),
                    "code": None if facts.code is None or of_slices else str(facts.code),
                    "thickness_mm": number(header, "SliceThickness"),
                    "softness": kernel_softness(str(facts.facts.get("kernel", ""))),
                }
            )
        progress()
    return found


def image_facts(said: Sequence[dict[str, Any] | None]) -> list[ImageFacts | None]:
    """Return what `describe` said as nouns."""
    return [None if row is None else _facts(row) for row in said]


def _facts(row: dict[str, Any]) -> ImageFacts:
    return ImageFacts(
        **{
            **row,
            "identity": Identity(**row["identity"]),
            "day": date.fromisoformat(row["day"]) if row["day"] else None,
            "code": ReasonCode(row["code"]) if row["code"] else None,
        }
    )


def decode(paths: Sequence[Path], progress: Progress, *, voxels: int) -> str:
    """Decode a series into a file: its slices one after the other, HU.

    Parameters
    ----------
    voxels
        Descriptor of a file that is empty.

    Returns
    -------
    str
        Data type of the voxels, as numpy writes it.

    Raises
    ------
    UnsuitableSeriesError
        See `inference.load.plan_series` and `inference.load.decode_slices`.
    """
    plan = plan_series(paths, progress)
    for z, hu in decode_slices(plan):
        data = memoryview(hu.tobytes())
        at = z * len(data)
        while data:
            written = os.pwrite(voxels, data, at)
            data, at = data[written:], at + written
        progress()
    return plan.dtype.str


TASKS: dict[str, Callable[..., Any]] = {
    "judge": judge,
    "gaps": gaps,
    "compare": compare,
    "screen": screen,
    "describe": describe,
    "decode": decode,
    "returned": read_object,
    "masks": compare_masks,
}
"""By the names that go between the processes."""
