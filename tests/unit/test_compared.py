"""The comparison in ``result.json``, the report page and the printed report."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from dicom_sr.pairimages import PairImages, render_pairs
from dicom_sr.paper import report_pages
from dicom_sr.summary import report_html, result_json
from inference.types import Comparison, Result
from tests.compared_result import COMPARISON, CONTEXT, FINDINGS, HEADERS, RESULT, VOLUME
from tests.finding_factory import make_prior_volume

REFUSED = Comparison(COMPARISON.prior, COMPARISON.days, reason="The <lungs> don't fall on each other.")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[PairImages, ...]:
    return render_pairs(VOLUME, make_prior_volume(VOLUME), COMPARISON, tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def summary(pictures: tuple[PairImages, ...]) -> dict[str, Any]:
    return described(RESULT, pictures)


def described(result: Result, pictures: tuple[PairImages, ...] = ()) -> dict[str, Any]:
    """After a way through JSON, as every reader gets it."""
    found = result_json(VOLUME, result, HEADERS, CONTEXT, pairs=pictures)
    again: dict[str, Any] = json.loads(json.dumps(found))
    return again


def words(page: str) -> str:
    """What the page shows, without its styles."""
    out: list[str] = []

    class Reader(HTMLParser):
        quiet = False

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.quiet = tag in {"style", "svg"}

        def handle_data(self, data: str) -> None:
            if not self.quiet:
                out.append(data)

    Reader().feed(page)
    return " ".join(" ".join(out).split())


def test_the_block_names_both_examinations(summary: dict[str, Any]) -> None:
    found = summary["comparison"]
    assert found["prior"] == {
        "study_uid": COMPARISON.prior.study_uid,
        "series_uid": COMPARISON.prior.series_uid,
        "date": "2025-01-06",
    }
    assert (found["date"], found["days"], found["reason"]) == ("2026-01-02", 361, None)
    assert found["registration"] == {"overlap": 0.97, "correlation": 0.885, "common_share": 0.998}


def test_each_pair_has_both_sides_and_the_change(summary: dict[str, Any]) -> None:
    grown, new, unseen, unknown, gone, hidden, again = summary["comparison"]["pairs"]
    assert grown["current"]["number"] == 1
    assert grown["current"]["tracking_uid"] == grown["prior"]["tracking_uid"] == FINDINGS[0].tracking_uid
    assert grown["prior"]["measurements"]["mean_diameter_mm"] == 5.2
    assert grown["current"]["measurements"]["mean_diameter_mm"] == 7.1
    assert (grown["diameter_change_mm"], grown["volume_change"], grown["doubling_days"]) == (1.9, 2.0, 223.0)
    assert (grown["change"], grown["words"]) == ("growing", "growing")
    assert grown["volume_words"] == "growing, doubling in less than 400 days"
    assert (new["prior"], new["change"], new["volume_change"]) == (None, "new", None)
    assert (unseen["change"], unseen["words"]) == (None, "outside what the prior examination shows")
    assert (unknown["words"], unknown["reason"]) == ("change not known", "the masks differ.")
    assert (gone["current"], gone["prior"]["tracking_id"]) == (None, "Nodule 8")
    assert hidden["standing"] == "outside what this examination shows"
    assert (again["current"]["number"], again["prior"]["tracking_id"]) == (None, "Nodule 7")


def test_files_of_the_pictures_are_named(summary: dict[str, Any]) -> None:
    pairs = summary["comparison"]["pairs"]
    assert [pair["picture"] for pair in pairs] == [f"change-{n:02d}.png" for n in range(1, 8)]
    assert pairs[0]["stacks"]["prior"]["file"] == "change-01-prior.webp"
    assert pairs[2]["stacks"]["prior"] is None
    bare = described(RESULT)["comparison"]["pairs"]
    assert {pair["picture"] for pair in bare} == {None}


def test_words_for_the_narrative(summary: dict[str, Any]) -> None:
    found = summary["comparison"]
    assert found["sentences"] == [
        "Compared with the examination of 2025-01-06, 361 days before this one of 2026-01-02."
    ]
    starts = [line.split(":")[0].split("(")[0] for line in found["impression"]]
    assert starts == [
        "Nodule 1",
        "Nodule 2",
        "A nodule of 2025-01-06 ",
        "This examination does not show the place of a nodule of 2025-01-06 ",
        "Nodule 7",
    ]
    assert summary["findings"][1]["comparison"] == {"sentence": "Not seen on 2025-01-06: new."}


def test_a_comparison_that_failed_says_why() -> None:
    found = described(replace(RESULT, comparison=REFUSED))
    assert found["comparison"]["reason"] == REFUSED.reason
    assert found["comparison"]["pairs"] == []
    assert "could not be compared" in found["comparison"]["sentences"][0]
    assert found["findings"][0]["comparison"] is None
    page = words(report_html(found))
    assert "Not compared with the examination of 2025-01-06" in page
    assert "The <lungs> don't fall on each other." in page


def test_without_a_prior_nothing_is_said() -> None:
    found = described(replace(RESULT, comparison=None))
    assert found["comparison"] is None
    assert found["findings"][0]["comparison"] is None
    assert "ompared with the examination" not in words(report_html(found))


def test_the_page_shows_both_dates(summary: dict[str, Any], pictures: tuple[PairImages, ...]) -> None:
    page = report_html(summary, pairs=pictures)
    shown = words(page)
    assert "Compared with the examination of 2025-01-06" in shown
    assert "5.2 mm 7.1 mm" in shown
    assert "+200 % 223 days" in shown
    assert "not seen any more" in shown
    assert "not shown" in shown
    assert page.count('<img src="data:image/png') == len(pictures)
    assert "http://" not in page


def test_the_printed_report_has_them_too(summary: dict[str, Any], pictures: tuple[PairImages, ...]) -> None:
    figures = report_pages(summary, pairs=pictures)
    texts = [text.get_text() for figure in figures for text in figure.texts]
    assert "Compared with the examination of 2025-01-06" in texts
    assert "223 days" in texts
    assert sum(len(figure.axes) for figure in figures) == len(pictures)
    assert sum(len(figure.axes) for figure in report_pages(summary)) == 0


def test_pictures_of_another_comparison_are_refused(pictures: tuple[PairImages, ...]) -> None:
    with pytest.raises(ValueError, match="zip"):
        described(RESULT, pictures[:2])
