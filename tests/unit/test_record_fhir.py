"""The clinical record from a FHIR server, honest and not: never another patient's, never late."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset

from inference.record import RecordCode, RecordReading, Sex, Smoking
from inference.record_person import SourcedRecord, confirmed, gathered
from pacs_node.config import Settings
from pacs_node.config_record import RecordSettings
from pacs_node.doctor_findings import Level
from pacs_node.doctor_services import check_fhir
from pacs_node.record_facts import day_of, record_of
from pacs_node.record_fhir import FhirSource
from pacs_node.record_fhir_read import facts_of, person_of
from pacs_node.record_sources import RecordSources, Subject, salt_of
from tests import fhir_server as fhir
from tests.fhir_server import CLIENT, LOINC, SNOMED, SYSTEM, FhirServer

SEEN = date(2026, 3, 1)
Codes = list[str]


@pytest.fixture
def server() -> Iterator[FhirServer]:
    with fhir.running() as found:
        yield found


def section(server: FhirServer, **changes: Any) -> RecordSettings:
    return RecordSettings(**{"fhir_url": server.base, "fhir_patient_system": SYSTEM, **changes})


def ask(server: FhirServer, patient_id: str = "P-17", **changes: Any) -> SourcedRecord:
    return FhirSource(section(server, **changes)).ask(patient_id, SEEN)


def codes(reading: RecordReading) -> Codes:
    return [str(issue.code) for issue in reading.issues]


def sentence(found: SourcedRecord) -> str:
    assert found.reading.record.is_empty
    (issue,) = found.reading.issues
    return str(issue)


def header(**elements: str) -> Dataset:
    ds = Dataset()
    ds.PatientID, ds.PatientBirthDate, ds.PatientSex, ds.StudyDate = "P-17", "19580504", "F", "20260301"
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


# what is read


def test_all_that_a_server_knows(server: FhirServer) -> None:
    found = ask(server)
    assert found.reading.issues == ()
    record = found.reading.record
    assert (record.age_years, record.sex, record.smoking) == (67.0, Sex.FEMALE, Smoking.FORMER)
    assert (record.pack_years, record.emphysema, record.cancer_history) == (40.0, True, True)
    assert record.family_history_lung_cancer is True
    assert record.years_quit == pytest.approx(8.0, abs=0.01)
    assert found.reading.dates["pack_years"] == date(2026, 1, 10)
    reading = confirmed(found, header())
    assert reading.record == record
    assert "pack_years (FHIR Observation of 2026-01-10)" in reading.used_words()
    assert "P-17" not in repr(found)
    assert "1958" not in repr(found)


def test_missing_is_missing(server: FhirServer) -> None:
    server.resources = [fhir.patient(gender="unknown")]
    assert ask(server).reading.record.items() == {"age_years": 67.0}


def only(*resources: dict[str, Any], site: dict[Any, str] | None = None) -> RecordReading:
    return record_of([fact for one in resources for fact in facts_of(one, site or {})], SEEN, {})


@pytest.mark.parametrize(
    ("resource", "items", "issues"),
    [
        (fhir.smoker("449868002"), {"smoking": "current"}, []),
        (fhir.smoker("266919005"), {"smoking": "never"}, []),
        (fhir.smoker("77176002"), {}, []),
        (fhir.smoker("77176002999"), {}, ["SMOKING_VALUE"]),
        (fhir.observation("72166-2", valueString="Ex-smoker"), {"smoking": "former"}, []),
        (fhir.smoker() | {"status": "entered-in-error"}, {}, []),
        (fhir.smoker() | {"status": "preliminary"}, {}, []),
        (fhir.smoker(day="2026-03-02T08:00:00Z"), {"smoking": "former"}, []),
        (fhir.smoker(day="2026-03-03"), {}, ["AFTER_STUDY"]),
        (fhir.observation("8664-5", valueQuantity={"value": 12.5}), {"pack_years": 12.5}, []),
        (fhir.observation("8664-5", valueInteger=0), {"smoking": "never", "pack_years": 0.0}, []),
        (fhir.observation("8664-5", valueQuantity={"value": 12, "comparator": ">"}), {}, []),
        (fhir.observation("8664-5", valueQuantity={"value": 12, "unit": "/d"}), {}, ["UNIT_VALUE"]),
        (fhir.observation("8664-5", valueQuantity={"value": 1e9}), {}, ["PACK_YEARS_RANGE"]),
        (fhir.observation("8664-5", valueString="many"), {}, ["PACK_YEARS_RANGE"]),
        (fhir.observation("8664-5", valueQuantity={"value": {}}), {}, ["PACK_YEARS_RANGE"]),
        (fhir.condition("http://hl7.org/fhir/sid/icd-10", "J43.9"), {"emphysema": True}, []),
        (fhir.condition("http://hl7.org/fhir/sid/icd-10", "J44.9"), {}, []),
        (fhir.condition("http://hl7.org/fhir/sid/icd-10", "C34.1"), {}, []),
        (fhir.condition("http://hl7.org/fhir/sid/icd-10", "C78.0"), {}, []),
        (fhir.condition("http://hl7.org/fhir/sid/icd-10", "C18.2"), {"cancer_history": True}, []),
        (fhir.condition("http://hl7.org/fhir/sid/icd-10", "C182"), {"cancer_history": True}, []),
        # within five years, and of unknown date: neither yes nor no
        (fhir.condition("http://hl7.org/fhir/sid/icd-10", "C18.2", "2024"), {}, []),
        (fhir.condition("http://hl7.org/fhir/sid/icd-10", "C18.2", "long ago"), {}, []),
        (fhir.family("PGRMTH"), {}, []),
        (fhir.family("NSIS"), {"family_history_lung_cancer": True}, []),
        (fhir.family("MTH", "C50.9"), {}, []),
    ],
)
def test_what_a_resource_tells(resource: dict[str, Any], items: dict[str, Any], issues: Codes) -> None:
    reading = only(resource)
    assert {name: getattr(value, "value", value) for name, value in reading.record.items().items()} == items
    assert codes(reading) == issues


def test_a_condition_that_was_refuted() -> None:
    refuted = {"verificationStatus": fhir.concept("any", "refuted")}
    assert only(fhir.condition(SNOMED, "87433001") | refuted).record.items() == {"emphysema": False}
    assert only(fhir.condition(SNOMED, "254837009") | refuted).record.is_empty
    error = {"verificationStatus": fhir.concept("any", "entered-in-error")}
    assert only(fhir.condition(SNOMED, "87433001") | error).record.is_empty


def test_the_latest_counts_and_two_of_one_day_cancel_out() -> None:
    both = only(fhir.smoker("266919005", "2020-01-01"), fhir.smoker("8517006", "2026-01-01"))
    assert (both.record.smoking, both.dates["smoking"]) == (Smoking.FORMER, date(2026, 1, 1))
    odd = only(fhir.smoker("266919005"), fhir.smoker("8517006"))
    assert (odd.record.is_empty, codes(odd)) == (True, ["CONFLICT"])


def test_years_since_quitting_go_on(server: FhirServer) -> None:
    years = fhir.observation(
        "228486009", system=SNOMED, day="2020-03-01", valueQuantity={"value": 24, "unit": "mo"}
    )
    assert only(years).record.years_quit == pytest.approx(8.0, abs=0.01)
    again = fhir.smoker("449868002", "2025-01-01")
    assert only(years, again).record.items() == {"smoking": Smoking.CURRENT}


def test_components_and_the_codes_of_a_site(server: FhirServer) -> None:
    part = {"code": fhir.concept(LOINC, "8664-5"), "valueQuantity": {"value": 30}}
    own = fhir.observation("SMK", system="urn:site", valueString="never")
    server.resources = [fhir.patient(), own, fhir.smoker("266927001") | {"component": [part]}]
    assert ask(server).reading.record.pack_years == 30.0
    server.resources = [fhir.patient(), own]
    assert ask(server, codes={"urn:site|SMK": "smoking"}).reading.record.smoking is Smoking.NEVER


@pytest.mark.parametrize(
    ("words", "day"),
    [
        ("2020", date(2020, 7, 1)),
        ("2020-03", date(2020, 3, 15)),
        ("2020-03-01T10:00:00+01:00", date(2020, 3, 1)),
        ("20200301101500+0100", date(2020, 3, 1)),
        ("2020-13-01", None),
        ("2020-02-30", None),
        ("20203", None),
        ("", None),
        ("last spring", None),
    ],
)
def test_dates(words: str, day: date | None) -> None:
    assert day_of(words) == day


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_NAMES = (
    *("status", "code", "subject", "effectiveDateTime", "valueQuantity", "valueCodeableConcept", "component"),
    *("onsetDateTime", "verificationStatus", "relationship", "condition", "conclusionCode", "coding"),
    *("effectivePeriod", "valueString", "birthDate", "gender", "valueInteger", "date", "issued"),
)


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(fhir.full()),
    st.dictionaries(st.sampled_from(_NAMES), _JSON, max_size=4),
)
def test_no_resource_breaks_the_reading(resource: dict[str, Any], changes: dict[str, Any]) -> None:
    odd = resource | changes
    person_of(odd, "P-17")
    only(odd)


# whose it is


@pytest.mark.parametrize(
    ("elements", "code"),
    [
        ({"PatientBirthDate": "19580505"}, RecordCode.MISMATCH),
        ({"PatientSex": "M"}, RecordCode.MISMATCH),
        ({"PatientID": "P-18"}, RecordCode.MISMATCH),
        ({"PatientBirthDate": ""}, RecordCode.UNCONFIRMED),
        ({"PatientBirthDate": "", "PatientAge": "040Y"}, RecordCode.UNCONFIRMED),
        ({"PatientBirthDate": "", "PatientAge": "067Y"}, None),
        ({"PatientSex": "O"}, None),
        ({"PatientSex": ""}, None),
    ],
)
def test_of_another_patient_nothing_is_used(
    server: FhirServer, elements: dict[str, str], code: RecordCode | None
) -> None:
    reading = confirmed(ask(server), header(**elements))
    assert reading.record.is_empty is (code is not None)
    assert codes(reading) == ([] if code is None else [code])
    assert "1958" not in str(reading.issues)


def test_without_a_birth_date_at_the_server_nothing_is_used(server: FhirServer) -> None:
    server.resources[0] = fhir.patient(born="")
    assert codes(confirmed(ask(server), header())) == [RecordCode.UNCONFIRMED]
    server.resources[0] = fhir.patient(born="1958")
    assert confirmed(ask(server), header()).record.smoking is Smoking.FORMER


def test_the_first_source_counts_and_the_result_says_where_they_differ(server: FhirServer) -> None:
    reading = gathered([ask(server)], header(SmokingStatus="YES", PatientAge="067Y"))
    assert reading.record.smoking is Smoking.FORMER
    assert codes(reading) == ["CONFLICT"]
    assert "FHIR Observation" in str(reading.issues[0])


@pytest.mark.parametrize(
    ("patients", "code"),
    [
        ([], "NO_MATCH"),
        ([fhir.patient(), fhir.patient(key="a2")], "AMBIGUOUS"),
        ([fhir.patient(active=False)], "MISMATCH"),
        ([fhir.patient(link=[{"type": "replaced-by", "other": {"reference": "Patient/b"}}])], "MISMATCH"),
        ([fhir.patient(id="../admin")], "NO_ANSWER"),
    ],
)
def test_exactly_one_patient(server: FhirServer, patients: list[dict[str, Any]], code: str) -> None:
    server.resources = [*patients, *fhir.full()[1:]]
    assert sentence(ask(server)).startswith(code)
    assert server.asked == ["Patient"]


def test_a_server_that_heeds_no_parameter(server: FhirServer) -> None:
    server.heeds = False
    server.resources = [fhir.patient("P-99", key="z9"), *fhir.full()[1:]]
    assert sentence(ask(server)).startswith("MISMATCH")
    stranger = fhir.smoker("266919005") | {"subject": {"reference": "Patient/z9"}}
    server.resources = [*fhir.full(), stranger]
    assert sentence(ask(server)).startswith("MISMATCH: FHIR answered with the Observation of another patient")
    server.resources = [*fhir.full(), fhir.smoker() | {"subject": {}}]
    assert sentence(ask(server)).startswith("MISMATCH")


def test_characters_of_the_search_are_escaped(server: FhirServer) -> None:
    server.resources[0] = fhir.patient("P,17|x")
    assert ask(server, "P,17|x").reading.record.smoking is Smoking.FORMER
    assert sentence(ask(server, " ")).startswith("NO_MATCH: FHIR was not asked")


# servers that fail


def _bundle(**changes: Any) -> bytes:
    return json.dumps({"resourceType": "Bundle", "entry": []} | changes).encode()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((500, b"{}", {}), "status 500"),
        ((404, b"{}", {}), "status 404"),
        ((200, b"{", {}), "no JSON"),
        ((200, b"\xff\xfe\x00", {}), "no JSON"),
        ((200, b"[" * 200_000, {}), "no JSON"),
        ((200, b'{"entry": NaN}', {}), "no JSON"),
        ((200, b"[]", {}), "no JSON object"),
        ((200, b"<html>", {}), "no JSON"),
        ((200, b'{"resourceType": "OperationOutcome"}', {}), "no Bundle"),
        ((302, b"", {"Location": "http://127.0.0.1:9/elsewhere"}), "elsewhere"),
        ((401, b"", {}), "401"),
        ((200, b" " * (9 << 20), {}), "AnswerTooLargeError"),
        ((200, b"x", {"Content-Encoding": "gzip"}), "AnswerEncodedError"),
        ((200, b"{}", {"Content-Length": "40"}), "no answer"),
    ],
)
def test_an_answer_that_cannot_be_used(
    server: FhirServer, answer: tuple[int, bytes, dict[str, str]], words: str
) -> None:
    server.instead["Patient"] = answer
    said = sentence(ask(server, wait_seconds=1.0))
    assert said.startswith("NO_ANSWER")
    assert words in said


def test_odd_bundles_are_empty(server: FhirServer) -> None:
    for odd in (_bundle(entry={}), _bundle(entry=[None, 1, {"resource": []}]), _bundle(entry="x", link=[{}])):
        server.instead["Patient"] = (200, odd, {})
        assert sentence(ask(server)).startswith("NO_MATCH")


def test_one_kind_that_fails_costs_only_itself(server: FhirServer) -> None:
    server.instead["Condition"] = (500, b"", {})
    found = ask(server)
    assert found.reading.record.smoking is Smoking.FORMER
    assert found.reading.record.emphysema is None
    assert [str(issue) for issue in found.reading.issues] == [
        "NO_ANSWER: FHIR gave no answer about Condition: status 500."
    ]


def test_pages_are_followed_on_this_server_only_and_not_for_ever(server: FhirServer) -> None:
    server.page_size = 1
    assert ask(server).reading.record.pack_years == 40.0

    def elsewhere(bundle: dict[str, Any]) -> dict[str, Any]:
        link = [{"relation": "next", "url": "http://127.0.0.1:9/fhir/Observation?page=2"}]
        return bundle | {"link": link if server.asked[-1] == "Observation" else []}

    server.page_size, server.change = 100, elsewhere
    assert "FHIR has more of Observation than was read" in str(ask(server).reading.issues)

    def round_and_round(bundle: dict[str, Any]) -> dict[str, Any]:
        return bundle | {
            "link": [{"relation": "next", "url": f"{server.base}/Patient?identifier={SYSTEM}|P-17"}]
        }

    server.change = round_and_round
    server.asked.clear()
    assert sentence(ask(server)).startswith("AMBIGUOUS")
    assert len(server.asked) == 5


def test_a_silent_server_holds_no_study(server: FhirServer) -> None:
    server.silent = {"Observation"}
    found = ask(server, wait_seconds=0.4)
    assert found.reading.record.emphysema is None
    assert "FHIR gave no answer about Observation: no answer in time" in str(found.reading.issues[0])


def test_nobody_there() -> None:
    gone = RecordSettings(fhir_url="http://127.0.0.1:9/fhir", fhir_patient_system=SYSTEM)
    assert "NO_ANSWER: FHIR gave no answer: no answer (ConnectionError)" in sentence(
        FhirSource(gone).ask("P-17", SEEN)
    )


# access


def test_a_token_from_a_file(server: FhirServer, tmp_path: Path) -> None:
    path = tmp_path / "token"
    server.public_key, server.valid = "needed", {"s3cret"}
    path.write_text("s3cret\n", encoding="ascii")
    assert ask(server, fhir_token_file=str(path)).reading.record.smoking is Smoking.FORMER
    path.write_text("old", encoding="ascii")
    assert "doesn't let us in (401)" in sentence(ask(server, fhir_token_file=str(path)))
    path.write_text("two\nlines", encoding="ascii")
    said = sentence(ask(server, fhir_token_file=str(path)))
    assert "a setting can't be used" in said
    assert str(path) not in said


def _pem(key: Any) -> bytes:
    kind = serialization.PrivateFormat.PKCS8
    return bytes(key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption()))


def with_key(server: FhirServer, folder: Path, key: Any, **changes: Any) -> FhirSource:
    (folder / "key.pem").write_bytes(_pem(key))
    server.public_key = key.public_key()
    own = {"smart_client_id": CLIENT, "smart_key_file": str(folder / "key.pem"), "smart_key_id": "k1"}
    return FhirSource(section(server, **own, **changes))


def test_smart_backend_services(server: FhirServer, tmp_path: Path) -> None:
    source = with_key(server, tmp_path, ec.generate_private_key(ec.SECP384R1()))
    assert source.ask("P-17", SEEN).reading.record.smoking is Smoking.FORMER
    (asserted,) = server.assertions
    assert (asserted["alg"], asserted["kid"], asserted["sub"]) == ("ES384", "k1", CLIENT)
    assert asserted["grant_type"] == "client_credentials"
    assert asserted["exp"] - asserted["iat"] <= 300
    assert source.ask("P-17", SEEN).reading.issues == ()
    assert len(server.assertions) == 1, "the token is kept"
    server.valid.clear()
    assert source.ask("P-17", SEEN).reading.issues == ()
    assert len(server.assertions) == 2, "an expired token is replaced"
    server.authorizations.clear()
    server.instead["token"] = (400, b'{"error": "invalid_scope"}', {})
    server.valid.clear()
    assert "status 400" in sentence(source.ask("P-17", SEEN))


def test_smart_with_rsa_and_a_token_endpoint_of_the_settings(server: FhirServer, tmp_path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    source = with_key(server, tmp_path, key, smart_token_url=f"http://127.0.0.1:{server.port}/token")
    assert source.ask("P-17", SEEN).reading.issues == ()
    assert server.assertions[0]["alg"] == "RS384"
    assert ".well-known/smart-configuration" not in server.asked


@pytest.mark.parametrize(
    "body",
    [
        b'{"access_token": "a b", "token_type": "bearer"}',
        b'{"access_token": "a", "token_type": "mac"}',
        b'{"access_token": ["a"], "token_type": "bearer"}',
        b'{"token_type": "bearer", "expires_in": "x"}',
    ],
)
def test_a_token_that_is_none(server: FhirServer, tmp_path: Path, body: bytes) -> None:
    source = with_key(server, tmp_path, ec.generate_private_key(ec.SECP384R1()))
    server.instead["token"] = (200, body, {})
    assert "gave no bearer token" in sentence(source.ask("P-17", SEEN))
    assert server.asked == [".well-known/smart-configuration", "token"]


def test_keys_that_do_not_fit(server: FhirServer, tmp_path: Path) -> None:
    source = with_key(server, tmp_path, ec.generate_private_key(ec.SECP256R1()))
    assert "a setting can't be used" in sentence(source.ask("P-17", SEEN))
    server.instead[".well-known/smart-configuration"] = (200, b'{"token_endpoint": "http://elsewhere/"}', {})
    source = with_key(server, tmp_path, ec.generate_private_key(ec.SECP384R1()))
    assert "names no token endpoint" in sentence(source.ask("P-17", SEEN))


# all sources together


SUBJECT = Subject("P-17", "A-1", "20260301")


def never() -> bool:
    return False


def test_without_a_source_nothing_is_asked() -> None:
    assert RecordSources(RecordSettings()).ask(SUBJECT, never) == ()
    assert salt_of(()) == ""


def test_the_wait_is_for_all_and_who_owes_an_answer_is_not_asked_again(
    server: FhirServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = RecordSources(section(server, wait_seconds=0.2))

    def hang(*_: object) -> SourcedRecord:
        server.ended.wait(30)
        raise AssertionError("too late")

    monkeypatch.setattr(FhirSource, "ask", hang)
    begun = time.monotonic()
    (first,) = sources.ask(SUBJECT, never)
    (second,) = sources.ask(SUBJECT, never)
    # the server's own end would come after 30 s
    assert time.monotonic() - begun < 20
    assert sentence(first) == "NO_ANSWER: FHIR gave no answer: no answer in time."
    assert "still owes" in sentence(second)
    monkeypatch.setattr("threading.excepthook", lambda _: None)


def test_whatever_a_source_dies_of(server: FhirServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> SourcedRecord:
        raise ZeroDivisionError("PatientName CANARY")

    monkeypatch.setattr(FhirSource, "ask", die)
    (found,) = RecordSources(section(server)).ask(SUBJECT, never)
    assert sentence(found) == "NO_ANSWER: FHIR's answer could not be read."


def test_another_record_makes_another_result(server: FhirServer) -> None:
    sources = RecordSources(section(server))
    first = salt_of(sources.ask(SUBJECT, never))
    assert salt_of(sources.ask(SUBJECT, never)) == first
    server.resources[1] = fhir.smoker("266919005")
    assert salt_of(sources.ask(SUBJECT, never)) != first


def test_a_study_that_is_given_up_asks_no_longer(server: FhirServer) -> None:
    server.silent = {"Patient"}
    (found,) = RecordSources(section(server, wait_seconds=100.0)).ask(SUBJECT, lambda: True)
    assert sentence(found).startswith("NO_ANSWER")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fhir_url": "http://fhir.example/r4"}, "https://"),
        ({"fhir_url": "https://u:p@fhir.example/r4"}, "https://"),
        ({"fhir_patient_system": ""}, "fhir_patient_system"),
        ({"smart_client_id": "x"}, "smart_key_file"),
        ({"fhir_url": ""}, "fhir_url is missing"),
        ({"codes": {"SMK": "smoking"}}, "system|code"),
        ({"codes": {"a|SMK": "malignancy"}}, "smoking"),
        ({"wait_seconds": 0.0}, "greater than 0"),
    ],
)
def test_settings_that_cannot_work(server: FhirServer, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("|", r"\|")):
        section(server, **change)


def test_the_doctor_asks_it(server: FhirServer, tmp_path: Path) -> None:
    def findings(**changes: Any) -> list[tuple[Level, str]]:
        return [(one.level, one.sentence) for one in check_fhir(Settings(record=section(server, **changes)))]

    assert list(check_fhir(Settings())) == []
    assert findings() == [(Level.GOOD, f"{server.base} answers, FHIR 4.0.1")]
    server.instead["metadata"] = (200, b'{"resourceType": "CapabilityStatement", "fhirVersion": "3.0.2"}', {})
    assert findings()[0][0] is Level.WARNING
    server.instead["metadata"] = (503, b"", {})
    assert findings()[0] == (Level.PROBLEM, "the FHIR server can't be asked: status 503")
    (level, words) = findings(fhir_token_file=str(tmp_path / "none"))[0]
    assert level is Level.PROBLEM
    assert "fhir_token_file" in words
