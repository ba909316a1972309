from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.errors import ModelUnavailableError
from inference.evaluate import case_run, cases
from inference.evaluate.case_run import CaseOutcome, Settings, run_alone, run_case
from inference.evaluate.example_cases import grouped, write_example
from inference.evaluate.manifest import SCHEMA, Case, ManifestError, read_manifest, to_json
from inference.evaluate.metaimage import MetaImageError
from inference.evaluate.report import Options, write
from inference.load import LoadedSeries, load_series
from inference.phantom import NoduleSpec, Phantom, make_phantom, write_phantom
from inference.record import RecordReading
from inference.types import Malignancy, Result
from tests.metaimage import write_metaimage

Lesion = dict[str, Any]


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(7, (75, 128, 128), (4.0, 2.75, 2.75), (NoduleSpec(24.0), NoduleSpec(18.0)))


@pytest.fixture(scope="module")
def folder(phantom: Phantom, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cases")
    write_phantom(phantom, directory / "one")
    (directory / "one" / "notes.txt").write_text("not DICOM")
    return directory


def spheres(phantom: Phantom) -> list[Lesion]:
    return [
        {
            "name": f"n{number}",
            "centre_lps": list(n.centre_lps),
            "diameter_mm": n.diameter_mm,
            "malignant": number == 0,
        }
        for number, n in enumerate(phantom.nodules)
    ]


def manifest(folder: Path, *entries: Lesion, name: str = "cases.json") -> Path:
    path = folder / name
    path.write_text(json.dumps({"schema": SCHEMA, "cases": list(entries)}))
    return path


def case(folder: Path, lesions: list[Lesion] | None, **more: Any) -> Case:
    return read_manifest(manifest(folder, {"name": "one", "series": "one", "lesions": lesions, **more}))[0]


@pytest.fixture(scope="module")
def result(folder: Path) -> Result:
    loaded = load_series(sorted((folder / "one").glob("*.dcm")))
    return case_run.load_analyst(Settings())(loaded, RecordReading())


@pytest.fixture
def outcome(folder: Path, phantom: Phantom, result: Result) -> CaseOutcome:
    truth = replace(phantom.volume, array=(phantom.truth == phantom.nodules[0].label).astype(np.int16))
    write_metaimage(truth, folder / "mask.mhd", compressed=True)
    lesions = spheres(phantom)
    lesions[0]["mask"] = "mask.mhd"
    return run_case(case(folder, lesions), Settings(), lambda _loaded, _record: result)


def test_lesions_are_found_and_outlined(outcome: CaseOutcome, phantom: Phantom) -> None:
    assert outcome.failure == ""
    assert outcome.slices == 75
    assert [lesion.finding is not None for lesion in outcome.lesions] == [True, True]
    assert outcome.lesions[0].dice > 0.7
    assert np.isnan(outcome.lesions[1].dice)
    assert outcome.match is not None
    assert len(outcome.match.false_scores) == len(outcome.findings) - 2 - outcome.match.ignored
    assert set(outcome.seconds) == {"models", "load", "analyse"}
    assert 100 < outcome.peak_mib < 8192
    first = outcome.lesions[0].finding
    assert first is not None
    assert np.linalg.norm(np.array(outcome.findings[first].centre_lps) - phantom.nodules[0].centre_lps) < 6


def options(out: Path) -> Options:
    return Options(out, "pacs-node evaluate cases", resamples=20)


def test_the_report_counts_what_was_found(
    outcome: CaseOutcome, folder: Path, phantom: Phantom, tmp_path: Path
) -> None:
    path = manifest(
        folder,
        {"name": "one", "series": "one", "lesions": spheres(phantom)},
        {"name": "unknown", "series": "one", "lesions": None},
        {"name": "broken", "series": "one", "lesions": spheres(phantom)[:1]},
        name="three.json",
    )

    def run(one: Case, _settings: Settings) -> CaseOutcome:
        if one.name == "broken":
            return case_run.failed(one, "the process died")
        return replace(outcome, name=one.name, match=None if one.lesions is None else outcome.match)

    made = cases.evaluate(path, options(tmp_path), profile="classical", run=run)
    facts = json.loads(write(made, tmp_path)[0].read_text())
    assert facts["figures"]["annotated_series"] == 2
    assert facts["figures"]["found"]["value"] == pytest.approx(2 / 3)
    assert facts["figures"]["not_analysed"] == {"broken": "the process died"}
    assert [target["met"] for target in facts["targets"]] == [False, True]
    words = (tmp_path / "report.md").read_text()
    assert "| broken | - | 0 | 0 of 1 |" in words
    assert "not annotated" in words
    with (tmp_path / "findings.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["lesion"] for row in rows if row["case"] == "one"} >= {"n0", "n1"}


def test_what_the_pipeline_says_of_malignancy_is_scored(outcome: CaseOutcome, tmp_path: Path) -> None:
    said = tuple(replace(finding, malignancy=0.2, malignancy_with_record=0.4) for finding in outcome.findings)
    first = outcome.lesions[0].finding
    assert first is not None
    said = tuple(replace(one, malignancy=0.9) if at == first else one for at, one in enumerate(said))
    found = cases.figures([replace(outcome, findings=said)], options(tmp_path))["malignancy"]
    assert found["image_only"].value == 1
    assert found["with_record"].value == 0.5
    assert found["image_only"].samples == 2


def test_failures_of_a_case_are_told(folder: Path, phantom: Phantom, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty = replace(case(folder, spheres(phantom)), series=tmp_path / "empty")
    told = run_alone(empty, Settings())  # in a process of its own, as the command does it
    assert "no DICOM image" in told.failure
    assert [lesion.finding for lesion in told.lesions] == [None, None]
    write_phantom(phantom, tmp_path / "two" / "a")
    write_phantom(phantom, tmp_path / "two" / "b", patient_id="OTHER")
    assert "2 series" in run_case(replace(empty, series=tmp_path / "two"), Settings()).failure
    with pytest.raises(ModelUnavailableError):
        run_case(empty, Settings("no such profile"))


def test_the_record_is_the_file_above_the_header(folder: Path, phantom: Phantom, result: Result) -> None:
    seen: list[RecordReading] = []

    def analyst(_loaded: LoadedSeries, record: RecordReading) -> Result:
        seen.append(record)
        said = Malignancy(0.5, 0.6)
        return replace(result, findings=tuple(replace(one, malignancy=said) for one in result.findings))

    record = folder / "record.json"
    record.write_text(json.dumps({"records": [{"patient_id": "PHANTOM-0001", "age_years": 61}]}))
    told = run_case(case(folder, spheres(phantom), record="record.json"), Settings(), analyst)
    assert seen[0].record.age_years == 61
    assert {(one.malignancy, one.malignancy_with_record) for one in told.findings} == {(0.5, 0.6)}
    record.write_text(json.dumps({"records": [{"patient_id": "SOMEBODY"}]}))
    run_case(case(folder, spheres(phantom)), Settings(), analyst)
    assert seen[1].record.age_years is None
    record.write_text("no JSON")
    broken = run_case(case(folder, spheres(phantom), record="record.json"), Settings(), analyst)
    assert broken.failure.startswith("UNREADABLE")


def test_boxes_are_found_on_their_images(folder: Path, phantom: Phantom, result: Result) -> None:
    loaded = load_series(sorted((folder / "one").glob("*.dcm")))
    z, y, x = (int(v) for v in np.rint(loaded.volume.lps_to_index(phantom.nodules[0].centre_lps)))
    uids = [frame.sop_instance_uid for frame in loaded.volume.frames]
    boxes = [{"sop_instance_uid": uids[z + d], "corners": [x - 4, y - 4, x + 4, y + 4]} for d in (-1, 1)]
    one = case(folder, [{"name": "t", "boxes": boxes}])
    assert one.lesions is not None
    lesion = one.lesions[0].on(loaded.volume)
    assert np.linalg.norm(np.array(lesion.centre_lps) - phantom.nodules[0].centre_lps) < 4
    assert lesion.diameter_mm == pytest.approx(9 * 2.75)
    inside = loaded.volume.index_to_lps(
        np.array([[z + 1.4, y, x], [z + 1.6, y, x], [z, y + 4.4, x], [z, y + 4.6, x]])
    )
    assert lesion.contains(inside).tolist() == [True, False, True, False]
    single = case(folder, [{"boxes": boxes[:1]}]).lesions
    assert single is not None
    half = 9 * 2.75 / 2 / 4.0
    around = loaded.volume.index_to_lps(np.array([[z - 1 + half - 0.1, y, x], [z - 1 + half + 0.1, y, x]]))
    assert single[0].on(loaded.volume).contains(around).tolist() == [True, False]
    elsewhere = [{"sop_instance_uid": "1.2.3", "corners": [1, 1, 2, 2]}]
    more = case(folder, [{"name": "t", "boxes": boxes + elsewhere}]).lesions
    assert more is not None
    assert more[0].on(loaded.volume) == lesion
    wrong = case(folder, [{"boxes": elsewhere}])
    assert "no image 1.2.3" in run_case(wrong, Settings(), lambda *_asked: result).failure


def test_a_mask_on_another_grid_is_looked_up(folder: Path, phantom: Phantom, tmp_path: Path) -> None:
    loaded = load_series(sorted((folder / "one").glob("*.dcm")))
    label = phantom.nodules[0].label
    place = np.argwhere(phantom.truth == label)
    low, high = place.min(axis=0) - 1, place.max(axis=0) + 2
    part = (phantom.truth[tuple(map(slice, low, high))] == label).repeat(2, axis=2).astype(np.int16)
    affine = phantom.volume.affine_index_to_lps.copy()
    affine[:3, 2] /= 2
    affine[:3, 3] = phantom.volume.index_to_lps(low) - affine[:3, 2] / 2
    finer = replace(
        phantom.volume, array=part, affine_index_to_lps=affine, frames=phantom.volume.frames[: len(part)]
    )
    truth = phantom.truth == label
    found = case_run.mask_on(write_metaimage(finer, tmp_path / "m.mhd"), loaded.volume)
    assert np.array_equal(found, truth)
    with pytest.raises(MetaImageError, match="no voxel"):
        case_run.mask_on(write_metaimage(replace(finer, array=part * 0), tmp_path / "n.mhd"), loaded.volume)


def test_csv_says_the_same_as_json(folder: Path, phantom: Phantom) -> None:
    header = "case,patient,series,kind,name,x,y,z,diameter_mm,sop_instance_uid,x0,y0,x1,y1,malignant\n"
    path = folder / "cases.csv"
    path.write_text(
        header
        + "a,P1,one,lesion,first,1,2,3,8,,,,,,1\n"
        + "a,,,excluded,second,4,5,6,4,,,,,,\n"
        + "a,,,lesion,boxed,,,,,1.2.3,10,20,30,40,0\n"
        + "a,,,lesion,boxed,,,,,1.2.4,11,21,31,41,\n"
        + "b,P2,one,none,,,,,,,,,,,\n"
        + "c,P3,one,unknown,,,,,,,,,,,\n"
    )
    from_csv = read_manifest(path)
    again = folder / "again.json"
    again.write_text(to_json(from_csv, folder))
    assert read_manifest(again) == from_csv
    first, none, unknown = from_csv
    assert first.lesions is not None
    assert [len(one.boxes) for one in first.lesions] == [0, 2]
    assert [one.malignant for one in first.lesions] == [True, False]
    assert [one.name for one in first.excluded] == ["second"]
    assert (none.lesions, unknown.lesions) == ((), None)


GOOD = {"name": "a", "series": "one", "lesions": [{"centre_lps": [1, 2, 3], "diameter_mm": 4}]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": ""}, "no name"),
        ({"series": "nowhere"}, "no folder nowhere"),
        ({"lesion": []}, "unknown: lesion"),
        ({"record": "nowhere.json"}, "no file nowhere.json"),
        ({"lesions": "none"}, "list of objects"),
        ({"lesions": [{"centre_lps": [1, 2, 3]}]}, "give centre_lps and diameter_mm, or boxes"),
        ({"lesions": [{"centre_lps": [1, 2], "diameter_mm": 4}]}, "centre_lps must be 3 numbers"),
        ({"lesions": [{"centre_lps": [1, 2, "3"], "diameter_mm": 4}]}, "must be numbers"),
        ({"lesions": [{"centre_lps": [1, 2, 3], "diameter_mm": 0}]}, "above 0"),
        ({"lesions": [{"centre_lps": [1, 2, 3], "diameter_mm": 4, "malignant": "yes"}]}, "malignant must be"),
        ({"lesions": [{"boxes": [{"sop_instance_uid": "1", "corners": [3, 1, 2, 2]}]}]}, "x0 <= x1"),
    ],
)
def test_a_wrong_manifest_is_refused(folder: Path, change: Lesion, reason: str) -> None:
    with pytest.raises(ManifestError, match=reason):
        read_manifest(manifest(folder, {**GOOD, **change}, name="wrong.json"))


def test_other_files_are_no_manifest(folder: Path) -> None:
    path = folder / "x.json"
    for content, reason in (
        ("{", "no JSON"),
        ('{"cases": []}', "schema"),
        (json.dumps({"schema": SCHEMA, "cases": []}), "names no case"),
        (json.dumps({"schema": SCHEMA, "cases": [GOOD, GOOD]}), "same name"),
    ):
        path.write_text(content)
        with pytest.raises(ManifestError, match=reason):
            read_manifest(path)
    table = folder / "x.csv"
    for content, reason in (
        ("case,series,what\n", "unknown or missing columns: what"),
        ("case,series,kind\na,one,maybe\n", "line 2: kind must be"),
        ("case,series,x,y,z\na,one,1,2,3\n", "missing or wrong: 'diameter_mm'"),
    ):
        table.write_text(content)
        with pytest.raises(ManifestError, match=reason):
            read_manifest(table)


def test_masks_of_one_nodule_come_together() -> None:
    def square(start: int) -> np.ndarray:
        mask = np.zeros((1, 4, 20), np.bool_)
        mask[0, :, start : start + 3] = True
        return mask

    groups = grouped([square(0), square(10), square(4), square(2)])
    assert sorted(len(group) for group in groups) == [1, 3]


@pytest.mark.shared_data
@pytest.mark.slow
def test_the_example_of_the_documentation(shared_data: Path, tmp_path: Path) -> None:
    mass, tumour, unknown = read_manifest(write_example(shared_data, tmp_path))
    assert mass.lesions is not None
    assert [lesion.diameter_mm for lesion in mass.lesions] == [pytest.approx(23.4, abs=0.5)]
    assert tumour.lesions is not None
    assert len(tumour.lesions[0].boxes) == 20
    assert unknown.lesions is None
