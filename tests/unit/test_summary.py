from __future__ import annotations

import json
import re
from copy import deepcopy
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset

from dicom_sr.context import OtherSeries
from dicom_sr.keyimages import KeyImage, render_key_images, render_overview
from dicom_sr.part10 import save
from dicom_sr.report import build_report
from dicom_sr.seg import build_seg
from dicom_sr.stacks import render_stacks
from dicom_sr.summary import (
    DeliveryLine,
    Output,
    SentencePair,
    not_analysed_json,
    report_html,
    result_json,
)
from inference.types import Descriptor, Malignancy, Observation, SemanticFeature
from tests.ct_factory import make_ct_series
from tests.finding_factory import (
    TRAINED,
    UNTRAINED,
    make_context,
    make_finding,
    make_findings,
    make_result,
    make_volume,
    without_pixels,
)

SERIES = make_ct_series(16)
HEADERS = without_pixels(SERIES)
VOLUME = make_volume(SERIES)
OTHER = OtherSeries("1.2.3", "CT", "TOO_THICK", "Slices are 8 mm thick.")
CONTEXT = make_context(cards=(UNTRAINED, TRAINED), other_series=(OTHER,))
TOP_LEVEL = {
    "schema_version",
    "notice",
    "status",
    "reason",
    "patient",
    "study",
    "series",
    "findings",
    "comparison",
    "observations",
    "sentence_pairs",
    "narrative",
    "models",
    "warnings",
    "provenance",
    "outputs",
    "recipients",
    "timings_s",
}


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], tuple[KeyImage, ...], Path]:
    directory = tmp_path_factory.mktemp("out")
    features = (SemanticFeature("spiculation", 4, 0.71),)
    first = make_finding(VOLUME, (2, 4, 4), malignancy=Malignancy(0.3125, 0.456), features=features)
    first = replace(first, descriptors=(Descriptor("Sphericity", 0.8031234, "1", "IBSI QCFX"),))
    findings = (first, make_findings(VOLUME, 2)[1])
    observations = (Observation("emphysema", "present", 0.83),)
    result = make_result(VOLUME, findings, CONTEXT, warnings=("Thick.",), observations=observations)
    seg = build_seg(VOLUME, findings, HEADERS, CONTEXT)
    report = build_report(VOLUME, result, seg, HEADERS, CONTEXT)
    outputs = [
        Output.of(ds, directory / name, save(ds, directory / name))
        for ds, name in ((seg, "seg.dcm"), (report, "sr.dcm"))
    ]
    images = render_key_images(VOLUME, findings, directory)
    overview = render_overview(VOLUME, findings, directory / "overview.png")
    summary = result_json(
        VOLUME,
        result,
        HEADERS,
        CONTEXT,
        outputs=outputs,
        key_images=images,
        stacks=render_stacks(VOLUME, findings[:1], directory),
        sentence_pairs=[SentencePair("margin", ("Sharp.",), ("Blurred.",))],
        timings_s={"load": 1.2345, "detect": 20.0},
    )
    return summary, images, overview


def test_layout_is_the_documented_one(rich: tuple[dict[str, Any], Any, Any]) -> None:
    summary, _, _ = rich
    assert set(summary) == TOP_LEVEL
    assert set(not_analysed_json(HEADERS, "GAP", "A gap.", CONTEXT)) == TOP_LEVEL
    assert summary["schema_version"] == "1.5"
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["sentence_pairs"] == [
        {"feature": "margin", "positive": ["Sharp."], "negative": ["Blurred."]}
    ]


def test_what_was_analysed_and_what_not(rich: tuple[dict[str, Any], Any, Any]) -> None:
    summary, _, _ = rich
    assert (summary["status"], summary["reason"]) == ("analysed", None)
    assert summary["patient"]["id"] == "SYNTHETIC-1"
    assert summary["study"]["date"] == "2020-01-01"
    series = summary["series"]
    assert series["analysed"]["series_uid"] == VOLUME.series_uid
    assert (series["analysed"]["shape"], series["analysed"]["spacing_mm"]) == ([16, 64, 64], [2.5, 5.0, 5.0])
    assert [r["code"] for r in series["refused"]] == ["TOO_THICK"]
    assert summary["timings_s"] == {"load": 1.23, "detect": 20.0}


def test_findings_have_patient_coordinates_and_all_measurements(
    rich: tuple[dict[str, Any], Any, Any],
) -> None:
    first, second = rich[0]["findings"]
    finding = make_finding(VOLUME, (2, 4, 4))
    expected = VOLUME.index_to_lps((finding.key_slice, *finding.key_point))
    assert first["point_lps_mm"] == pytest.approx(expected.tolist(), abs=0.01)
    assert first["key_slice"]["sop_instance_uid"] == HEADERS[3].SOPInstanceUID
    assert first["measurements"]["mean_hu"] == -12.345
    assert len(first["measurements"]) == 9
    assert first["malignancy"] == {"image_only": 0.3125, "fused": 0.456}
    assert first["features"] == [
        {"name": "spiculation", "value": 4, "meaning": "4 out of 5", "probability": 0.71}
    ]
    assert (first["key_image"], second["key_image"]) == ("nodule-01.png", "nodule-02.png")
    assert (first["stack"]["file"], second["stack"]) == ("nodule-01-slices.webp", None)
    assert first["stack"]["slices"][first["stack"]["key"]]["index"] == first["key_slice"]["index"]
    assert (second["malignancy"], second["features"], second["descriptors"]) == (None, [], [])
    assert first["descriptors"] == [
        {"name": "Sphericity", "value": 0.80312, "unit": "1", "source": "IBSI QCFX"}
    ]
    assert second["site"] == {"words": "left lower lobe", "laterality": "left", "lobe": "lower"}


def test_provenance_and_outputs(rich: tuple[dict[str, Any], Any, Any]) -> None:
    summary, _, _ = rich
    assert summary["provenance"]["device_uid"] == CONTEXT.device_uid
    assert summary["provenance"]["created_at"] == "2026-01-02T03:04:05+00:00"
    assert [(o["kind"], o["file"], len(o["sha256"])) for o in summary["outputs"]] == [
        ("SEG", "seg.dcm", 64),
        ("SR", "sr.dcm", 64),
    ]
    assert [m["weights_sha256"] for m in summary["models"]] == [None, "ab" * 32]
    assert "Research use only" in summary["notice"]


def test_not_analysed(tmp_path: Path) -> None:
    summary = not_analysed_json(HEADERS, "GAP", "A gap of 5 mm.", CONTEXT)
    assert (summary["status"], summary["findings"]) == ("not_analysed", [])
    assert summary["reason"] == {"code": "GAP", "sentence": "A gap of 5 mm."}
    assert [r["code"] for r in summary["series"]["refused"]] == ["GAP", "TOO_THICK"]
    page = report_html(summary)
    assert "Not analysed" in page
    assert "A gap of 5 mm." in page
    assert "No statement is made" in page
    with pytest.raises(ValueError, match="NO_SUCH"):
        not_analysed_json(HEADERS, "NO_SUCH", "", CONTEXT)


def test_not_analysed_of_an_object_without_anything() -> None:
    ds = Dataset()
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2", "1.3"
    summary = not_analysed_json([ds], "NOT_AN_IMAGE", "No image.", CONTEXT)
    assert set(summary["patient"].values()) == {""}
    assert "No patient name" in report_html(summary)


class Page(HTMLParser):
    """Collects tags and what they point to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "action"}]


def test_page_is_self_contained(rich: tuple[dict[str, Any], tuple[KeyImage, ...], Path]) -> None:
    summary, images, overview = rich
    page = report_html(json.loads(json.dumps(summary)), key_images=images, overview=overview)
    parsed = Page(page)
    assert len(parsed.links) == 3
    assert all(link.startswith("data:image/png;base64,") for link in parsed.links)
    assert not {"script", "link", "iframe", "object"} & set(parsed.tags)
    assert not re.search(r"url\(|@import|https?:", page)
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    assert page.count("Research use only, not for primary diagnosis.") >= 2


def test_page_shows_the_slices_without_a_script(tmp_path: Path) -> None:
    findings = make_findings(VOLUME, 2)
    images, stacks = render_key_images(VOLUME, findings, tmp_path), render_stacks(VOLUME, findings, tmp_path)
    summary = result_json(VOLUME, make_result(VOLUME, findings, CONTEXT), HEADERS, CONTEXT, key_images=images)
    parsed = Page(page := report_html(summary, key_images=images, stacks=stacks))
    pictures = [link for link in parsed.links if link.startswith("data:image/webp;base64,")]
    used = [link for link in parsed.links if link.startswith("#slices-")]
    assert len(pictures) == 2
    assert len(used) == sum(len(stack.slices) for stack in stacks)
    assert len(parsed.links) == len(images) + len(pictures) + len(used)
    for stack in stacks:
        assert f'd="{stack.slices[stack.key].outline}"' in page
    assert not {"script", "link", "iframe", "object"} & set(parsed.tags)


def test_page_says_what_the_result_says(rich: tuple[dict[str, Any], tuple[KeyImage, ...], Path]) -> None:
    summary, images, overview = rich
    lines = [DeliveryLine("PACS", "SEG", "committed", "verified at 14:03")]
    page = report_html(summary, key_images=images, overview=overview, deliveries=lines)
    for text in (
        "2 nodules</strong> marked automatically",
        "8.0 \u00d7 6.2 mm",
        "31 % image alone",
        "46 % with record",
        "not assessed",
        '<td data-name="Spiculation"><span>4 out of 5 <span class="muted">71 %</span>',
        "emphysema: present (83 %)",
        "Thick.",
        "No trained weights",
        "Sensitivity 1 of 1 on one synthetic series.",
        "verified at 14:03",
        "TOO_THICK",
        "Not reviewed by a physician.",
        "load 1.2 s",
    ):
        assert text in page


def test_page_without_findings_does_not_say_healthy() -> None:
    result = make_result(VOLUME, (), CONTEXT)
    page = report_html(result_json(VOLUME, result, HEADERS, CONTEXT))
    assert "No nodule found" in page
    assert "This does not exclude nodules." in page
    assert "min_diameter_mm = 4" in page


def test_text_from_dicom_is_escaped() -> None:
    headers = deepcopy(HEADERS)
    attack = "<script>alert(1)</script>"
    headers[0].PatientName = attack
    headers[0].StudyDescription = attack
    headers[0].SeriesDescription = '"><img src=x>'
    context = make_context(other_series=(OtherSeries("1.2", "CT", "GAP", "<b>bold</b>"),))
    page = report_html(result_json(VOLUME, make_result(VOLUME, (), context), headers, context))
    assert "&lt;script&gt;alert(1)" in page
    assert "<b>bold" not in page
    assert not {"script", "img", "b"} & set(Page(page).tags)
