"""What must be seen of a result in the viewer; each check says why it fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from conformance.viewer.browser import NotShownError
from conformance.viewer.ohif import Viewer
from conformance.viewer.picture import Picture, View, faults_of_image, faults_of_marker, faults_of_overlay
from conformance.viewer.study import Study

SEGMENTATION_QUESTION = "Do you want to open this Segmentation?"
MEASUREMENTS_QUESTION = "Do you want to continue tracking measurements for this study?"


class Reason(StrEnum):
    """Why a check failed."""

    NOT_LISTED = "not listed"
    NOT_OPENED = "not opened"
    NOT_COMPLETE = "nodules are missing"
    WRONG_IMAGE = "wrong image"
    WRONG_PLACE = "wrong place"
    COMPLAINED = "the viewer complained"


class CheckFailedError(Exception):
    """The viewer doesn't show the result."""

    def __init__(self, reason: Reason, words: str) -> None:
        super().__init__(f"{reason.value}: {words}")
        self.reason = reason


@dataclass(frozen=True)
class Checker:
    """The checks on one study.

    Parameters
    ----------
    viewer
        OHIF; the study is in its archive.
    study
        What should be seen.
    keep
        Takes a picture for people, with its name.
    limit
        Look at this many nodules, the largest first; None for all.
    """

    viewer: Viewer
    study: Study
    keep: Callable[[str, Picture], None]
    limit: int | None = None

    def _chosen(self) -> list[int]:
        """Numbers of the nodules to look at, from 0, in their order."""
        sizes = [sum(int(mask.sum()) for mask in nodule.masks.values()) for nodule in self.study.nodules]
        largest = sorted(range(len(sizes)), key=lambda number: -sizes[number])
        return sorted(largest[: self.limit])

    def check_list(self) -> str:
        """The study list names the study with CT, SEG and SR, and so does the study's browser of series."""
        row = self.viewer.open_list(self.study.listed_as())
        self.keep("study-list", self.viewer.page.picture())
        absent = [
            modality for modality in ("CT", "SEG", "SR") if modality not in row.replace("\\", " ").split()
        ]
        if absent:
            raise CheckFailedError(Reason.NOT_LISTED, f"no {', '.join(absent)} in the study list: {row!r}")
        self.viewer.open_study(self.study.uid)
        shown = sorted(self.viewer.series())
        if shown != ["CT", "SEG", "SR"]:
            raise CheckFailedError(Reason.NOT_LISTED, f"the series of the study are {shown}")
        return "CT, SEG and SR are listed"

    def check_segmentation(self) -> str:
        """Each segment is listed; a click on it shows it on the right slice, in the right place."""
        self._open("SEG", SEGMENTATION_QUESTION)
        self.viewer.say_yes()
        self.viewer.open_panel("panelSegmentation")
        self._rows(lambda rows: [row.split()[-1:] for row in rows] == [[n.name] for n in self.study.nodules])
        for number in self._chosen():
            self.viewer.click_row(number)
            self._look("seg", number, faults_of_overlay)
        self._heed_complaints()
        return f"{len(self.study.nodules)} segments listed, {len(self._chosen())} seen in their place"

    def check_report(self) -> str:
        """The report's values are shown; each nodule is listed, and a click on it shows its point."""
        self._open("SR", MEASUREMENTS_QUESTION)
        value = f"{self.study.nodules[0].long_axis_mm:.2f} mm"
        try:
            self.viewer.wait_for_text(value)
        except NotShownError as error:
            raise CheckFailedError(Reason.NOT_COMPLETE, f"long axis at the first nodule: {error}") from error
        self.keep("report", self.viewer.page.picture())
        self.viewer.say_yes()
        self.viewer.open_panel("trackedMeasurements")
        self._rows(self._named)
        for number in self._chosen():
            self.viewer.click_row(number)
            self._look("sr", number, faults_of_marker)
        self._heed_complaints()
        return f"{len(self.study.nodules)} nodules listed, {len(self._chosen())} marked on their slice"

    def _open(self, modality: str, question: str) -> None:
        """Open the study and one series of it."""
        try:
            self.viewer.open_study(self.study.uid)
            self.viewer.open_series(modality, question)
        except NotShownError as error:
            self.keep("not-opened", self.viewer.page.picture())
            raise CheckFailedError(Reason.NOT_OPENED, f"{modality}: {error}") from error

    def _named(self, rows: list[str]) -> bool:
        """Whether there is a row for each nodule, by the name that the report gives it, if any."""
        nodules = self.study.nodules
        return len(rows) == len(nodules) and all(
            nodule.comment in " ".join(row.split()) for row, nodule in zip(rows, nodules, strict=True)
        )

    def _rows(self, complete: Callable[[list[str]], bool]) -> None:
        """Wait until the panel lists all nodules."""
        if not self.viewer.wait_for_rows(complete):
            rows = [" ".join(row.split()) for row in self.viewer.rows()]
            self.keep("incomplete", self.viewer.page.picture())
            expected = ", ".join(nodule.name for nodule in self.study.nodules)
            raise CheckFailedError(Reason.NOT_COMPLETE, f"should list {expected}; lists {rows}")

    def _look(self, kind: str, number: int, faults: Callable[[View, Study, str], list[str]]) -> None:
        """Wait until the view shows one nodule as it should; keep the last picture in any case."""
        name = self.study.nodules[number].name
        view, found = self.viewer.look(
            lambda view: faults_of_image(view, self.study), lambda view: faults(view, self.study, name)
        )
        self.keep(f"{kind}-{name}", self.viewer.page.picture())
        if faults_of_image(view, self.study):
            raise CheckFailedError(Reason.WRONG_IMAGE, f"{name}: {'; '.join(found)}")
        if found:
            raise CheckFailedError(Reason.WRONG_PLACE, f"{name}: {'; '.join(found)}")

    def _heed_complaints(self) -> None:
        if self.viewer.page.complaints:
            raise CheckFailedError(Reason.COMPLAINED, "; ".join(self.viewer.page.complaints))
