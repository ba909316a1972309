from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dicom_sr.profiles import ORDER, PROFILES, STANDARD, Form, Profile, union


def test_what_each_profile_sends() -> None:
    assert {name: profile.forms for name, profile in PROFILES.items()} == {
        "standard": ("seg", "sr"),
        "ohif": ("seg", "sr"),
        "slicer": ("seg:all-frames", "sr:all-frames"),
        "weasis": ("seg", "sr:enhanced"),
        "legacy": ("seg", "sr:enhanced", "sc", "pdf"),
    }


def test_no_profile_sends_label_maps_unasked() -> None:
    assert all(profile.segmentation == "binary" for profile in PROFILES.values())


@pytest.mark.parametrize("profile", PROFILES.values())
def test_masks_go_before_the_report_and_a_report_names_the_mask_that_is_sent(profile: Profile) -> None:
    forms = [Form.parse(name) for name in profile.forms]
    assert [form.kind for form in forms] == [kind for kind in ORDER if kind in {f.kind for f in forms}]
    mask, report = (next(form for form in forms if form.kind == kind) for kind in ("seg", "sr"))
    assert report.mask == mask


def test_encodings_are_named() -> None:
    profile = replace(PROFILES["legacy"], segmentation="labelmap", empty_frames=True)
    assert profile.forms == ("seg:labelmap+all-frames", "sr:enhanced+labelmap+all-frames", "sc", "pdf")
    report = Form.parse(profile.forms[1])
    assert (report.labelmap, report.all_frames, report.enhanced) == (True, True, True)
    assert str(report.mask) == profile.forms[0]
    assert report.words == "SR (Enhanced SR, label map, all frames)"
    assert Form.parse("sc").words == "SC"


def test_only_a_part_is_sent_where_a_site_says_so() -> None:
    assert replace(PROFILES["legacy"], objects=("pdf", "sc")).forms == ("sc", "pdf")


def test_each_form_is_made_once_whoever_wants_it() -> None:
    assert union([]) == STANDARD
    assert union(profile.forms for profile in PROFILES.values()) == (
        "seg",
        "seg:all-frames",
        "sr",
        "sr:all-frames",
        "sr:enhanced",
        "sc",
        "pdf",
    )


@pytest.mark.parametrize("name", ["", "gsps", "seg:tiny", "sr:enhanced+"])
def test_an_unknown_form_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no form"):
        Form.parse(name)


def test_the_document_tells_what_the_profiles_are() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "profiles.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.partition("\n## ")[0].splitlines()
        if "| `" in line
    ]
    assert {row[0].strip("`"): row[1:] for row in rows} == {
        name: [
            ", ".join(kind.upper() for kind in profile.objects),
            f"{profile.segmentation}, {'all frames' if profile.empty_frames else 'only frames with a voxel'}",
            {"comprehensive-3d": "Comprehensive 3D SR", "enhanced": "Enhanced SR"}[profile.report],
        ]
        for name, profile in PROFILES.items()
    }
