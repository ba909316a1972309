"""The clinical record: values, sources, precedence, and what it must never say."""

from __future__ import annotations

import json
import math
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset

from inference.errors import InferenceError
from inference.record import (
    ITEMS,
    RATINGS,
    UNITS,
    ClinicalRecord,
    RecordCode,
    RecordError,
    RecordReading,
    RecordValue,
    Sex,
    Smoking,
    accept,
    merge,
)
from inference.record_files import find_beside, from_csv, from_json, read_record
from inference.record_header import from_dicom

FULL: dict[str, Any] = {
    "age_years": 62.0,
    "sex": Sex.FEMALE,
    "smoking": Smoking.FORMER,
    "pack_years": 40.0,
    "years_quit": 8.0,
    "family_history_lung_cancer": True,
    "cancer_history": False,
    "emphysema": True,
}
STUDY, PATIENT = "1.2.3.4", "P-17"
HERE: dict[str, Any] = {"study_uid": STUDY, "patient_id": PATIENT}


def header(**elements: str) -> Dataset:
    ds = Dataset()
    ds.PatientName, ds.PatientID, ds.StudyInstanceUID = "Doe^Jane", PATIENT, STUDY
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


def codes(reading: RecordReading) -> list[str]:
    return [str(issue.code) for issue in reading.issues]


# the record itself


def test_a_full_record() -> None:
    record = ClinicalRecord(**FULL)
    assert record.items() == FULL
    assert list(record.items()) == list(ITEMS)
    assert record.ever_smoker is True
    assert ClinicalRecord().is_empty
    assert not ClinicalRecord(emphysema=False).is_empty


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"age_years": -1.0}, "AGE_RANGE"),
        ({"age_years": 430.0}, "AGE_RANGE"),
        ({"age_years": math.nan}, "AGE_RANGE"),
        ({"pack_years": 1000.0}, "PACK_YEARS_RANGE"),
        ({"years_quit": -3.0}, "YEARS_QUIT_RANGE"),
        ({"smoking": Smoking.NEVER}, "CONTRADICTION"),
        ({"smoking": Smoking.CURRENT}, "CONTRADICTION"),
        ({"years_quit": 70.0}, "CONTRADICTION"),
        ({"age_years": 12.0, "pack_years": 60.0}, "CONTRADICTION"),
    ],
)
def test_no_record_holds_nonsense(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(RecordError) as refusal:
        ClinicalRecord(**{**FULL, **changes})
    assert refusal.value.code == code
    assert isinstance(refusal.value, InferenceError)
    assert "430" not in refusal.value.sentence


# values as they come


def test_texts_of_a_table_become_values() -> None:
    reading = accept(
        {
            "age_years": " 62 ",
            "sex": "F",
            "smoking": "Former",
            "pack_years": "40",
            "years_quit": "8",
            "family_history_lung_cancer": "yes",
            "cancer_history": "0",
            "emphysema": "TRUE",
        },
        "record.csv",
    )
    assert reading.record.items() == FULL
    assert reading.issues == ()
    assert set(reading.sources.values()) == {"record.csv"}


@pytest.mark.parametrize("value", [None, "", "  ", "unknown", "UNKNOWN"])
def test_not_known_is_not_wrong(value: object) -> None:
    reading = accept(dict.fromkeys((*ITEMS, "history_text"), value), "x")
    assert reading.record.is_empty
    assert reading.issues == ()


@pytest.mark.parametrize(
    ("item", "value", "code"),
    [
        ("age_years", "sixty", "AGE_RANGE"),
        ("age_years", 430, "AGE_RANGE"),
        ("age_years", True, "AGE_RANGE"),
        ("age_years", [62], "AGE_RANGE"),
        ("age_years", "inf", "AGE_RANGE"),
        ("sex", "X", "SEX_VALUE"),
        ("smoking", "sometimes", "SMOKING_VALUE"),
        ("pack_years", -4, "PACK_YEARS_RANGE"),
        ("years_quit", "nan", "YEARS_QUIT_RANGE"),
        ("emphysema", "maybe", "FLAG_VALUE"),
        ("emphysema", 2, "FLAG_VALUE"),
        ("history_text", 5, "TEXT_VALUE"),
        ("pack_year", 30, "UNKNOWN_ITEM"),
        ("malignancy", 5, "RATING_REFUSED"),
        ("Spiculation", "4", "RATING_REFUSED"),
    ],
)
def test_nonsense_is_left_out_with_its_code(item: str, value: object, code: str) -> None:
    reading = accept({"sex": "M", item: value} if item != "sex" else {item: value}, "x")
    assert codes(reading) == [code]
    assert reading.issues[0].item == item
    assert set(reading.record.items()) <= {"sex"}


def test_what_contradicts_itself_is_left_out_whole() -> None:
    reading = accept({**FULL, "smoking": "never"}, "x")
    assert codes(reading) == ["CONTRADICTION"]
    assert set(FULL) - set(reading.record.items()) == {"smoking", "pack_years", "years_quit"}
    reading = accept({"smoking": "current", "years_quit": 5, "pack_years": 20}, "x")
    assert reading.record.items() == {"pack_years": 20.0}
    reading = accept({"age_years": 30, "years_quit": 40, "pack_years": 299}, "x")
    assert codes(reading) == ["CONTRADICTION", "CONTRADICTION"]
    assert set(reading.record.items()) == {"age_years", "smoking"}


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({"smoking": "not current", "pack_years": 20}, Smoking.FORMER),
        ({"smoking": "not current", "pack_years": 0}, Smoking.NEVER),
        ({"smoking": "not current"}, Smoking.NOT_CURRENT),
        ({"years_quit": 3}, Smoking.FORMER),
        ({"pack_years": 30}, None),
        ({"pack_years": 0}, Smoking.NEVER),
    ],
)
def test_status_follows_where_the_other_items_tell(values: dict[str, Any], status: Smoking | None) -> None:
    assert accept(values, "x").record.smoking is status


# DICOM


def test_from_dicom() -> None:
    reading = from_dicom(
        header(
            PatientAge="062Y",
            PatientSex="F",
            SmokingStatus="YES",
            AdditionalPatientHistory="Mrs Doe, father died of lung cancer",
        )
    )
    assert reading.record.items() == {"age_years": 62.0, "sex": Sex.FEMALE, "smoking": Smoking.CURRENT}
    assert reading.record.history_text == "Mrs Doe, father died of lung cancer"
    assert reading.used_words() == (
        "age_years (DICOM Patient's Age), sex (DICOM Patient's Sex), smoking (DICOM Smoking Status)"
    )
    assert reading.issues == ()


def test_each_value_has_its_unit_source_and_day() -> None:
    read = from_dicom(header(PatientAge="062Y", PatientSex="F", StudyDate="20220614"))
    told = accept(
        {"pack_years": 30, "emphysema": "no"}, {"pack_years": "FHIR"}, {"pack_years": date(2021, 5, 4)}
    )
    study = date(2022, 6, 14)
    assert merge(told, read).values == (
        RecordValue("age_years", 62.0, "a", "DICOM Patient's Age", study),
        RecordValue("sex", Sex.FEMALE, "", "DICOM Patient's Sex", study),
        RecordValue("pack_years", 30.0, "{pack}.a", "FHIR", date(2021, 5, 4)),
        RecordValue("emphysema", False, "", "given", None),
    )
    words = merge(told, read).used_words()
    assert "pack_years (FHIR of 2021-05-04)" in words
    assert "30" not in words  # a report says what was used, not what it was
    assert RecordReading().values == ()
    assert set(UNITS) == {item for item in ITEMS if item.startswith(("age", "pack", "years"))}


@pytest.mark.parametrize("elements", [{"PatientAge": "000Y"}, {"PatientAge": ""}, {}])
def test_an_age_of_nothing_is_not_known(elements: dict[str, str]) -> None:
    reading = from_dicom(header(**elements))
    assert reading.record.age_years is None
    assert reading.issues == ()
    born = from_dicom(header(**elements, PatientBirthDate="19600615", StudyDate="20220614"))
    assert born.record.age_years == 61.0


def test_a_new_born_is_0_years_old() -> None:
    assert from_dicom(header(PatientAge="000D")).record.age_years == 0.0


@pytest.mark.parametrize("status", ["current", "former"])
def test_no_pack_years_of_a_smoker_are_not_known(status: str) -> None:
    reading = accept({"smoking": status, "pack_years": 0}, "x")
    assert reading.record.items() == {"smoking": Smoking(status)}
    assert codes(reading) == ["CONTRADICTION"]
    with pytest.raises(RecordError, match="stands for what isn't known"):
        ClinicalRecord(smoking=Smoking(status), pack_years=0.0)


def test_no_in_dicom_doesn_t_mean_never() -> None:
    record = from_dicom(header(SmokingStatus="NO")).record
    assert record.smoking is Smoking.NOT_CURRENT
    assert record.ever_smoker is None


@pytest.mark.parametrize(
    ("value", "years"), [("006M", 0.5), ("104W", 1.993), ("730D", 1.9986), ("090Y", 90.0), ("001Y", 1.0)]
)
def test_units_of_patient_age(value: str, years: float) -> None:
    assert from_dicom(header(PatientAge=value)).record.age_years == pytest.approx(years, abs=1e-3)


def test_age_by_date_of_birth() -> None:
    reading = from_dicom(header(PatientBirthDate="19600615", StudyDate="20220614"))
    assert reading.record.age_years == 61.0
    assert reading.sources["age_years"] == "DICOM Birth Date and Study Date"
    assert from_dicom(header(PatientBirthDate="19600615", StudyDate="20220615")).record.age_years == 62.0


def test_age_before_date_and_a_difference_is_noted() -> None:
    elements = {"PatientAge": "062Y", "PatientBirthDate": "19000101", "StudyDate": "20220615"}
    reading = from_dicom(header(**elements))
    assert reading.record.age_years == 62.0
    assert codes(reading) == ["CONFLICT"]


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"PatientAge": "62"}, ["AGE_RANGE"]),
        ({"PatientAge": "999Y"}, ["AGE_RANGE"]),
        ({"PatientSex": "Q"}, ["SEX_VALUE"]),
        ({"PatientSex": "O"}, []),
        ({"SmokingStatus": "UNKNOWN"}, []),
        ({"SmokingStatus": "20 A DAY"}, ["SMOKING_VALUE"]),
        ({"PatientBirthDate": "18880101", "StudyDate": "20220101"}, ["AGE_RANGE"]),
        ({"PatientBirthDate": "20230101", "StudyDate": "20220101"}, []),
        ({"PatientBirthDate": "20001345", "StudyDate": "20220101"}, []),
        ({}, []),
    ],
)
def test_malformed_headers_never_raise(elements: dict[str, str], expected: list[str]) -> None:
    reading = from_dicom(header(**elements))
    assert codes(reading) == expected
    assert reading.record.is_empty


# precedence


def test_the_file_counts_before_the_header_item_by_item() -> None:
    from_file = accept({"age_years": 63, "pack_years": 40, "smoking": "former"}, "record.json")
    in_header = from_dicom(header(PatientAge="062Y", PatientSex="F", SmokingStatus="NO"))
    merged = merge(from_file, in_header)
    assert merged.record.items() == {
        "age_years": 63.0,
        "sex": Sex.FEMALE,
        "smoking": Smoking.FORMER,
        "pack_years": 40.0,
    }
    assert merged.sources["age_years"] == "record.json"
    assert merged.sources["sex"] == "DICOM Patient's Sex"
    assert merged.issues == ()  # a year of age is no conflict, and NO agrees with a former smoker


def test_sources_that_differ_are_named() -> None:
    from_file = accept({"age_years": 41, "sex": "M", "smoking": "never"}, "record.json")
    merged = merge(from_file, from_dicom(header(PatientAge="062Y", PatientSex="F", SmokingStatus="YES")))
    assert codes(merged) == ["CONFLICT"] * 3
    assert merged.record.items() == {"age_years": 41.0, "sex": Sex.MALE, "smoking": Smoking.NEVER}
    assert all("41" not in issue.sentence and "62" not in issue.sentence for issue in merged.issues)


def test_a_contradiction_that_only_both_sources_make() -> None:
    merged = merge(
        accept({"pack_years": 40}, "record.json"), accept({"smoking": "never", "sex": "F"}, "elsewhere")
    )
    assert codes(merged) == ["CONTRADICTION"]
    assert merged.record.items() == {"sex": Sex.FEMALE}


def test_nothing_merged_with_nothing() -> None:
    assert merge(RecordReading(), RecordReading()).record.is_empty


# the sentence


def test_sentence() -> None:
    assert ClinicalRecord(**FULL).sentence() == (
        "Woman aged 62, former smoker, 40 pack years, quit 8 years. "
        "Family lung cancer, emphysema. No earlier cancer."
    )
    assert ClinicalRecord().sentence() == ""
    assert ClinicalRecord(age_years=50).sentence() == "Aged 50."
    assert ClinicalRecord(sex=Sex.MALE).sentence() == "Man."
    assert ClinicalRecord(pack_years=30).sentence() == "30 pack years."
    assert ClinicalRecord(emphysema=False).sentence() == "No emphysema."


def test_the_sentence_never_rates_the_nodule_and_never_names_the_patient() -> None:
    """Whatever the free text and the file say: every combination of items and not known."""
    judged = [
        "malign",
        "suspic",
        "benign",
        "spicul",
        "lobul",
        "margin",
        "subtle",
        "textur",
        "calcif",
        "nodule",
    ]
    free = "Doe^Jane 17.04.1960 P-17: spiculated nodule, highly suspicious, malignancy 5"
    options = [(value, None) for value in FULL.values()]
    for values in product(*options):
        record = ClinicalRecord(**dict(zip(FULL, values, strict=True)), history_text=free)
        words = record.sentence().lower()
        assert not [word for word in (*judged, "doe", "jane", "p-17", "1960") if word in words]
        assert "Doe" not in repr(record)


@pytest.mark.parametrize("name", sorted(RATINGS))
def test_no_rating_gets_in(name: str) -> None:
    reading = accept({name: 5, "sex": "F"}, "x")
    assert codes(reading) == ["RATING_REFUSED"]
    assert reading.record == ClinicalRecord(sex=Sex.FEMALE)


# files


def write_json(folder: Path, *records: dict[str, Any]) -> Path:
    path = folder / "record.json"
    path.write_text(json.dumps({"records": records}), encoding="utf-8")
    return path


def write_csv(folder: Path, text: str) -> Path:
    path = folder / "record.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_json_and_csv_say_the_same(tmp_path: Path) -> None:
    row = {**FULL, "family_history_lung_cancer": True, "patient_id": PATIENT}
    columns = ",".join(row)
    cells = ",".join(str(value) for value in row.values())
    by_json = from_json(write_json(tmp_path, {"patient_id": "other"}, row), **HERE)
    by_csv = from_csv(write_csv(tmp_path, f"\ufeff{columns}\n{cells}\n\n"), **HERE)
    assert by_json.record == by_csv.record == ClinicalRecord(**FULL)
    assert by_json.issues == by_csv.issues == ()
    assert set(by_csv.sources.values()) == {"record.csv"}


def test_the_row_of_the_study_before_the_row_of_the_patient(tmp_path: Path) -> None:
    path = write_json(
        tmp_path,
        {"patient_id": PATIENT, "age_years": 60},
        {"study_instance_uid": STUDY, "age_years": 62},
        {"study_instance_uid": "9.9", "patient_id": PATIENT, "age_years": 70},
    )
    assert from_json(path, **HERE).record.age_years == 62.0
    assert from_json(path, study_uid="8.8", patient_id=PATIENT).record.age_years == 60.0
    assert from_json(path, study_uid="9.9", patient_id=PATIENT).record.age_years == 70.0


def test_another_patient_s_row_is_never_used(tmp_path: Path) -> None:
    path = write_json(tmp_path, {"study_instance_uid": STUDY, "patient_id": "P-18", "age_years": 62})
    with pytest.raises(RecordError, match="MISMATCH"):
        from_json(path, **HERE)
    none = from_json(path, study_uid="7.7", patient_id=PATIENT)
    assert none.record.is_empty
    assert codes(none) == ["NO_MATCH"]
    # images without identity match nothing
    assert codes(from_json(write_json(tmp_path, {"patient_id": "x"}), study_uid="", patient_id="")) == [
        "NO_MATCH"
    ]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("{", "UNREADABLE"),
        ('{"records": [{"patient_id": "a", "age_years": NaN}]}', "UNREADABLE"),
        ('{"records": [{"patient_id": "a", "sex": "F", "sex": "M"}]}', "UNREADABLE"),
        ("[" * 100_000, "UNREADABLE"),
        ("[]", "SCHEMA"),
        ('{"records": {}}', "SCHEMA"),
        ('{"records": ["x"]}', "SCHEMA"),
        ('{"records": [{"age_years": 60}]}', "SCHEMA"),
        ('{"records": [{"patient_id": "P-17"}, {"patient_id": "P-17"}]}', "AMBIGUOUS"),
    ],
)
def test_json_that_can_t_be_used(content: str, code: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(RecordError) as refusal:
        read_record(path, **HERE)
    assert refusal.value.code == code


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("", "SCHEMA"),
        ("age_years,sex\n62,F\n", "SCHEMA"),
        ("patient_id,sex,sex\nP-17,F,M\n", "SCHEMA"),
        ("patient_id,sex\nP-17\n", "SCHEMA"),
        ("patient_id,sex\nP-17,F\nP-17,M\n", "AMBIGUOUS"),
        ('patient_id,sex\n"P-17"x,F\n', "UNREADABLE"),
    ],
)
def test_csv_that_can_t_be_used(content: str, code: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError) as refusal:
        read_record(write_csv(tmp_path, content), **HERE)
    assert refusal.value.code == code


def test_files_that_aren_t_text(tmp_path: Path) -> None:
    path = tmp_path / "record.csv"
    path.write_bytes(b"patient_id\n\xff\xfe\n")
    with pytest.raises(RecordError, match="UTF-8"):
        read_record(path, **HERE)
    with pytest.raises(RecordError, match="can't be read"):
        read_record(tmp_path / "absent.json", **HERE)
    with pytest.raises(RecordError, match=r"\.json or \.csv"):
        read_record(tmp_path / "record.txt", **HERE)


def test_items_that_make_no_sense_cost_themselves_only(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path, "patient_id,patient_name,age_years,malignancy,emphysema\nP-17,Jane Doe,430,5,yes\n"
    )
    reading = read_record(path, **HERE)
    assert codes(reading) == ["UNKNOWN_ITEM", "AGE_RANGE", "RATING_REFUSED"]
    assert reading.record.items() == {"emphysema": True}
    assert not any("Jane" in issue.sentence or "430" in issue.sentence for issue in reading.issues)


@pytest.mark.parametrize(
    ("written", "items", "said", "day"),
    [
        ("2022-06-15", {"pack_years": 30.0}, [], date(2022, 6, 15)),  # the day after the study
        ("2022-06-16", {}, ["AFTER_STUDY"], None),
        ("15.6.2022", {"pack_years": 30.0}, ["DATE_VALUE"], None),
        ("", {"pack_years": 30.0}, [], None),
    ],
)
def test_the_day_of_a_row(
    written: str, items: dict[str, float], said: list[str], day: date | None, tmp_path: Path
) -> None:
    row = {"patient_id": PATIENT, "recorded_on": written, "pack_years": 30}
    found = read_record(write_json(tmp_path, row), **HERE, seen=date(2022, 6, 14))
    assert found.record.items() == items
    assert codes(found) == said
    assert found.dates.get("pack_years") == day


def test_the_file_beside_the_study(tmp_path: Path) -> None:
    assert find_beside(tmp_path) is None
    path = write_csv(tmp_path, "patient_id\nx\n")
    assert find_beside(tmp_path) == path
    write_json(tmp_path)
    with pytest.raises(RecordError, match="AMBIGUOUS"):
        find_beside(tmp_path)


# the document

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "record.md").read_text(encoding="utf-8")


def test_the_document_names_every_item_and_code() -> None:
    section = DOCUMENT.split("## Items")[1].split("## Files")[0]
    rows = [line.split("|")[1].strip(" `") for line in section.splitlines() if line.startswith("| `")]
    assert rows == [*ITEMS, "history_text"]
    assert [code for code in RecordCode if f"`{code}`" not in DOCUMENT] == []


def test_the_examples_of_the_document_are_valid_and_equal(tmp_path: Path) -> None:
    found = []
    for kind in ("json", "csv"):
        path = tmp_path / f"record.{kind}"
        path.write_text(DOCUMENT.split(f"```{kind}\n")[1].split("```")[0], encoding="utf-8")
        reading = read_record(path, study_uid="1.2.840.99.1", patient_id="P-17")
        assert reading.issues == ()
        found.append(reading.record)
    assert found == [ClinicalRecord(**FULL)] * 2
    assert " ".join(ClinicalRecord(**FULL).sentence().split()) in " ".join(DOCUMENT.split())
