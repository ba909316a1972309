"""OHIF as a person uses it: clicks on what the page shows, and waits for what it shows then."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlencode

from conformance.viewer.browser import NotShownError, Page
from conformance.viewer.picture import Box, Picture, View, covered_by

_ROW = "[data-cy=data-row]"
_CANVAS = "canvas.cornerstone-canvas"
_GRID = "document.querySelector('[data-cy=viewport-grid]')"
_YES = f"[...{_GRID}.querySelectorAll('button')].find(e => e.innerText === 'Yes')"
# What OHIF writes and draws over an image as elements of the page; markers of findings are drawn too.
_WRITING = (
    "[data-cy^=viewport-overlay] span, .orientation-marker-value, [data-cy=viewport-grid] button, "
    "[data-cy=viewport-grid] [role=slider], [data-radix-popper-content-wrapper], .ohif-scrollbar"
)
_THUMBNAILS = "[data-cy=study-browser-thumbnail], [data-cy=study-browser-thumbnail-no-image]"
# The two frames that the browser draws next have been drawn, so its main thread is alive and up to date.
_DRAWN = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"
_BETWEEN_LOOKS_S = 0.3
_SETTLING_SHARE = 0.1


class Viewer:
    """OHIF in one tab.

    Parameters
    ----------
    page
        The tab.
    address
        Where `conformance.viewer.site` serves it.
    """

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self._address = address

    def open_list(self, words: Sequence[str]) -> str:
        """Open the study list; the text of the row that has all the words."""
        self.page.open(self._address)
        rows = "[...document.querySelectorAll('tbody tr')]"
        row = f"{rows}.find(r => {json.dumps(list(words))}.every(w => r.innerText.includes(w)))"
        self.page.until(f"!!{row}", "the patient in the study list")
        # the tour of a first visit lies over the images
        self.page.run("localStorage.setItem('shownTours', '[\"basicViewerTour\"]')")
        return str(self.page.run(f"{row}.innerText"))

    def open_study(self, study_uid: str) -> None:
        """Open a study and wait until its first image and all its series are shown."""
        self.page.complaints.clear()
        self.page.open("about:blank")
        self.page.open(f"{self._address}/viewer?{urlencode({'StudyInstanceUIDs': study_uid})}")
        self.page.until(f"document.querySelectorAll('{_THUMBNAILS}').length >= 3", "three series")
        self.page.until(f"/I:/.test({_GRID}?.innerText)", "an image")

    def series(self) -> list[str]:
        """Modalities of the series that the study browser shows."""
        labels = "[...document.querySelectorAll('[data-cy=series-modality-label]')].map(e => e.innerText)"
        return list(self.page.run(labels))

    def open_series(self, modality: str, question: str) -> None:
        """Double-click a series and wait until OHIF asks what it asks about such a series.

        Raises
        ------
        NotShownError
            It doesn't ask `question`.
        """
        thumbnail = (
            f"[...document.querySelectorAll('{_THUMBNAILS}')].find(e => "
            f"e.querySelector('[data-cy=series-modality-label]')?.innerText === {json.dumps(modality)})"
        )
        self._click(thumbnail, count=2)
        self.page.until(
            f"{_GRID}.innerText.includes({json.dumps(question)}) && !!{_YES}", f"the question: {question}"
        )

    def say_yes(self) -> None:
        """Answer the question over the viewport."""
        self._click(_YES)
        self.page.until(f"!{_YES}", "the question answered")

    def open_panel(self, name: str) -> None:
        """Open a panel at the right, by the name of its button."""
        button = f"document.querySelector('[data-cy={name}-btn]')"
        self.page.until(f"!!{button}", f"the button of {name}")
        self._click(button)

    def rows(self) -> list[str]:
        """Texts of the rows of the panel at the right: title and details."""
        titles = f"[...document.querySelectorAll('{_ROW}')].map(e => e.parentElement.innerText)"
        return list(self.page.run(titles))

    def click_row(self, number: int) -> None:
        """Click the title of a row of the panel, counted from 0."""
        self._click(
            f"document.querySelectorAll('{_ROW}')[{number}].querySelector('[data-cy=data-row-title]')"
        )
        # what opens beside a row that the mouse rests on would hide the image
        self.page.call("Input.dispatchMouseEvent", type="mouseMoved", x=640, y=2)

    def _click(self, element: str, count: int = 1) -> None:
        middle = (
            f"(() => {{ const e = {element}; e.scrollIntoView({{block: 'nearest'}}); "
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })()"
        )
        x, y = self.page.run(middle)
        self.page.click(x, y, count)

    def wait_for_text(self, text: str) -> None:
        """Wait until the page writes something anywhere.

        Raises
        ------
        NotShownError
            It doesn't.
        """
        self.page.until(f"document.body.innerText.includes({json.dumps(text)})", text)

    def view(self) -> View:
        """The viewport as it looks now."""
        self.page.run(_DRAWN)
        before = self._facts()
        picture = self.page.picture()
        facts = self._facts()
        if before != facts:
            return self.view()
        canvas = Box(*facts["canvas"])
        left, top = round(canvas.x), round(canvas.y)
        cut: Picture = picture[top : top + round(canvas.height), left : left + round(canvas.width)]
        number = re.search(r"I:\s*(\d+)", facts["written"])
        window = re.search(r"W:\s*(-?[\d.]+)\s*L:\s*(-?[\d.]+)", facts["written"])
        if number is None or window is None:
            raise NotShownError("not shown: number and window of the image")
        return View(
            picture=cut,
            covered=covered_by([Box(*box) for box in facts["writing"]], canvas),
            instance_number=int(number[1]),
            window=(float(window[2]), float(window[1])),
            markers=(facts["left"], facts["top"]),
        )

    def _facts(self) -> dict[str, Any]:
        script = f"""(() => {{
            const box = e => {{ const r = e.getBoundingClientRect(); return [r.x, r.y, r.width, r.height] }};
            const marker = side => document.querySelector('.orientation-marker.' + side)?.innerText ?? '';
            return {{
                canvas: box(document.querySelector('{_CANVAS}')),
                writing: [...[...document.querySelectorAll('{_WRITING}')].map(box),
                    // the icons of the viewport; what marks findings is one large drawing
                    ...[...{_GRID}.querySelectorAll('svg')].map(box).filter(b => Math.max(b[2], b[3]) <= 48)],
                written: {_GRID}.innerText,
                left: marker('left-mid'),
                top: marker('top-mid'),
            }};
        }})()"""
        facts: dict[str, Any] = self.page.run(script)
        return facts

    def look(
        self, image_faults: Callable[[View], list[str]], finding_faults: Callable[[View], list[str]]
    ) -> tuple[View, list[str]]:
        """Look until nothing is wrong with the view, or patience ends; the last view and its faults.

        A view whose image is right is drawn with its findings; it gets less time to change.
        """
        deadline = time.monotonic() + self.page.patience_s
        settled = None
        while True:
            view = self.view()
            found = image_faults(view)
            if found:
                settled = None
            else:
                found = finding_faults(view)
                settled = settled or time.monotonic() + self.page.patience_s * _SETTLING_SHARE
            if not found or time.monotonic() > min(deadline, settled or deadline):
                return view, found
            time.sleep(_BETWEEN_LOOKS_S)

    def wait_for_rows(self, complete: Callable[[list[str]], bool]) -> bool:
        """Whether the panel at the right comes to list what it should."""
        deadline = time.monotonic() + self.page.patience_s
        while not complete(self.rows()):
            if time.monotonic() > deadline:
                return False
            time.sleep(_BETWEEN_LOOKS_S)
        return True
