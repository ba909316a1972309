"""What is written down about an instance, and that hostile bytes end in one named error."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)
from sqlalchemy import select

from inference.decode import DECODABLE_TRANSFER_SYNTAXES
from pacs_node.commitment import Reference, Request
from pacs_node.commitment_scp import judge
from pacs_node.db import AuditEvent, Conflict, Instance, Series, Study
from pacs_node.errors import UnreadableInstanceError
from pacs_node.reception import Identity, Reception, read_identity
from pacs_node.states import JobState, SeriesState
from tests.ct_factory import LOSSLESS, LOSSY, NATIVE, make_ct_series
from tests.small_node import SmallNode, chest, encoded

SLICE = make_ct_series(1, matrix=8)[0]
BYTES, _ = encoded(SLICE)


@pytest.fixture(autouse=True)
def _warnings_as_in_production() -> Iterator[None]:
    """Pydicom warns about hostile values; here only exceptions count."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("syntax", [*NATIVE, *LOSSLESS, *LOSSY])
def test_identity_in_every_transfer_syntax(syntax: str) -> None:
    data, found = encoded(make_ct_series(1, matrix=64, transfer_syntax=syntax)[0])
    assert found == syntax
    assert read_identity(data, syntax) == Identity(
        sop_class_uid=CTImageStorage,
        sop_instance_uid=SLICE.SOPInstanceUID,
        study_uid=SLICE.StudyInstanceUID,
        series_uid=SLICE.SeriesInstanceUID,
        patient_id="SYNTHETIC-1",
        patient_name="Synthetic^Phantom",
        accession_number="ACC-a",
        study_date="20200101",
        study_description="SYNTHETIC CHEST PHANTOM",
        series_description="SYNTHETIC PHANTOM",
        modality="CT",
    )


def test_every_decodable_syntax_is_tried() -> None:
    assert {*NATIVE, *LOSSLESS, *LOSSY} <= set(DECODABLE_TRANSFER_SYNTAXES)


def minimal(**values: Any) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, "1.2.3"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "1.2.4", "1.2.5"
    for keyword, value in values.items():
        setattr(ds, keyword, value)
    return ds


def wire(ds: Dataset, *, implicit: bool = False, little: bool = True) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = implicit, little
    write_dataset(buffer, ds)
    return buffer.getvalue()


def explicit(ds: Dataset) -> Identity:
    return read_identity(wire(ds), ExplicitVRLittleEndian)


def test_absent_texts_are_empty() -> None:
    identity = explicit(minimal())
    assert identity == Identity(CTImageStorage, "1.2.3", "1.2.4", "1.2.5")


def test_texts_of_other_character_sets_are_read() -> None:
    identity = explicit(minimal(SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jürgen"))
    assert identity.patient_name == "Müller^Jürgen"


def test_long_texts_are_cut() -> None:
    assert len(explicit(minimal(StudyDescription="x" * 5000)).study_description) == 1024


def test_a_long_name_is_cut_to_what_an_index_takes() -> None:
    """PostgreSQL keeps 2704 bytes in an index; a letter is never cut in two."""
    identity = explicit(minimal(SpecificCharacterSet="ISO_IR 192", PatientName="\u65e5" * 1000))
    assert identity.patient_name == "\u65e5" * (1024 // 3)


def test_no_nul_gets_into_a_text() -> None:
    """PostgreSQL would refuse the row, and with it those of all that wait at the same time."""
    assert explicit(minimal(PatientName="A\0B^C")).patient_name == "AB^C"


def test_several_values_are_one_text() -> None:
    assert "A" in explicit(minimal(StudyDescription=["A", "B"])).study_description


@pytest.mark.parametrize(
    "keyword", ["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]
)
@pytest.mark.parametrize("value", [None, "", "1.2.x", "../../etc/passwd", "1" * 65, "1.2\\1.3", "1.2/3", "a"])
def test_a_uid_that_is_none_is_refused(keyword: str, value: str | None) -> None:
    ds = minimal()
    delattr(ds, keyword)
    if value is not None:
        setattr(ds, keyword, value.split("\\") if "\\" in value else value)
    with pytest.raises(UnreadableInstanceError, match=keyword):
        explicit(ds)


def nested(depth: int) -> bytes:
    """Sequences in sequences, of undefined length, before anything that identifies."""
    opening = struct.pack("<HHL", 0x0008, 0x1140, 0xFFFFFFFF) + struct.pack(
        "<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    return opening * depth


def bomb(size: int) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(bytes(size)) + compressor.flush()


CORPUS = {
    "empty": (b"", ExplicitVRLittleEndian),
    "one byte": (b"\x08", ExplicitVRLittleEndian),
    "zeros": (bytes(1000), ExplicitVRLittleEndian),
    "text": (b"GET / HTTP/1.1\r\n\r\n" * 20, ExplicitVRLittleEndian),
    "cut": (BYTES[:100], ExplicitVRLittleEndian),
    "deep implicit": (nested(20_000), ImplicitVRLittleEndian),
    "not deflated": (BYTES, DeflatedExplicitVRLittleEndian),
    "deflated and cut": (bomb(10_000)[:-4], DeflatedExplicitVRLittleEndian),
    "deflate bomb": (bomb(200_000_000), DeflatedExplicitVRLittleEndian),
    "length beyond the end": (
        struct.pack("<HH2sH", 8, 0x0016, b"UI", 0xFFFE) + b"1.2",
        ExplicitVRLittleEndian,
    ),
    "long length beyond the end": (
        struct.pack("<HH2sHL", 8, 0x0005, b"UN", 0, 0xFFFFFFF0),
        ExplicitVRLittleEndian,
    ),
    "cut in a long length": (struct.pack("<HH2sH", 8, 0x0005, b"OB", 0), ExplicitVRLittleEndian),
    "unknown VR": (struct.pack("<HH2sH", 8, 0x0016, b"ZZ", 4) + b"1.2\0", ExplicitVRLittleEndian),
    "character set unknown": (
        struct.pack("<HH2sH", 8, 0x0005, b"CS", 10) + b"ISO_IR 999" + BYTES[:60],
        ExplicitVRLittleEndian,
    ),
    "command set": (
        struct.pack("<HHL", 0, 0, 4) + struct.pack("<L", 4),
        ImplicitVRLittleEndian,
    ),
    "unknown syntax": (BYTES[:60], "1.2.3.4"),
}


@pytest.mark.parametrize("name", CORPUS)
def test_malformed_input_is_unreadable(name: str) -> None:
    data, syntax = CORPUS[name]
    with pytest.raises(UnreadableInstanceError):
        read_identity(data, syntax)


def test_nothing_behind_the_identity_is_parsed() -> None:
    ds = minimal()
    head = wire(ds)
    garbage = struct.pack("<HH2sH", 0x0028, 0x0010, b"US", 0xFFFF)
    assert read_identity(head + garbage, ExplicitVRLittleEndian).sop_instance_uid == "1.2.3"


def test_a_deep_private_sequence_before_the_identity_is_no_way_out() -> None:
    with pytest.raises(UnreadableInstanceError):
        read_identity(nested(5_000) + wire(minimal(), implicit=True), ImplicitVRLittleEndian)


def test_a_real_sequence_before_the_identity_is_skipped() -> None:
    item = Dataset()
    item.ReferencedSOPInstanceUID = "9.9.9"
    item.SeriesInstanceUID = "9.9.8"
    ds = minimal(ReferencedStudySequence=Sequence([item]))
    assert explicit(ds).series_uid == "1.2.5"
    ds["ReferencedStudySequence"].is_undefined_length = True
    assert explicit(ds).series_uid == "1.2.5"


SYNTAXES = st.sampled_from(
    [
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        JPEG2000Lossless,
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), SYNTAXES)
def test_any_bytes_are_an_identity_or_unreadable(data: bytes, syntax: str) -> None:
    try:
        identity = read_identity(data, syntax)
    except UnreadableInstanceError:
        return
    assert identity.sop_instance_uid


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_any_damage_is_an_identity_or_unreadable(syntax: str, damage: list[tuple[int, int]]) -> None:
    data = bytearray(
        wire(
            minimal(
                SpecificCharacterSet=["", "ISO 2022 IR 87"],
                PatientName="Yamada^Tarou",
                ReferencedStudySequence=Sequence([minimal()]),
                StudyDate="20200101",
                ProcedureCodeSequence=Sequence([minimal(), minimal()]),
            ),
            implicit=syntax == ImplicitVRLittleEndian,
            little=syntax != ExplicitVRBigEndian,
        )
    )
    for at, value in damage:
        data[at % len(data)] = value
    try:
        identity = read_identity(bytes(data), syntax)
    except UnreadableInstanceError:
        return
    for uid in (identity.sop_class_uid, identity.sop_instance_uid, identity.study_uid, identity.series_uid):
        assert set(uid) <= set("0123456789.")


def test_a_new_instance_makes_study_series_and_instance(node: SmallNode) -> None:
    slices = make_ct_series(3, matrix=8)
    assert node.receive(*slices) == [Reception.NEW] * 3
    with node.database.read() as session:
        study = session.execute(select(Study)).scalar_one()
        series = session.execute(select(Series)).scalar_one()
        instances = session.execute(select(Instance)).scalars().all()
        events = session.execute(select(AuditEvent.event)).scalars().all()
    assert (study.patient_id, study.accession_number) == ("SYNTHETIC-1", "ACC-a")
    assert (series.n_instances, series.state, series.calling_ae) == (3, SeriesState.RECEIVING, "PACS")
    assert {row.sop_instance_uid for row in instances} == {ds.SOPInstanceUID for ds in slices}
    for row in instances:
        assert row.path is not None
        assert node.spool.absolute(row.path).stat().st_size > row.size
    assert events == ["series arrived"]


def test_the_record_of_events_names_no_patient(node: SmallNode) -> None:
    node.receive(*make_ct_series(2, matrix=8))
    with node.database.read() as session:
        rows = session.execute(select(AuditEvent)).scalars().all()
    text = str([(row.objects, row.actor, row.study_uid) for row in rows])
    assert "SYNTHETIC" not in text
    assert "Synthetic" not in text


def test_the_same_again_changes_nothing(node: SmallNode) -> None:
    slices = make_ct_series(2, matrix=8)
    node.receive(*slices)
    before = node.clock.now
    node.clock.forward(seconds=5)
    assert node.receive(*slices, *slices) == [Reception.DUPLICATE] * 4
    with node.database.read() as session:
        series = session.execute(select(Series)).scalar_one()
        assert (series.n_instances, series.last_received_at) == (2, before)
        assert len(session.execute(select(Instance)).all()) == 2


def test_other_bytes_under_a_known_uid_are_kept_beside_the_first(node: SmallNode) -> None:
    (first,) = make_ct_series(1, matrix=8)
    (second,) = make_ct_series(1, matrix=8)
    second.PatientID = "ANOTHER"
    assert node.receive(first, second, second) == [Reception.NEW, Reception.CONFLICT, Reception.CONFLICT]
    with node.database.read() as session:
        conflict = session.execute(select(Conflict)).scalar_one()
        instance = session.execute(select(Instance)).scalar_one()
        events = session.execute(select(AuditEvent.event, AuditEvent.outcome)).all()
        assert conflict.instance_id == instance.id
        assert conflict.same_content is None
        assert session.execute(select(Series.n_instances)).scalar_one() == 1
    assert conflict.path is not None
    assert instance.path is not None
    assert node.spool.absolute(conflict.path).read_bytes() != node.spool.absolute(instance.path).read_bytes()
    assert [tuple(event) for event in events] == [("series arrived", 0), ("instance conflict", 4)]


def test_our_own_result_coming_back_makes_no_series(node: SmallNode) -> None:
    node.receive(*chest())
    node.settle()
    job, token = node.claim()
    artifacts = node.result(job, ["sr"])
    node.finish(job, token, artifacts)
    report = dcmread(node.spool.directory / artifacts[0].path)
    assert node.receive(report) == [Reception.OWN_RESULT]
    with node.database.read() as session:
        assert len(session.execute(select(Series)).all()) == 1


def test_other_bytes_under_the_uid_of_a_result_are_kept(node: SmallNode) -> None:
    """What was acknowledged is there; our own bytes that come back are no news all the same."""
    node.receive(*chest())
    node.settle()
    job, token = node.claim()
    artifacts = node.result(job, ["sr"])
    node.finish(job, token, artifacts)
    ours = dcmread(node.spool.directory / artifacts[0].path)
    changed, again = deepcopy(ours), deepcopy(ours)
    changed.PatientName, again.PatientName = "changed by the archive", "changed again"
    outcomes = node.receive(changed, changed, ours, again, ours)
    assert outcomes == [
        Reception.NEW,
        Reception.DUPLICATE,
        Reception.OWN_RESULT,
        Reception.CONFLICT,
        Reception.OWN_RESULT,
    ]
    uid = str(ours.SOPInstanceUID)
    with node.database.read() as session:
        (kept,) = session.execute(select(Instance).where(Instance.sop_instance_uid == uid)).scalars()
        told = session.execute(select(AuditEvent).where(AuditEvent.event == "instance conflict")).scalars()
        assert [event.objects["sop_instance_uid"] for event in told] == [uid, uid]
        request = Request("1.2", (Reference(str(ours.SOPClassUID), uid),))
        assert judge(session, node.spool.directory, request).failed == ()
        assert encoded(changed)[0] in node.spool.absolute(str(kept.path)).read_bytes()
        node.spool.remove(str(kept.path))
        assert judge(session, node.spool.directory, request).committed == ()
    node.quiet()
    assert len(node.all_jobs()) == 1


def test_a_late_instance_opens_the_series_again(node: SmallNode) -> None:
    *slices, late = chest(13)
    node.receive(*slices)
    node.settle()
    assert [row.state for row in node.all_jobs()] == [JobState.QUEUED]
    node.clock.forward(seconds=1)
    node.receive(late)
    with node.database.read() as session:
        series = session.execute(select(Series)).scalar_one()
        last = session.execute(select(AuditEvent).order_by(AuditEvent.seq.desc())).scalars().first()
    assert (series.state, series.reason, series.n_instances) == (SeriesState.RECEIVING, "late instance", 13)
    assert series.last_received_at == node.clock.now
    assert last is not None
    assert last.objects["state"] == "receiving"


@pytest.mark.parametrize("finished", [False, True])
def test_a_conflict_opens_a_series_that_has_no_result_yet(
    node: SmallNode,
    finished: bool,
) -> None:
    slices = chest()
    node.receive(*slices)
    node.settle()
    if finished:
        node.finish(*node.claim())
    slices[3].PatientID = "ANOTHER"
    assert node.receive(slices[3]) == [Reception.CONFLICT]
    expected = SeriesState.QUEUED if finished else SeriesState.RECEIVING
    assert [state for state, _ in node.states().values()] == [expected]


def test_an_instance_whose_file_was_removed_is_kept_when_it_comes_again(node: SmallNode) -> None:
    """Success is only said for what is on disk; a row without its file would be neither."""
    (ds,) = make_ct_series(1, matrix=8)
    node.receive(ds)
    with node.database.write() as session:
        row = session.execute(select(Instance)).scalar_one()
        node.spool.remove(row.path or "")
        row.path = None
    assert node.receive(ds) == [Reception.DUPLICATE]
    with node.database.read() as session:
        path = session.execute(select(Instance.path)).scalar_one()
    assert path is not None
    assert node.spool.absolute(path).exists()
