from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dicom_sr.context import NOT_REVIEWED, RESEARCH_USE, OtherSeries
from dicom_sr.keyimages import KeyImage
from dicom_sr.pages import BODY, HEIGHT, MARGIN, WIDTH, Pages, _measure, drawable, to_pdf, to_pixels, wrap
from dicom_sr.paper import person, report_pages, summary_pages
from dicom_sr.summary import not_analysed_json, result_json
from inference.types import Malignancy, Observation, SemanticFeature
from tests.ct_factory import make_ct_series
from tests.finding_factory import (
    TRAINED,
    UNTRAINED,
    make_context,
    make_findings,
    make_result,
    make_volume,
    without_pixels,
)

MADE_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def summarise(count: int = 2, **header: str) -> dict[str, Any]:
    series = make_ct_series(16, matrix=64)
    for keyword, value in header.items():
        setattr(series[0], keyword, value)
    volume = make_volume(series)
    features = (SemanticFeature("spiculation", 4, 0.7),)
    findings = tuple(
        replace(finding, malignancy=Malignancy(0.3, 0.42), features=features)
        for finding in make_findings(volume, count)
    )
    context = make_context(
        cards=(UNTRAINED, TRAINED),
        other_series=(OtherSeries("1.2.5", "CT", "TOO_THICK", "Slices are 8 mm thick."),),
    )
    result = make_result(
        volume, findings, context, warnings=("Thick slices.",), observations=(Observation("lung_rads", "4A"),)
    )
    return result_json(volume, result, without_pixels(series), context)


def texts(figures: list[Figure]) -> str:
    return "\n".join(text.get_text() for figure in figures for text in figure.texts)


def one_line(figures: list[Figure]) -> str:
    return " ".join(texts(figures).split())


def test_the_report_says_who_what_how_well_and_for_what_use() -> None:
    said = one_line(report_pages(summarise(PatientName="DOE^JANE")))
    for words in (
        "DOE, JANE",
        "SYNTHETIC-1",
        "ACC-a",
        "2 nodules marked automatically",
        "Warning: Thick slices.",
        "right upper lobe",
        "8.0 x 6.2 mm",
        "88 %",
        "30 % image alone, 42 % with",
        "spiculation 4 out of 5 (70 %)",
        "Lung-RADS: 4A",
        "Sensitivity 1 of 1 on one synthetic series.",
        "Limits: Small nodules are missed.",
        "ab" * 32,
        "CT 1.2.5: TOO_THICK. Slices are 8 mm thick.",
        "0.1.0+blobs1",
        "2026-01-02T03:04:05+00:00",
    ):
        assert words in said, words


def test_every_page_says_that_nobody_reviewed_it_and_whose_it_is() -> None:
    pages = report_pages(summarise(40, PatientName="DOE^JANE"))
    assert len(pages) > 2
    for number, page in enumerate(pages, start=1):
        said = texts([page])
        assert f"{RESEARCH_USE} {NOT_REVIEWED}" in said
        assert f"DOE, JANE · SYNTHETIC-1 · 2020-01-01 page {number} of {len(pages)}" in said


def test_a_table_repeats_its_header_on_the_next_page() -> None:
    pages = summary_pages(summarise(40))
    with_rows = [page for page in pages if "right middle lobe" in texts([page])]
    assert len(with_rows) >= 2
    assert all("certainty" in texts([page]) for page in with_rows)


def test_nothing_leaves_the_page() -> None:
    series = "A very long series description $\\frac{a}{b}$ " * 9
    summary = summarise(30)
    summary["study"]["description"], summary["warnings"] = series, ["1.2.840.10008" * 20]
    for page in report_pages(summary):
        for text in page.texts:
            x, y = text.get_position()
            style = replace(
                BODY,
                size=float(text.get_fontsize()),
                bold="Bold" in str(text.get_fontproperties().get_file()),
            )
            assert MARGIN <= x * WIDTH < WIDTH - MARGIN
            assert 20 < y * HEIGHT < HEIGHT - 20
            assert x * WIDTH + _measure(text.get_text(), style) <= WIDTH - MARGIN + 1


def test_no_nodule_is_not_said_to_be_healthy() -> None:
    said = one_line(summary_pages(summarise(0)))
    assert "No nodule found" in said
    assert "min_diameter_mm = 4" in said
    assert "This does not exclude nodules." in said


def test_what_was_not_analysed_says_why() -> None:
    headers = without_pixels(make_ct_series(3, matrix=8))
    summary = not_analysed_json(headers, "TOO_THICK", "The slices are 8 mm thick.", make_context())
    for said in (one_line(summary_pages(summary)), one_line(report_pages(summary))):
        assert "Not analysed (TOO_THICK)" in said
        assert "The slices are 8 mm thick." in said
        assert "No statement is made on the presence or absence of nodules." in said


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("DOE^JANE", "DOE, JANE"),
        ("DOE^JANE^MARY^DR^PHD", "DOE, JANE MARY DR PHD"),
        ("DOE", "DOE"),
        ("^JANE", "JANE"),
        ("", ""),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada, Tarou"),
        ("=山田^太郎", "山田, 太郎"),
    ],
)
def test_names_as_one_reads_them(name: str, read: str) -> None:
    assert person(name) == read


def test_what_the_font_lacks_is_seen_to_be_missing() -> None:
    assert drawable("Müller Ωμέγα Иван") == "Müller Ωμέγα Иван"
    assert drawable("山\x00\n") == "�  "
    said = texts(summary_pages(summarise(PatientName="山田^太郎")))
    assert "��, �� (in a script that this page can't show)" in said


def test_lines_are_as_wide_as_they_may_be_and_no_word_is_lost() -> None:
    text = "one two three four " * 12 + "2.25." + "1" * 80
    lines = wrap(text, BODY, 120.0)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(_measure(line, BODY) <= 120.0 for line in lines)
    assert len(lines) < 16


def test_equal_pages_are_equal_bytes_and_tell_only_the_given_time(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(picture)
    images = [KeyImage(picture, "Nodule 1", 3, "")]
    first, second = (
        to_pdf(report_pages(summarise(), images), title="Report", created_at=MADE_AT) for _ in range(2)
    )
    assert first == second
    assert first.startswith(b"%PDF-")
    assert first.count(b"/CreationDate (D:20260102030405Z)") == 1
    assert first.count(b"(D:") == 2
    assert b"/Subtype /Image" in first
    assert b"/FontFile2" in first  # embedded
    assert b"/ToUnicode" in first  # searchable
    assert b"/Encrypt" not in first


def test_a_captured_page_is_the_page() -> None:
    pages = Pages("Banner", "Footer")
    pages.text("X")
    page = to_pixels(pages.finish()[0])
    assert page.shape == (1403, 991, 3)
    assert page.dtype == np.uint8
    assert (page[0, 0] == 255).all()
    rows, columns = (page.max(axis=2) < 150).nonzero()
    assert rows.min() < 60  # the banner
    assert 65 <= columns.min() <= 75  # the margin


@pytest.mark.parametrize("above", [0.0, 640.0, 655.0, 670.0, 685.0, 700.0, 715.0])
def test_a_title_stays_with_its_first_paragraph(above: float) -> None:
    pages = Pages("banner", "footer")
    pages.text("first")
    pages.space(above)
    pages.part("IMPRESSION", ["word " * 40, "second"])
    for figure in pages.finish():
        words = [text.get_text() for text in figure.texts]
        if "IMPRESSION" in words:
            # both lines of the first paragraph are on its page
            assert len([line for line in words if line.startswith("word word")]) == 2
