"""The clinical record by HL7 v2: a sender over sockets, honest and not."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self

import hl7
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydicom import Dataset
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from inference.record import RecordCode, Sex, Smoking
from inference.record_person import confirmed, gathered
from pacs_node.clinical_facts import ToldByMessages, forget
from pacs_node.config import Settings, StorageSettings
from pacs_node.config_record import MllpSettings, RecordSettings
from pacs_node.db import AuditEvent, Database
from pacs_node.db_record import ClinicalFactRow, ClinicalMessageRow
from pacs_node.hl7_message import RefusedError, read_message
from pacs_node.mllp import END, START, Door, Intake, run
from pacs_node.record_codes import Coding
from pacs_node.record_of_study import StudyRecords
from pacs_node.record_sources import RecordSources, Subject
from pacs_node.request import CaseRequest
from pacs_node.storage import open_database
from pacs_node.tls import server_context
from tests.certificates import Certificate, make_certificate
from tests.small_node import START as START_OF_TIME
from tests.small_node import TestClock

SEEN = date(2026, 3, 1)
OBX = (
    "OBX|1|CWE|72166-2^Tobacco smoking status^LN||8517006^Former smoker^SCT||||||F|||20260110",
    "OBX|2|NM|8664-5^Pack years^LN||40|{PackYears}^^UCUM|||||F|||20260110",
    "OBX|3|DT|74010-0^Quit^LN||20180301||||||F",
)
DG1 = ("DG1|1||J43.9^Emphysema^I10|||F", "DG1|2||C50.9^Breast^I10||20120101|F")


def message(
    *segments: str,
    control_id: str = "M1",
    kind: str = "ORU^R01",
    patient: str = "P-17^^^HOSPITAL^MR",
    born: str = "19580504",
    sex: str = "F",
    version: str = "2.5.1",
    charset: str = "",
) -> bytes:
    lines = [
        f"MSH|^~\\&|RIS|HOSP|CTNODE|X|20260115120000||{kind}|{control_id}|P|{version}||||||{charset}",
        f"PID|1||{patient}||Doe^Jane||{born}|{sex}",
        *segments,
    ]
    return "\r".join(lines).encode("utf-8")


def order(accession: str = "A-1") -> str:
    return f"OBR|1|PL-9|FI-9|CT^CT chest|||20260115|||||||||||{accession}"


def full(**more: Any) -> bytes:
    return message("ORC|NW|PL-9", order(), *OBX, *DG1, **more)


@pytest.fixture
def clock() -> TestClock:
    return TestClock()


def configured(**changes: Any) -> MllpSettings:
    given: dict[str, Any] = {"enabled": True, "senders": ("127.0.0.1",), "message_seconds": 5.0} | changes
    # any free port; the settings take no 0
    return MllpSettings(**given).model_copy(update={"port": 0})


@contextmanager
def listening(database: Database, clock: TestClock, tls: Any = None, **changes: Any) -> Iterator[int]:
    section = configured(**changes)
    whole = Settings().model_copy(update={"mllp": section})
    stop = Event()
    door = Door(section, Intake(database, whole, clock), tls)
    thread = Thread(target=door.run, args=(stop, lambda: None))
    thread.start()
    try:
        yield door.port
    finally:
        stop.set()
        thread.join()


@pytest.fixture
def port(database: Database, clock: TestClock) -> Iterator[int]:
    with listening(database, clock) as found:
        yield found


class Sender:
    """Sends bytes and reads acknowledgements."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> str:
        """MSA-1, MSA-2 and, of a refusal, what is wrong."""
        self.socket.sendall(START + data + END)
        return self.answer()

    def answer(self) -> str:
        found = b""
        while not found.endswith(END):
            piece = self.socket.recv(4096)
            if not piece:
                return "closed"
            found += piece
        ack = hl7.parse(found[1:-2].decode("ascii"))
        words = f"{ack['MSA'][0][1]} {ack['MSA'][0][2]}"
        return f"{words}: {ack['ERR'][0][8]}" if len(ack) > 2 else words


def send(port: int, data: bytes) -> str:
    with Sender(port) as sender:
        return sender.send(data)


def rows(database: Database, table: Any = ClinicalFactRow) -> list[Any]:
    with database.read() as session:
        return list(session.scalars(select(table).order_by(table.id)))


def told(database: Database, patient_id: str = "P-17", accession: str = "A-1") -> Any:
    return ToldByMessages(database).of_order(patient_id, accession, SEEN)


def header(**elements: str) -> Dataset:
    ds = Dataset()
    ds.PatientID, ds.PatientBirthDate, ds.PatientSex, ds.StudyDate = "P-17", "19580504", "F", "20260301"
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


# what is taken


def test_what_is_acknowledged_is_written_down(database: Database, port: int) -> None:
    assert send(port, full()) == "AA M1"
    (found,) = told(database)
    record = confirmed(found, header()).record
    assert (record.age_years, record.sex, record.smoking) == (67.0, Sex.FEMALE, Smoking.FORMER)
    assert (record.pack_years, record.emphysema, record.cancer_history) == (40.0, True, True)
    assert record.years_quit == pytest.approx(8.0, abs=0.01)
    assert "pack_years (HL7 ORU^R01 of 2026-01-10)" in found.reading.used_words()
    assert {(row.accession_number, row.unit) for row in rows(database)} == {
        ("A-1", ""),
        ("A-1", "pack-years"),
    }
    with database.read() as session:
        (event,) = session.scalars(select(AuditEvent))
    assert (event.event, event.code) == ("clinical record told", "110107")
    assert event.objects == {"kind": "ORU^R01", "address": "127.0.0.1", "facts": 5}


def test_many_messages_on_one_connection(database: Database, port: int) -> None:
    with Sender(port) as sender:
        assert sender.send(full()) == "AA M1"
        sender.socket.sendall(b"\r\n")
        sender.socket.sendall(START + message(OBX[0], control_id="M2") + END + START)
        assert sender.answer() == "AA M2"
        sender.socket.sendall(message(control_id="M3") + END)
        assert sender.answer() == "AA M3"
    assert len(rows(database, ClinicalMessageRow)) == 3


def test_the_same_message_again_adds_nothing(database: Database, port: int) -> None:
    assert [send(port, full()) for _ in range(2)] == ["AA M1", "AA M1"]
    assert len(rows(database)) == 5
    again = full().replace(b"20260115120000", b"20260115120500")
    assert send(port, again) == "AA M1"
    assert send(port, message(OBX[0])) == "AE M1: MSH-10 was used before, for another message."
    assert len(rows(database)) == 5


@pytest.mark.parametrize("kind", ["ORM^O01", "OMI^O23^OMI_O23", "ORU^R01^ORU_R01"])
def test_kinds_of_messages(database: Database, port: int, kind: str) -> None:
    assert send(port, full(kind=kind)) == "AA M1"
    assert len(rows(database)) == 5


def test_each_order_has_its_accession_number() -> None:
    data = message(
        OBX[1], "ORC|NW", order("A-1"), OBX[0], "ORC|NW", order("A-2"), DG1[0], order("A-3"), OBX[2]
    )
    found = read_message(data, {})
    assert [(one.fact.item, one.accession_number) for one in found.facts] == [
        ("pack_years", ""),
        ("smoking", "A-1"),
        ("emphysema", "A-2"),
        ("quit_date", "A-3"),
    ]
    omi = message("ORC|NW|PL", "OBR|1|PL|FI", OBX[0], "IPC|A-7^RIS|R|1.2", kind="OMI^O23")
    assert read_message(omi, {}).facts[0].accession_number == "A-7"
    assert read_message(omi, {}, ("OBR-3",)).facts[0].accession_number == "FI"


@pytest.mark.parametrize(
    ("segment", "value"),
    [
        ("OBX|1|NM|8664-5^^LN||40|1|||||P", None),
        ("OBX|1|NM|8664-5^^LN||40|/d|||||F", None),
        ("OBX|1|NM|8664-5^^LN||many||||||F", None),
        ('OBX|1|NM|8664-5^^LN||""||||||F', None),
        ("OBX|1|SN|8664-5^^LN||=^12.5||||||F", 12.5),
        ("OBX|1|SN|8664-5^^LN||>^12||||||F", None),
        ("OBX|1|ST|72166-2^^LN||Ex-smoker||||||F", "former"),
        ("OBX|1|ST|72166-2^^LN||Ex\\S\\smoker||||||F", None),
        ("OBX|1|IS|SMK^^99LOCAL||never||||||F", "never"),
        ("OBX|1|ED|72166-2^^LN||^application^pdf^Base64^AAAA||||||F", None),
        ("DG1|1||J43.9^^I10|||W", None),
        ("DG1|1||87433001^^SCT|||F", True),
        ("DG1|1||X^^99^J439^^I10C|||", True),
        ("DG1|1||J44.9^^I10|||F", None),
        ("OBX", None),
    ],
)
def test_what_a_segment_tells(segment: str, value: object) -> None:
    found = read_message(message(segment), {Coding("99LOCAL", "SMK"): "smoking"})
    assert [one.fact.value for one in found.facts] == ([] if value is None else [value])


def test_a_correction_takes_the_place_of_what_was_wrong(database: Database, port: int) -> None:
    send(port, full())
    wrong = OBX[0].replace("8517006", "266919005").replace("|F|", "|C|")
    send(port, message(order(), wrong, control_id="M2"))
    (found,) = told(database)
    assert "smoking" not in found.reading.record.items(), "never smoked, but 40 pack-years: neither is taken"
    assert "CONTRADICTION" in [issue.code for issue in found.reading.issues]


# whose it is


def test_only_of_this_patient_and_this_order(database: Database, port: int) -> None:
    send(port, full())
    assert told(database, patient_id="P-18") == ()
    assert told(database, accession="A-2") == ()
    assert told(database, accession="") == ()
    (other,) = ToldByMessages(database).of_patient("P-17", "A-2", SEEN)
    assert other.reading.record.pack_years == 40.0
    assert ToldByMessages(database).of_patient("P-17", "A-1", SEEN) == ()


@pytest.mark.parametrize(
    "elements", [{"PatientBirthDate": "19580505"}, {"PatientSex": "M"}, {"PatientID": "P"}]
)
def test_of_another_patient_nothing_is_used(database: Database, port: int, elements: dict[str, str]) -> None:
    send(port, full())
    (found,) = told(database)
    reading = confirmed(found, header(**elements))
    assert (reading.record.is_empty, reading.issues[0].code) == (True, RecordCode.MISMATCH)


def test_messages_that_differ_in_whom_they_mean(database: Database, port: int) -> None:
    send(port, full())
    send(port, full(control_id="M2", born="19600101"))
    (found,) = told(database)
    assert (found.person, found.reading.issues[0].code) == (None, RecordCode.AMBIGUOUS)


def test_the_order_before_the_rest(database: Database, port: int) -> None:
    send(port, message(order(), OBX[1]))
    other = OBX[1].replace("|40|", "|20|")
    send(port, message(other, OBX[0], control_id="M2"))
    sources = RecordSources(RecordSettings(), ToldByMessages(database))
    found = sources.ask(Subject("P-17", "A-1", "20260301"), lambda: False)
    assert [one.source for one in found] == ["HL7 order", "HL7"]
    reading = gathered(found, header())
    assert (reading.record.pack_years, reading.record.smoking) == (40.0, Smoking.FORMER)
    assert [issue.code for issue in reading.issues] == [RecordCode.CONFLICT]


# what is refused


def without(data: bytes, segment: bytes) -> bytes:
    return b"\r".join(line for line in data.split(b"\r") if not line.startswith(segment))


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"", "AR : The message doesn't begin with MSH and its separators."),
        (b"GET / HTTP/1.1", "AR : The message doesn't begin with MSH and its separators."),
        (b"MSH", "AR : The message doesn't begin with MSH and its separators."),
        (b"MSH|", "AR : The message doesn't begin with MSH and its separators."),
        (b"\xff\xfe" + full(), "AR : The message doesn't begin with MSH and its separators."),
        (full(kind="ADT^A01"), "AR M1: Taken are OMI O23, ORM O01, ORU R01."),
        (full(version="3.0"), "AR M1: MSH-12 isn't a version 2 of HL7."),
        (full(control_id=""), "AR : MSH-10 is missing or can't be used."),
        (full(control_id="x" * 65), "AR : MSH-10 is missing or can't be used."),
        (full(charset="KLINGON"), "AR M1: MSH-18 names a character set that isn't read here."),
        (
            full(charset="ASCII").replace(b"Doe", b"D\xf6e"),
            "AR M1: The message isn't in the character set of MSH-18.",
        ),
        (full().replace(b"Doe", b"D\xf6e"), "AR M1: The message isn't in the character set of MSH-18."),
        (without(full(), b"PID"), "AE M1: There must be one PID, not 0."),
        (full() + b"\rPID|2||P-18", "AE M1: There must be one PID, not 2."),
        (full(patient=""), "AE M1: PID-3 has no patient identifier that could be the images'."),
        (
            full(patient="P-17^^^A~P-99^^^B"),
            "AE M1: PID-3 has more than one patient identifier that could be the images'.",
        ),
        (full() + b"\r" + full(), "AR M1: There is more than one MSH."),
        (message(*["OBX|1"] * 2001), "AR M1: More than 2000 segments."),
        (message(*["OBX|" + "^&~|" * 4000] * 4), "AR M1: More than 50000 separators."),
    ],
)
def test_what_is_not_taken_is_answered_and_not_written(
    database: Database, port: int, data: bytes, answer: str
) -> None:
    with Sender(port) as sender:
        assert sender.send(data) == answer
        assert rows(database, ClinicalMessageRow) == []
        assert sender.send(full()) == "AA M1", "the connection lives on"


def test_character_sets() -> None:
    latin = full(charset="8859/1").decode().replace("Doe", "Dö").encode("iso-8859-1")
    assert len(read_message(latin, {}).facts) == 5


def test_an_authority_chooses_the_patient_id() -> None:
    data = full(patient="P-17^^^A~P-99^^^B&1.2&ISO")
    assert read_message(data, {}, authority="B").person.patient_id == "P-99"
    with pytest.raises(RefusedError, match="no patient identifier"):
        read_message(data, {}, authority="C")


def test_a_picture_in_a_message_is_passed_over(database: Database, port: int) -> None:
    picture = f"OBX|9|ED|PDF^^99||^application^pdf^Base64^{'A' * 300_000}||||||F"
    assert send(port, message(order(), picture, OBX[0])) == "AA M1"
    assert [row.item for row in rows(database)] == ["smoking"]


def test_a_message_that_is_too_large(database: Database, clock: TestClock) -> None:
    with listening(database, clock, max_message_kb=64) as port, Sender(port) as sender:
        sender.socket.sendall(START + full())
        # ten megabytes
        with pytest.raises(OSError, match=r"reset|pipe|abort"):
            sender.socket.sendall((b"\rNTE|1||" + b"x" * 65_528) * 160)
    with listening(database, clock, max_message_kb=64) as port:
        assert send(port, full() + b"\rNTE|" + b"x" * 65_536) == "AR M1: The message is larger than 64 KiB."
    assert rows(database, ClinicalMessageRow) == []


def test_half_a_message_is_nothing(database: Database, port: int) -> None:
    with Sender(port) as sender:
        sender.socket.sendall(START + full()[:200])
    with Sender(port) as sender:
        sender.socket.sendall(START + full())
        sender.socket.shutdown(socket.SHUT_WR)
        assert sender.answer() == "closed"
    assert rows(database, ClinicalMessageRow) == []


def test_no_end_of_a_message_ends_in_time(database: Database, clock: TestClock) -> None:
    with listening(database, clock, message_seconds=0.3) as port, Sender(port) as sender:
        sender.socket.sendall(START + full() + b"\x1c")
        assert sender.answer() == "closed"
    with listening(database, clock, idle_seconds=0.2) as port, Sender(port) as sender:
        assert sender.answer() == "closed"
    with listening(database, clock) as port, Sender(port) as sender:
        sender.socket.sendall(b"MSH|no start")
        assert sender.answer() == "closed"
    assert rows(database, ClinicalMessageRow) == []


def test_who_is_no_sender_is_cut_off(database: Database, clock: TestClock) -> None:
    with listening(database, clock, senders=("10.0.0.0/8",)) as port, Sender(port) as sender:
        assert sender.answer() == "closed"
    with listening(database, clock, max_connections=1) as port, Sender(port) as first:
        assert first.send(full()) == "AA M1"
        with Sender(port) as second:
            assert second.answer() == "closed"


class _Waits(Event):
    """Ends at the third wait."""

    waits = 0

    def wait(self, timeout: float | None = None) -> bool:
        self.waits += 1
        if self.waits == 3:
            self.set()
        return self.is_set()


def test_a_door_without_descriptors_waits_for_some(database: Database, clock: TestClock) -> None:
    """It neither spins nor ends."""
    door = Door(configured(), Intake(database, Settings(), clock))
    door._socket.close()
    stop, attempts = _Waits(), list[int]()

    class Full:
        def accept(self) -> None:
            attempts.append(1)
            if len(attempts) == 1000:
                stop.set()
            raise OSError(errno.EMFILE, "Too many open files")

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    door._socket = Full()  # type: ignore[assignment]  # stands in for the one that listens
    door.run(stop, lambda: None)
    assert (len(attempts), stop.waits) == (3, 3)


def test_without_a_thread_one_sender_is_refused_and_the_next_is_heard(
    database: Database, clock: TestClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = Thread.start, list[str]()

    def start(self: Thread) -> None:
        if self.name.startswith("mllp") and len(refused) < 2:
            refused.append(self.name)
            raise RuntimeError("can't start new thread")
        real(self)

    with listening(database, clock, max_connections=1) as port:
        monkeypatch.setattr(Thread, "start", start)
        for _ in range(2):
            with Sender(port) as sender:
                assert sender.socket.recv(1) == b""
        assert send(port, full()) == "AA M1"


def test_what_cannot_be_written_down_is_not_acknowledged(
    database: Database, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object, **__: object) -> bool:
        raise OperationalError("INSERT", {}, Exception("disk full"))

    with monkeypatch.context() as broken:
        broken.setattr("pacs_node.mllp.keep", full_disk)
        assert send(port, full()) == "AE M1: The message can't be written down now."
    assert send(port, full()) == "AA M1"


def test_by_tls_with_a_certificate_of_the_sender(
    database: Database, clock: TestClock, tmp_path: Path
) -> None:
    node, ris, stranger = (make_certificate(tmp_path, name) for name in ("node", "ris", "stranger"))
    with listening(database, clock, server_context(node.trusting(ris), "mllp")) as port:
        with Sender(port) as sender:
            sender.socket = _as(ris, node).wrap_socket(sender.socket)
            assert sender.send(full()) == "AA M1"
        assert _tried(port, _as(stranger, node)) == "closed"
        assert _tried(port, None) == "closed"
    assert len(rows(database, ClinicalMessageRow)) == 1


def _tried(port: int, context: ssl.SSLContext | None) -> str:
    try:
        with Sender(port) as sender:
            if context is not None:
                sender.socket = context.wrap_socket(sender.socket)
            return sender.send(full(control_id="M2"))
    except OSError:
        return "closed"


def _as(own: Certificate, other: Certificate) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(other.certificate))
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_cert_chain(own.certificate, own.key)
    return context


_CORRUPT = st.lists(
    st.tuples(st.integers(0, 600), st.sampled_from([*b"|^~\\&\r\n\x00\x0b\x1cMSHPIDOBX\xff\xc3"])),
    max_size=12,
)


@hypothesis_settings(max_examples=150, deadline=None)
@given(_CORRUPT, st.integers(0, 700), st.booleans())
@example([(3, 0x0D)], 700, False)
@example([(4, 0x0D)], 700, False)
def test_whatever_the_bytes_are_a_message_is_read_or_refused(
    changes: list[tuple[int, int]], length: int, insert: bool
) -> None:
    data = bytearray(full())
    for place, byte in changes:
        at = min(place, len(data) - 1)
        if insert:
            data.insert(at, byte)
        else:
            data[at] = byte
    _read_or_refused(bytes(data[:length]))


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_whatever_else_the_bytes_are(data: bytes) -> None:
    _read_or_refused(b"MSH|" + data)
    _read_or_refused(data)
    _read_or_refused(full() + b"\rOBX|" + data)


def _read_or_refused(data: bytes) -> None:
    try:
        found = read_message(data, {})
    except RefusedError:
        return
    assert found.control_id.isprintable()
    assert found.person.patient_id.isprintable()


# settings and time


def test_what_is_old_is_removed(database: Database, port: int, clock: TestClock) -> None:
    send(port, full())
    clock.forward(days=10)
    send(port, full(control_id="M2"))
    with database.write() as session:
        assert forget(session, clock.now.replace(hour=0)) == 1
    assert [row.control_id for row in rows(database, ClinicalMessageRow)] == ["M2"]
    assert len(rows(database)) == 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"senders": ()}, "nobody could send"),
        ({"senders": ("everybody",)}, "10.1.2.0/24"),
        ({"host": "0.0.0.0"}, "allow_plaintext"),
        ({"tls_key_file": "k"}, "TLS needs all three"),
        ({"accession_fields": ("PID-3",)}, "pattern"),
    ],
)
def test_settings_that_cannot_work(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        configured(**change)


def test_the_part_of_a_node(tmp_path: Path) -> None:
    """What `pacs-node serve` runs: its own database, its own port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = int(probe.getsockname()[1])
    mllp = MllpSettings(enabled=True, senders=("127.0.0.1",), port=free)
    storage = StorageSettings(directory=str(tmp_path / "node"))
    settings = Settings(mllp=mllp, storage=storage)
    open_database(settings).dispose()
    stop = Event()
    part = Thread(target=run, args=(settings, stop))
    part.start()
    try:
        assert _answered(free) == "AA M1"
    finally:
        stop.set()
        part.join()
    told_later = StudyRecords(open_database(settings), settings)
    identity = {
        "PatientID": "P-17",
        "AccessionNumber": "A-1",
        "StudyDate": "20260301",
        "StudyInstanceUID": "1.2",
    }
    request = CaseRequest((), tmp_path, "classical", "cpu", "0", START_OF_TIME, identity)
    assert [one.source for one in told_later.added_to(request, lambda: False).told] == ["HL7 order"]


def _answered(port: int) -> str:
    for _ in range(600):
        try:
            return send(port, full())
        except ConnectionRefusedError:
            Event().wait(0.05)
    raise AssertionError("never listened")
