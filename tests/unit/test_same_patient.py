"""Whether two examinations are of one patient: a doubt is a no."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inference.same_patient import Identity, differing, strangers
from tests.ct_factory import make_ct_series

ANNA = Identity("4711", "HOSPITAL", "19500101", "F", "Muster^Anna")


@pytest.mark.parametrize(
    "other",
    [
        ANNA,
        replace(ANNA, issuer=""),
        replace(ANNA, sex=""),
        replace(ANNA, sex="O"),
        # she married
        replace(ANNA, name="Beispiel^Anna"),
        replace(ANNA, name=""),
        # an older image without a birth date
        replace(ANNA, birth_date="", name="MUSTER^ANNA^^"),
        replace(ANNA, birth_date="1950", name="Muster^Anna=x"),
    ],
)
def test_one_patient(other: Identity) -> None:
    assert differing(ANNA, other) == differing(other, ANNA) == ""


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (replace(ANNA, patient_id="4712"), "another patient ID"),
        (replace(ANNA, issuer="PRACTICE"), "another issuer of the patient ID"),
        (replace(ANNA, birth_date="19500201"), "another birth date"),
        (replace(ANNA, sex="M"), "another sex"),
        (replace(ANNA, birth_date="", name="Beispiel^Eva"), "no birth date and no name in common"),
        (replace(ANNA, birth_date="", name=""), "no birth date and no name in common"),
    ],
)
def test_perhaps_another(other: Identity, words: str) -> None:
    assert differing(ANNA, other) == differing(other, ANNA) == words


def test_nobody_is_nobody() -> None:
    nobody = Identity("")
    assert differing(nobody, nobody) == "another patient ID"
    assert differing(Identity("1"), Identity("1")) == "no birth date and no name in common"


def test_one_stranger_among_many() -> None:
    assert strangers(ANNA, [ANNA, replace(ANNA, issuer="")]) == ""
    assert strangers(ANNA, [ANNA, replace(ANNA, sex="M"), ANNA]) == "another sex"
    assert strangers(ANNA, []) == "no readable image"


def test_from_a_header_and_through_json() -> None:
    header = make_ct_series(1)[0]
    header.IssuerOfPatientID = "HOSPITAL"
    who = Identity.of(header)
    assert who == Identity("SYNTHETIC-1", "HOSPITAL", "19500101", "O", "Synthetic^Phantom")
    assert Identity(**who.to_json()) == who
