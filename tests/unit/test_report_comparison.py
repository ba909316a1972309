"""A prior examination in the report: coded, in words, and read back."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread

from dicom_sr.conclusion import comparison_sentences
from dicom_sr.part10 import save
from dicom_sr.report import ReportClass, build_report
from dicom_sr.seg import build_seg
from dicom_sr.verify import VerificationError, reread
from dicom_sr.verify_comparison import group_differences, study_differences
from inference.change import Change, Doubling
from inference.types import Comparison, Pair, Result, SecondLook, Standing
from tests.compared_result import COMPARISON, CONTEXT, FINDINGS, HEADERS, RESULT, VOLUME
from tests.finding_factory import make_result

REFUSED = Comparison(COMPARISON.prior, COMPARISON.days, reason="The lungs don't fall on each other.")


@pytest.fixture(scope="module")
def seg(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Path]:
    path = tmp_path_factory.mktemp("seg") / "seg.dcm"
    dataset = build_seg(VOLUME, FINDINGS, HEADERS, CONTEXT)
    save(dataset, path)
    return dataset, path


@pytest.fixture(scope="module")
def written(seg: tuple[Dataset, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(RESULT, seg[0], tmp_path_factory.mktemp("sr") / "sr.dcm")


def write(result: Result, seg: Dataset | None, path: Path, **options: Any) -> Path:
    save(build_report(VOLUME, result, seg, HEADERS, CONTEXT, **options), path)
    return path


def children(item: Dataset, concept: str) -> list[Dataset]:
    return [i for i in item.ContentSequence if i.ConceptNameCodeSequence[0].CodeValue == concept]


def child(item: Dataset, concept: str) -> Dataset:
    (found,) = children(item, concept)
    return found


def number(item: Dataset) -> tuple[float, str]:
    measured = item.MeasuredValueSequence[0]
    return float(measured.NumericValue), str(measured.MeasurementUnitsCodeSequence[0].CodeValue)


def value(item: Dataset) -> tuple[str, str]:
    code = item.ConceptCodeSequence[0]
    return str(code.CodeValue), str(code.CodeMeaning)


def volumetric(report: Dataset) -> list[Dataset]:
    groups = child(report, "126010").ContentSequence
    return [g for g in groups if g.ContentTemplateSequence[0].TemplateIdentifier == "1411"]


def test_each_nodule_says_what_became_of_it(written: Path) -> None:
    grown, new, unseen, unknown = volumetric(dcmread(written))
    assert value(child(grown, "NN-16")) == ("15454001", "Increase in size")
    assert value(child(new, "NN-16")) == ("129721008", "New finding")
    assert {value(child(one, "NN-16"))[1] for one in (unseen, unknown)} == {"Undetermined"}
    # the tracking UID of a nodule is the first UID of its group: OHIF takes it for the nodule's
    assert FINDINGS[0].tracking_uid == next(i for i in grown.ContentSequence if i.ValueType == "UIDREF").UID
    assert child(grown, "C2348792").TextValue == "2026-01-02"


def test_numbers_of_the_change_are_inferred_from_the_prior_ones(written: Path) -> None:
    grown, new, _, unknown = volumetric(dcmread(written))
    expected = {"NN-14": (1.9, "mm"), "NN-6": (200.0, "%"), "NN-5": (223.0, "d")}
    assert {concept: number(child(grown, concept)) for concept in expected} == expected
    assert not any(children(new, concept) for concept in expected)
    assert number(child(unknown, "NN-14")) == (0.0, "mm")
    assert children(unknown, "NN-6") == []
    before = round(FINDINGS[0].measurements.volume_mm3 / 3, 1)
    for concept, prior, amount in (
        ("NN-14", "RID50155", (5.2, "mm")),
        ("NN-6", "118565006", (before, "mm3")),
        ("NN-5", "118565006", (before, "mm3")),
    ):
        source = child(child(grown, concept), prior)
        assert (source.RelationshipType, number(source)) == ("INFERRED FROM", amount)
        assert child(source, "111060").Date == "20250106"


def test_the_study_level_names_the_prior_and_what_is_gone(written: Path) -> None:
    level = child(dcmread(written), "C0034375")
    examination = child(level, "122140")
    assert value(examination)[1] == "Yes"
    assert child(examination, "111060").Date == "20250106"
    assert COMPARISON.prior.study_uid == child(examination, "110180").UID
    assert COMPARISON.prior.series_uid == child(examination, "112002").UID
    assert number(child(examination, "128740")) == (361.0, "d")
    assert value(child(child(examination, "128740"), "128741")) == ("NN-15", "Prior examination")
    assert "overlap 0.970, correlation 0.885" in child(examination, "121106").TextValue
    resolved, hidden, again = children(level, "NN-16")
    said = [value(one)[1] for one in (resolved, hidden, again)]
    assert said == ["Problem resolved", "Undetermined", "Increase in size"]
    assert COMPARISON.pairs[4].prior.tracking_uid == child(resolved, "112040").UID  # type: ignore[union-attr]
    assert child(resolved, "112039").TextValue == "Nodule 8"
    assert number(child(resolved, "RID50155")) == (5.2, "mm")
    assert child(hidden, "121106").TextValue == "Outside what this examination shows."
    assert number(child(again, "NN-14")) == (1.9, "mm")
    assert number(child(child(again, "NN-14"), "RID50155")) == (5.2, "mm")
    assert "only when looked for at its place" in child(again, "121106").TextValue


def test_sentences_say_both_dates() -> None:
    first, grown, new, unseen, unknown, gone, hidden, again = comparison_sentences(RESULT)
    assert first == "Compared with the examination of 2025-01-06, 361 days before this one of 2026-01-02."
    assert "Since 2025-01-06: growing; mean diameter from 5.2 to 7.1 mm, volume from" in grown
    assert grown.endswith(
        "Change of volume +200 %. By volume: growing, doubling in less than 400 days. Volume doubling time "
        "223 days."
    )
    assert new.endswith("Not seen on 2025-01-06: new.")
    assert unseen.endswith(
        "The examination of 2025-01-06 does not show its place, so its change is not known."
    )
    assert "change not known" in unknown
    assert "Its change since 2025-01-06 is not known: the masks differ." in unknown
    assert unknown.endswith("It was seen on 2025-01-06 only when its place was looked at again.")
    assert gone.startswith("A nodule of 2025-01-06 (Nodule 8, right upper lobe, mean diameter 5.2 mm")
    assert "(Nodule 7, right upper lobe" in again
    assert "but is still there. Since 2025-01-06: slowly growing; mean diameter from 5.2 to 7.1 mm" in again
    assert hidden.startswith("This examination does not show the place of a nodule of 2025-01-06 (Nodule 9")


def test_a_comparison_that_failed_says_why(seg: tuple[Dataset, Path], tmp_path: Path) -> None:
    result = replace(RESULT, comparison=REFUSED)
    path = write(result, seg[0], tmp_path / "sr.dcm")
    reread(VOLUME, result, seg[1], path)
    report = dcmread(path)
    examination = child(child(report, "C0034375"), "122140")
    assert value(examination)[1] == "No"
    assert child(examination, "121106").TextValue == REFUSED.reason
    assert all(children(group, "NN-16") == [] for group in volumetric(report))
    assert comparison_sentences(result)[0] == (
        "An examination of 2025-01-06 could not be compared with this one of 2026-01-02: The lungs don't "
        "fall on each other."
    )


def test_no_doubling_time_of_what_does_not_grow(seg: tuple[Dataset, Path], tmp_path: Path) -> None:
    finding = FINDINGS[0]
    pair = Pair(finding, finding, Standing.MATCHED, Change.STABLE, "", Doubling(-0.05, -4880.0))
    late = replace(pair, second_look=SecondLook.SEEN_IN_CURRENT)
    result = make_result(
        VOLUME, FINDINGS[:1], CONTEXT, comparison=replace(COMPARISON, pairs=(late,), registration=None)
    )
    one = build_seg(VOLUME, FINDINGS[:1], HEADERS, CONTEXT)
    (group,) = volumetric(build_report(VOLUME, result, one, HEADERS, CONTEXT))
    assert value(child(group, "NN-16")) == ("129723006", "No significant changes in the finding")
    assert number(child(group, "NN-6")) == (-5.0, "%")
    assert children(group, "NN-5") == []
    words = comparison_sentences(result)[1]
    assert "Change of volume -5 %. It was" in words
    assert words.endswith("It was seen on 2026-01-02 only when its place was looked at again.")


def test_no_nodule_left_still_names_the_prior(tmp_path: Path) -> None:
    gone = replace(COMPARISON, pairs=COMPARISON.pairs[4:])
    result = make_result(VOLUME, (), CONTEXT, comparison=gone)
    for kind in ReportClass:
        path = write(result, None, tmp_path / f"{kind}.dcm", report_class=kind)
        reread(VOLUME, result, None, path)
    assert len(children(child(dcmread(path), "C0034375"), "NN-16")) == 3


def test_a_nodule_that_the_comparison_leaves_out_is_an_error(seg: tuple[Dataset, Path]) -> None:
    result = replace(RESULT, comparison=replace(COMPARISON, pairs=COMPARISON.pairs[1:]))
    with pytest.raises(ValueError, match="says nothing of Nodule 1"):
        build_report(VOLUME, result, seg[0], HEADERS, CONTEXT)


def test_accepts_what_was_written(seg: tuple[Dataset, Path], written: Path) -> None:
    reread(VOLUME, RESULT, seg[1], written)


def _set_number(item: Dataset, amount: str) -> None:
    item.MeasuredValueSequence[0].NumericValue = amount


def _level(report: Dataset) -> Dataset:
    return child(report, "C0034375")


MUTATIONS: dict[str, tuple[Callable[[Dataset], None], str]] = {
    "volume change": (
        lambda r: _set_number(child(volumetric(r)[0], "NN-6"), "20"),
        r"Volume change isn't 200.0 %",
    ),
    "unit of the doubling time": (
        lambda r: setattr(
            child(volumetric(r)[0], "NN-5").MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0],
            "CodeValue",
            "mo",
        ),
        r"Volume doubling time isn't 223.0 d",
    ),
    "prior diameter": (
        lambda r: _set_number(child(child(volumetric(r)[0], "NN-14"), "RID50155"), "6.2"),
        r"isn't inferred from 5.2 mm of 2025-01-06",
    ),
    "date of the prior diameter": (
        lambda r: setattr(
            child(child(child(volumetric(r)[0], "NN-14"), "RID50155"), "111060"), "Date", "20240106"
        ),
        r"isn't inferred from 5.2 mm of 2025-01-06",
    ),
    "new is called grown": (
        lambda r: setattr(child(volumetric(r)[1], "NN-16").ConceptCodeSequence[0], "CodeValue", "15454001"),
        r"Nodule 2: its change isn't New finding",
    ),
    "change left out": (
        lambda r: volumetric(r)[0].ContentSequence.remove(child(volumetric(r)[0], "NN-16")),
        r"Nodule 1: its change isn't Increase in size",
    ),
    "a number too many": (
        lambda r: volumetric(r)[1].ContentSequence.append(child(volumetric(r)[0], "NN-6")),
        r"Nodule 2: the number NN-6 isn't the comparison's",
    ),
    "day of the examination": (
        lambda r: setattr(child(volumetric(r)[0], "C2348792"), "TextValue", "2026-01-03"),
        r"time point of Nodule 1 isn't the day",
    ),
    "another prior study": (
        lambda r: setattr(child(child(_level(r), "122140"), "110180"), "UID", "1.2.3"),
        r"another Study Instance UID",
    ),
    "another prior date": (
        lambda r: setattr(child(child(_level(r), "122140"), "111060"), "Date", "20250107"),
        r"prior examination has another date",
    ),
    "days at the study level": (
        lambda r: _set_number(child(child(_level(r), "122140"), "128740"), "360"),
        r"isn't 361 d before this one",
    ),
    "not compared": (
        lambda r: setattr(child(_level(r), "122140").ConceptCodeSequence[0], "CodeValue", "373067005"),
        r'doesn\'t say "Yes"',
    ),
    "quality of the comparison": (
        lambda r: setattr(child(child(_level(r), "122140"), "121106"), "TextValue", "Very well."),
        r"why, or how well",
    ),
    "comparison left out": (
        lambda r: _level(r).ContentSequence.remove(child(_level(r), "122140")),
        r"must say once whether a prior",
    ),
    "a gone nodule left out": (
        lambda r: _level(r).ContentSequence.remove(children(_level(r), "NN-16")[1]),
        r"lists 2 nodules of the prior examination only, not 3",
    ),
    "a gone nodule is there": (
        lambda r: setattr(children(_level(r), "NN-16")[0].ConceptCodeSequence[0], "CodeValue", "129723006"),
        r"Nodule 8 of the prior examination: what became of it isn't Problem resolved",
    ),
    "another gone nodule": (
        lambda r: setattr(child(children(_level(r), "NN-16")[0], "112040"), "UID", "1.2.3"),
        r"Nodule 8 of the prior examination has another tracking UID",
    ),
    "size of a gone nodule": (
        lambda r: _set_number(child(children(_level(r), "NN-16")[0], "RID50155"), "9"),
        r"average diameter isn't 5.2 mm",
    ),
    "growth of an unmarked nodule": (
        lambda r: _set_number(child(children(_level(r), "NN-16")[2], "NN-14"), "0"),
        r"Nodule 7 of the prior examination: Change of the average diameter isn't 1.9 mm",
    ),
    "words for a gone nodule": (
        lambda r: setattr(
            child(children(_level(r), "NN-16")[1], "121106"), "TextValue", "Not seen any more."
        ),
        r"Nodule 9 of the prior examination: the words",
    ),
    "side of a gone nodule": (
        lambda r: setattr(
            child(child(children(_level(r), "NN-16")[0], "363698007"), "272741003").ConceptCodeSequence[0],
            "CodeValue",
            "7771000",
        ),
        r"Nodule 8 of the prior examination has another site",
    ),
}


def differences(report: Dataset) -> list[str]:
    found = [*study_differences(_level(report), COMPARISON)]
    for group, finding in zip(volumetric(report), FINDINGS, strict=True):
        found += group_differences(group, finding, COMPARISON)
    return found


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_value_is_noticed(name: str, written: Path) -> None:
    edit, words = MUTATIONS[name]
    report = dcmread(written)
    assert differences(report) == []
    edit(report)
    assert re.search(words, "; ".join(differences(report)))


def test_no_file_with_a_wrong_value_passes(seg: tuple[Dataset, Path], written: Path, tmp_path: Path) -> None:
    report = dcmread(written)
    wrong = [MUTATIONS[name] for name in ("volume change", "another prior date")]
    for edit, _ in wrong:
        edit(report)
    report.save_as(tmp_path / "sr.dcm")
    with pytest.raises(VerificationError) as caught:
        reread(VOLUME, RESULT, seg[1], tmp_path / "sr.dcm")
    assert len(caught.value.differences) == len(wrong)


def test_a_comparison_that_was_not_made_is_noticed(seg: tuple[Dataset, Path], written: Path) -> None:
    with pytest.raises(VerificationError) as caught:
        reread(VOLUME, replace(RESULT, comparison=None), seg[1], written)
    assert "the report speaks of a comparison that was not made" in caught.value.differences
    assert "Nodule 1 has a change, but nothing was compared" in caught.value.differences
