"""The right patient: one row for sixteen senders, mixed studies set aside, identity only from the source."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE
from sqlalchemy import func, select

from dicom_sr.report import build_not_analysed_report, build_report
from dicom_sr.seg import build_seg
from inference.errors import ReasonCode
from inference.headers import count_patients, patient
from inference.select import judge_study
from inference.uids import derived_uid
from pacs_node.config import Caller, ListenerSettings
from pacs_node.db import Database, Instance, Series, Study
from pacs_node.listener import Listener
from pacs_node.spool import Spool
from pacs_node.states import SeriesState
from tests.conftest import find_free_port
from tests.ct_factory import make_ct_series
from tests.finding_factory import make_context, make_findings, make_result, make_volume, without_pixels
from tests.postgresql import postgresql
from tests.rejections import Requestor
from tests.small_node import SmallNode, chest

STUDY = derived_uid("study of one patient")
SENDERS = 16
INELIGIBLE = SeriesState.INELIGIBLE


# --- sixteen associations bring the first images of a patient ------------------------------------------


def _send(port: int, datasets: list[Dataset], statuses: list[int], start: threading.Barrier) -> None:
    entity = AE(ae_title="PACS")
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 60
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    association = Requestor(entity).associate("127.0.0.1", port, ae_title="CTNODE")
    start.wait(timeout=60)
    statuses += [int(association.send_c_store(ds).Status) for ds in datasets]
    association.release()


def sixteen_senders(database: Database, spool: Spool) -> tuple[list[int], list[int]]:
    """Let them send two images each at once; the statuses, and the numbers of studies, series, instances."""
    slices = make_ct_series(2 * SENDERS, matrix=8)
    callers = (Caller(ae_title="PACS", address="127.0.0.1"),)
    listener = Listener(ListenerSettings(port=find_free_port()), callers, database, spool)
    port = listener.start()
    statuses: list[int] = []
    start = threading.Barrier(SENDERS)
    threads = [
        threading.Thread(target=_send, args=(port, slices[n::SENDERS], statuses, start))
        for n in range(SENDERS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    listener.flush()
    listener.stop()
    with database.read() as session:
        tables = (Study, Series, Instance)
        counts = [session.execute(select(func.count()).select_from(table)).scalar_one() for table in tables]
        assert session.execute(select(Series.n_instances)).scalar_one() == len(slices)
    return statuses, counts


def test_sixteen_associations_make_one_study(node: SmallNode) -> None:
    assert sixteen_senders(node.database, node.spool) == ([0x0000] * 2 * SENDERS, [1, 1, 2 * SENDERS])


@pytest.mark.slow
@pytest.mark.peer("initdb", "pg_ctl")
def test_sixteen_associations_make_one_study_on_postgresql(spool: Spool) -> None:
    with postgresql() as server:
        database = Database(server.database())
        made = sixteen_senders(database, spool)
        database.dispose()
    assert made == ([0x0000] * 2 * SENDERS, [1, 1, 2 * SENDERS])


# --- mixed studies ---------------------------------------------------------------------------------------


def issued(slices: list[Dataset], *issuers: str) -> list[Dataset]:
    """The slices, with the issuers of their Patient ID in turn."""
    for number, ds in enumerate(slices):
        ds.IssuerOfPatientID = issuers[number % len(issuers)]
    return slices


def codes(node: SmallNode) -> set[tuple[SeriesState, str | None]]:
    return set(node.states().values())


def test_two_issuers_in_a_series_are_two_patients(node: SmallNode) -> None:
    node.receive(*issued(chest(), "HOSPITAL A", "HOSPITAL B"))
    node.quiet()
    assert codes(node) == {(INELIGIBLE, "MIXED_PATIENT")}


def test_an_issuer_that_is_missing_is_no_other_patient(node: SmallNode) -> None:
    node.receive(*issued(chest(), "HOSPITAL A", ""))
    node.settle()
    assert codes(node) == {(SeriesState.QUEUED, None)}


def test_two_issuers_in_a_study_are_two_patients(node: SmallNode) -> None:
    node.receive(*issued(chest(seed="a", study_uid=STUDY), "HOSPITAL A"))
    node.receive(*issued(chest(seed="b", study_uid=STUDY), "HOSPITAL B"))
    node.quiet()
    assert codes(node) == {(INELIGIBLE, "MIXED_PATIENT")}


@pytest.mark.parametrize(("patient_id", "code"), [("SYNTHETIC-2", "MIXED_PATIENT"), ("", None)])
def test_a_localizer_of_another_patient_sets_the_study_aside(
    node: SmallNode, patient_id: str, code: str | None
) -> None:
    scout = make_ct_series(
        1, seed="scout", study_uid=STUDY, matrix=8, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER")
    )
    scout[0].PatientID = patient_id
    good = chest(study_uid=STUDY)
    node.receive(*good, *scout)
    node.quiet()
    states = node.states()
    assert states[str(good[0].SeriesInstanceUID)][1] == code
    assert states[str(scout[0].SeriesInstanceUID)] == (INELIGIBLE, "LOCALIZER")


NAMES = st.sets(st.tuples(st.sampled_from(["1", "2", "3"]), st.sampled_from(["", "A", "B"])), min_size=1)


@given(NAMES)
def test_patients_are_counted_by_identifier_and_issuer(names: set[tuple[str, str]]) -> None:
    headers = []
    for identifier, issuer in names:
        header = Dataset()
        header.PatientID, header.IssuerOfPatientID = identifier, issuer
        headers.append(header)
    expected = {
        (identifier, issuer)
        for identifier, issuer in names
        if issuer or not any(other == identifier and named for other, named in names)
    }
    assert count_patients({patient(header) for header in headers}) == len(expected)


# --- identity comes from the source only -------------------------------------------------------------------

_TEXT = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters=" -_^."), min_size=1)
_IDENTITY: dict[str, st.SearchStrategy[str]] = {
    "PatientID": _TEXT.map(lambda s: s[:64].strip() or "X"),
    "PatientName": _TEXT.map(lambda s: s.replace("^", " ")[:60].strip() or "X"),
    "IssuerOfPatientID": _TEXT.map(lambda s: s[:64].strip()),
    "PatientBirthDate": st.dates().map(lambda day: f"{day:%Y%m%d}".zfill(8)),
    "PatientSex": st.sampled_from(["M", "F", "O", ""]),
    "StudyInstanceUID": st.integers(1, 2**100).map(lambda number: f"2.25.{number}"),
    "StudyID": _TEXT.map(lambda s: s[:16].strip()),
    "AccessionNumber": _TEXT.map(lambda s: s[:16].strip()),
    "StudyDate": st.dates().map(lambda day: f"{day:%Y%m%d}".zfill(8)),
}
SOURCE = make_ct_series(16, matrix=16, pixel_spacing_mm=(20.0, 20.0))
HEADERS = without_pixels(SOURCE)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.fixed_dictionaries(_IDENTITY))
def test_results_name_the_patient_of_the_source(identity: dict[str, str]) -> None:
    headers = copy.deepcopy(HEADERS)
    for header in headers:
        for keyword, value in identity.items():
            setattr(header, keyword, value)
    volume, context = make_volume(SOURCE), make_context()
    findings = make_findings(volume, 1)
    result = make_result(volume, findings, context)
    seg = build_seg(volume, findings, headers, context)
    report = build_report(volume, result, seg, headers, context)
    refusal = build_not_analysed_report(headers, ReasonCode.GAP, "A slice is missing.", context)
    for made in (seg, report, refusal):
        assert {keyword: _value(made, keyword) for keyword in identity} == {
            keyword: _value(headers[0], keyword) for keyword in identity
        }
        named = {
            str(e.value) for e in made.iterall() if e.keyword in {"PatientID", "PatientName"} and e.value
        }
        assert named == {identity["PatientID"], identity["PatientName"]}


def _value(ds: Dataset, keyword: str) -> str:
    value: Any = ds.get(keyword)
    return "" if value is None else str(value)


def test_a_study_of_two_patients_is_never_chosen() -> None:
    one, two = make_ct_series(seed="one", study_uid=STUDY), make_ct_series(seed="two", study_uid=STUDY)
    for ds in two:
        ds.PatientID = "SYNTHETIC-2"
    verdicts = judge_study({"1.2.1": one, "1.2.2": two})
    assert [(verdict.suitable, verdict.code) for verdict in verdicts] == [
        (False, ReasonCode.MIXED_PATIENT)
    ] * 2
