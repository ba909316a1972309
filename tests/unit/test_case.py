"""The objects of a result in the forms that are asked for: of one analysis, read back, always the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import (
    Comprehensive3DSRStorage,
    EncapsulatedPDFStorage,
    EnhancedSRStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)

from dicom_sr.part10 import save
from dicom_sr.profiles import PROFILES, STANDARD
from dicom_sr.verify import VerificationError
from inference.errors import ReasonCode
from inference.record import accept
from pacs_node import case
from pacs_node.request import CaseFile, CaseOutcome, Refusal
from tests.packed_case import FORMS, RECEIVERS, VOLUME, Pack, packing

PLAIN = {"json", "html", "png", "stack"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pack]:
    with packing(tmp_path_factory.mktemp("results")) as pack:
        yield pack


@pytest.fixture(scope="module")
def everything(run: Pack) -> tuple[CaseOutcome, CaseOutcome]:
    """Every form of every profile, made twice."""
    return run(FORMS, receivers=RECEIVERS), run(FORMS, receivers=RECEIVERS)


def objects(outcome: CaseOutcome) -> dict[str, Dataset]:
    return {file.path.name: dcmread(file.path) for file in outcome.files if file.kind not in PLAIN}


def hashes(files: tuple[CaseFile, ...]) -> dict[str, str]:
    return {file.path.name: file.sha256 for file in files if file.sop_instance_uid is not None}


def summary(outcome: CaseOutcome) -> Any:
    (path,) = (file.path for file in outcome.files if file.kind == "json")
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_form_of_every_profile_out_of_one_analysis(everything: tuple[CaseOutcome, CaseOutcome]) -> None:
    first, second = everything
    made = objects(first)
    assert {name: ds.SOPClassUID for name, ds in made.items()} == {
        "seg.dcm": SegmentationStorage,
        "seg-all-frames.dcm": SegmentationStorage,
        "sr.dcm": Comprehensive3DSRStorage,
        "sr-all-frames.dcm": Comprehensive3DSRStorage,
        "sr-enhanced.dcm": EnhancedSRStorage,
        "sc-01.dcm": SecondaryCaptureImageStorage,
        "sc-02.dcm": SecondaryCaptureImageStorage,
        "sc-03.dcm": SecondaryCaptureImageStorage,
        "pdf.dcm": EncapsulatedPDFStorage,
    }
    assert len({ds.SOPInstanceUID for ds in made.values()}) == len(made)
    assert {ds.StudyInstanceUID for ds in made.values()} == {VOLUME.study_uid}
    assert hashes(first.files) == hashes(second.files)
    sent = [file.kind for file in first.files if file.sop_instance_uid]
    assert sent == ["seg"] * 2 + ["sr"] * 3 + ["sc"] * 3 + ["pdf"]


def test_a_report_refers_to_the_mask_that_goes_with_it(everything: tuple[CaseOutcome, CaseOutcome]) -> None:
    made = objects(everything[0])
    for report, mask in (("sr", "seg"), ("sr-all-frames", "seg-all-frames"), ("sr-enhanced", "seg")):
        evidence = made[f"{report}.dcm"].CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
        named = {
            item.ReferencedSOPInstanceUID for series in evidence for item in series.ReferencedSOPSequence
        }
        masks = {name for name, ds in made.items() if ds.Modality == "SEG" and ds.SOPInstanceUID in named}
        assert masks == {f"{mask}.dcm"}


def test_the_standard_objects_are_the_same_whatever_else_is_made(
    run: Pack, everything: tuple[CaseOutcome, CaseOutcome]
) -> None:
    alone, among = hashes(run(STANDARD).files), hashes(everything[0].files)
    assert alone == {name: among[name] for name in ("seg.dcm", "sr.dcm")}


def test_the_result_says_what_is_to_be_sent_to_whom(everything: tuple[CaseOutcome, CaseOutcome]) -> None:
    outcome = everything[0]
    told = summary(outcome)
    pictures = ["sc-01.dcm", "sc-02.dcm", "sc-03.dcm", "pdf.dcm"]
    assert [(row["destination"], row["profile"], row["files"]) for row in told["recipients"]] == [
        ("to-standard", "standard", ["seg.dcm", "sr.dcm"]),
        ("to-ohif", "ohif", ["seg.dcm", "sr.dcm"]),
        ("to-slicer", "slicer", ["seg-all-frames.dcm", "sr-all-frames.dcm"]),
        ("to-weasis", "weasis", ["seg.dcm", "sr-enhanced.dcm"]),
        ("to-legacy", "legacy", ["seg.dcm", "sr-enhanced.dcm", *pictures]),
    ]
    assert {(row["file"], row["encoding"]) for row in told["outputs"] if row["encoding"]} == {
        ("seg-all-frames.dcm", "all-frames"),
        ("sr-all-frames.dcm", "all-frames"),
        ("sr-enhanced.dcm", "enhanced"),
    }
    assert {row["file"]: row["sha256"] for row in told["outputs"]} == hashes(outcome.files)
    page = next(file.path for file in outcome.files if file.kind == "html").read_text(encoding="utf-8")
    assert "To to-slicer (profile slicer): seg-all-frames.dcm, sr-all-frames.dcm" in page


def test_a_profile_alone_gets_no_more_than_it_wants(run: Pack) -> None:
    assert set(objects(run(PROFILES["slicer"].forms))) == {"seg-all-frames.dcm", "sr-all-frames.dcm"}


def test_without_findings_there_is_one_report_for_all_masks_and_still_the_pictures(run: Pack) -> None:
    outcome = run(FORMS, findings=0, receivers=RECEIVERS)
    assert list(objects(outcome)) == ["sr.dcm", "sr-enhanced.dcm", "sc-01.dcm", "pdf.dcm"]
    files = {row["profile"]: row["files"] for row in summary(outcome)["recipients"]}
    assert files["slicer"] == ["sr.dcm"]
    assert files["legacy"] == ["sr-enhanced.dcm", "sc-01.dcm", "pdf.dcm"]


def test_a_site_may_take_what_has_no_known_prior_for_a_baseline(run: Pack) -> None:
    outcome = run(STANDARD, screening=True, baseline=True)
    said = {row["name"]: row["value"] for row in summary(outcome)["observations"]}
    assert "lung_rads" in said or "new, stable or growing" not in said["lung_rads_undetermined"]
    assert said["screening"].endswith("as no earlier CT is known, it is taken as the first (baseline)")


@pytest.mark.parametrize(("screening", "words"), [(True, "yes"), (False, "no"), (None, "not known")])
def test_the_guidelines_speak_in_result_and_report(run: Pack, screening: bool | None, words: str) -> None:
    outcome = run(FORMS, screening=screening, record=accept({"age_years": 60}, "test"))
    said = {row["name"]: row["value"] for row in summary(outcome)["observations"]}
    assert said["screening"].startswith(f"{words}, ")
    assert ("fleischner_2017" in said) is (screening is False)
    (report,) = (ds for name, ds in objects(outcome).items() if name == "sr.dcm")
    texts = [str(element.value) for element in report.iterall() if element.keyword == "TextValue"]
    assert any(text.startswith(said["lung_rads_undetermined"]) for text in texts)
    (warning,) = (text for text in summary(outcome)["warnings"] if "no model that reads" in text)
    assert "not used" not in warning


def test_what_was_not_analysed_is_said_in_every_form(run: Pack) -> None:
    refusal = Refusal(ReasonCode.TOO_THICK, "The slices are 8 mm thick.")
    first = objects(run(FORMS, refusal=refusal))
    assert list(first) == ["sr.dcm", "sr-enhanced.dcm", "sc-01.dcm", "pdf.dcm"]
    second = objects(run(("sr", "sc"), refusal=replace(refusal, sentence="The slices are 9 mm thick.")))
    assert list(second) == ["sr.dcm", "sc-01.dcm"]
    assert not {ds.SOPInstanceUID for ds in first.values()} & {ds.SOPInstanceUID for ds in second.values()}


@pytest.mark.parametrize("kind", ["sc", "pdf"])
def test_a_wrong_object_never_leaves(run: Pack, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:

    def broken(dataset: Dataset, path: Path) -> str:
        if path.name.startswith(kind):
            keyword = {"sc": "SourceImageSequence", "pdf": "SourceInstanceSequence"}[kind]
            del dataset[keyword].value[0]
        return save(dataset, path)

    monkeypatch.setattr(case, "save", broken)
    with pytest.raises(VerificationError):
        run((kind,))
