"""``pacs-node doctor``: each fault is found, and each finding says what to do."""

from __future__ import annotations

import errno
import os
import shutil
import tomllib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydicom.uid import (
    Comprehensive3DSRStorage,
    ExplicitVRLittleEndian,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined] # made at run time
from sqlalchemy import text

from pacs_node import audit, db, doctor, doctor_peers
from pacs_node.ballast import Ballast
from pacs_node.cli import main
from pacs_node.clock import clock_is_synchronised
from pacs_node.commitment import Reference, Request
from pacs_node.commitment_scp import record_request
from pacs_node.config import Settings, parse_settings
from pacs_node.doctor_database import check_database
from pacs_node.doctor_findings import Finding, Level
from pacs_node.peer import ReceivingPeer
from tests.certificates import make_certificate
from tests.conftest import find_free_port

NOW = datetime.now(UTC)
FIND = "1.2.840.10008.5.1.4.1.2.2.1"


@pytest.fixture
def storage(tmp_path: Path, migrated: Path) -> Path:
    directory = tmp_path / "storage"
    directory.mkdir()
    shutil.copyfile(migrated, directory / "node.db")
    return directory


def settings(storage: Path, /, **sections: Any) -> Settings:
    raw = {"storage": {"directory": str(storage), "reserve_mb": 1}, "pipeline": {"profile": "classical"}}
    raw |= sections
    return parse_settings(raw, base=storage.parent)


def bad(findings: Iterator[Finding]) -> list[Finding]:
    """What is not good, held against the promise that it says what to do."""
    found = [finding for finding in findings if finding.level is not Level.GOOD]
    assert all(finding.todo for finding in found)
    return found


def test_a_healthy_node(storage: Path) -> None:
    one = {"ae_title": "PACS", "address": "127.0.0.1"}
    found = bad(doctor.examine(settings(storage, callers=[one]), NOW))
    # where the tests run, the clock may follow nobody and the disk may be slow or a tmpfs
    assert [finding for finding in found if finding.about not in {"clock", "disk"}] == []


def test_before_the_first_start_nothing_is_wrong(tmp_path: Path) -> None:
    ready = settings(tmp_path / "none")
    assert bad(doctor.check_disk(ready)) == []
    assert bad(check_database(ready, NOW)) == []
    assert not (tmp_path / "none").exists()


def test_too_little_room(storage: Path) -> None:
    full = settings(storage, storage={"directory": str(storage), "reserve_mb": 1 << 40})
    (finding,) = (item for item in bad(doctor.check_disk(full)) if "reserve" in item.sentence)
    assert finding.level is Level.PROBLEM
    assert "A700" in finding.todo


def test_no_room_at_all(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor is needed most where not even a file of its own can be written."""

    def fail(_directory: Path) -> float:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(doctor, "sync_seconds", fail)
    monkeypatch.setattr(Ballast, "is_given_up", True)
    problems = [item for item in bad(doctor.check_disk(settings(storage))) if item.level is Level.PROBLEM]
    assert any("No space left" in item.sentence and "free space" in item.todo for item in problems)
    assert any("of the ballast" in item.sentence and "nothing is analysed" in item.todo for item in problems)


def test_a_ballast_that_images_would_fill(storage: Path) -> None:
    given = {"directory": str(storage), "reserve_mb": 64, "ballast_mb": 64}
    found = bad(doctor.check_disk(settings(storage, storage=given)))
    assert any("64 MiB gives back" in item.sentence for item in found)
    given["reserve_mb"] = 65
    found = bad(doctor.check_disk(settings(storage, storage=given)))
    assert not any("gives back" in item.sentence for item in found)


@pytest.mark.parametrize(("kind", "word"), [("tmpfs", "restart"), ("nfs4", "locks"), ("cifs", "locks")])
def test_a_file_system_that_keeps_nothing(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, word: str
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nx {storage} {kind} rw 0 0\ny {tmp_path}/other xfs rw 0 0\n")
    assert doctor.file_system(storage, mounts) == kind
    assert doctor.file_system(tmp_path, mounts) == "ext4"
    monkeypatch.setattr(doctor, "file_system", lambda _directory: kind)
    (finding,) = (item for item in bad(doctor.check_disk(settings(storage))) if kind in item.sentence)
    assert (finding.level, word in finding.sentence) == (Level.PROBLEM, True)


def test_a_slow_disk(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "sync_seconds", lambda _directory: 0.2)
    assert any("200.0 ms" in item.sentence for item in bad(doctor.check_disk(settings(storage))))
    monkeypatch.undo()
    assert doctor.sync_seconds(storage) < 60
    assert [path.name for path in storage.iterdir()] == ["node.db"]


def test_a_damaged_database(storage: Path) -> None:
    path = storage / "node.db"
    data = bytearray(path.read_bytes())
    data[8192:20000] = os.urandom(20000 - 8192)
    path.write_bytes(data)
    found = bad(check_database(settings(storage), NOW))
    assert any(item.level is Level.PROBLEM and "backup" in item.todo for item in found)


def test_no_database_at_all(storage: Path) -> None:
    (storage / "node.db").write_bytes(b"something else" * 100)
    (finding,) = bad(check_database(settings(storage), NOW))
    assert "can't be read" in finding.sentence


def record(storage: Path, *rows: dict[str, Any], at: datetime = NOW) -> None:
    opened = db.Database(db.sqlite_url(storage))
    with opened.write() as session:
        for row in rows:
            audit.record(session, audit.Event.ASSOCIATION_REFUSED, at=at, actor="listener", **row)
    opened.dispose()


def test_a_changed_audit_record(storage: Path) -> None:
    record(storage, {"calling_ae": "A"}, {"calling_ae": "B"})
    opened = db.Database(db.sqlite_url(storage))
    with opened.write() as session:
        session.execute(text("DROP TRIGGER IF EXISTS audit_event_no_update"))
        for (name,) in session.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).all():
            session.execute(text(f'DROP TRIGGER "{name}"'))
        session.execute(text("UPDATE audit_event SET actor = 'x' WHERE seq = 1"))
    opened.dispose()
    found = bad(check_database(settings(storage), NOW))
    assert any(item.about == "audit" and "row 1" in item.sentence for item in found)


def test_a_clock_that_went_back(storage: Path) -> None:
    record(storage, {"calling_ae": "A"}, at=NOW + timedelta(hours=1))
    found = bad(check_database(settings(storage), NOW))
    assert [item.about for item in found] == ["clock"]


@pytest.mark.parametrize(("says", "n_findings"), [(True, 0), (False, 1), (None, 1)])
def test_the_clock(monkeypatch: pytest.MonkeyPatch, says: bool | None, n_findings: int) -> None:
    assert clock_is_synchronised() in {True, False, None}
    monkeypatch.setattr(doctor, "clock_is_synchronised", lambda: says)
    assert len(bad(doctor.check_clock())) == n_findings


def test_models_that_are_not_there(storage: Path) -> None:
    assert bad(doctor.check_models(settings(storage))) == []
    (finding,) = bad(doctor.check_models(settings(storage, pipeline={"profile": "none"})))
    assert "classical" in finding.todo


REFUSED = {"calling_ae": 'P"ACS', "called_ae": "AI", "address": "10.1.2.3", "certificate": "ab" * 32}


def test_a_listener_that_the_callers_cant_reach_is_a_problem(storage: Path) -> None:
    callers = [{"ae_title": "PACS", "address": "10.1.2.3"}, {"ae_title": "HERE", "address": "127.0.0.1"}]
    (finding,) = bad(doctor.check_callers(settings(storage, callers=callers), NOW))
    assert finding.level is Level.PROBLEM
    assert "10.1.2.3/32 can't come in" in finding.sentence
    reached = settings(storage, callers=callers, listener={"host": "0.0.0.0", "allow_plaintext": True})
    assert bad(doctor.check_callers(reached, NOW)) == []


def test_nobody_who_is_asked_what_never_came_is_a_warning(storage: Path) -> None:
    destinations = [{"name": "pacs", "kind": "dicom", "host": "10.1.2.3", "port": 104, "ae_title": "PACS"}]
    (finding,) = bad(doctor.check_archive(settings(storage, destinations=destinations)))
    assert finding.level is Level.WARNING
    asked = settings(storage, destinations=destinations, archive={"destination": "pacs"})
    assert bad(doctor.check_archive(asked)) == []


def test_the_lines_that_admit_who_was_refused_do_admit_it(storage: Path) -> None:
    """The first run: the PACS sends, is refused, and its administrator copies what the doctor shows."""
    record(storage, {**REFUSED, "reason": "unknown calling AE title", "count": 3})
    record(storage, {**REFUSED, "reason": "unknown calling AE title", "count": 4})
    empty = settings(storage)
    nobody, refused = bad(doctor.check_callers(empty, NOW))
    assert "nobody may send" in nobody.sentence
    assert "7 times" in refused.sentence
    lines = tomllib.loads(refused.todo.partition("\n")[2])
    assert lines["callers"][0] == {
        "ae_title": 'P"ACS',
        "address": "10.1.2.3/32",
        "called_ae_title": "AI",
        "certificate_sha256": "ab" * 32,
    }
    listener = {
        "host": "0.0.0.0",
        "tls_certificate_file": "a",
        "tls_key_file": "b",
        "tls_client_ca_file": "c",
    }
    assert bad(doctor.check_callers(settings(storage, listener=listener, **lines), NOW)) == []


def test_who_deletes_by_the_word_of_this_node_is_named(storage: Path) -> None:
    """Committed of a node that removes images is no leave to delete; the archive keeps its own."""
    callers = [{"ae_title": name, "address": "127.0.0.1"} for name in ("CT1", "PACS", "SILENT")]
    pacs = {"name": "pacs", "kind": "dicom", "host": "h", "port": 104, "ae_title": "PACS"}
    database = db.Database(db.sqlite_url(storage))
    with database.write() as session:
        for transaction, name in (("1.2", "CT1"), ("1.3", "CT1"), ("1.2", "PACS")):
            asked = Request(transaction, (Reference("1.2.840.10008.5.1.4.1.1.2", "1.2.3"),))
            record_request(session, asked, calling_ae=name, called_ae="AI", address="127.0.0.1", at=NOW)
    database.dispose()
    known = {"callers": callers, "destinations": [pacs]}
    (finding,) = bad(doctor.check_commitment(settings(storage, **known)))
    assert finding.level is Level.WARNING
    assert finding.sentence.startswith(
        "CT1 asks whether its images are committed here: that holds for 30 days"
    )
    assert bad(doctor.check_commitment(settings(storage, retention={"images_days": 0.0}, **known))) == []


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        ("the peer speaks TLS, this listener doesn't", "tls_certificate_file"),
        ("TLS: tlsv1 alert unknown ca", "tls_client_ca_file"),
        ("no association request within 10 s", "port scanner"),
    ],
)
def test_who_had_no_name(storage: Path, reason: str, word: str) -> None:
    record(storage, {"address": "10.1.2.3", "reason": reason})
    _, finding = bad(doctor.check_callers(settings(storage), NOW))
    assert word in finding.todo


def test_hostile_names_are_quoted(storage: Path) -> None:
    record(storage, {**REFUSED, "calling_ae": "A\x1b[2J\n", "reason": "unknown calling AE title"})
    _, finding = bad(doctor.check_callers(settings(storage), NOW))
    assert "\x1b" not in finding.sentence + finding.todo
    assert "correct them" in finding.todo


def test_old_refusals_are_forgotten(storage: Path) -> None:
    record(storage, {**REFUSED, "reason": "x"}, at=NOW - timedelta(days=40))
    assert len(bad(doctor.check_callers(settings(storage), NOW))) == 1


@pytest.mark.peer("openssl")
@pytest.mark.parametrize(("days", "level"), [(365, Level.GOOD), (10, Level.WARNING)])
def test_certificates_that_end(storage: Path, tmp_path: Path, days: int, level: Level) -> None:
    made = make_certificate(tmp_path, "node", days=days)
    listener = {
        "host": "0.0.0.0",
        "tls_certificate_file": str(made.certificate),
        "tls_key_file": str(made.key),
        "tls_client_ca_file": str(made.certificate),
    }
    with_tls = settings(storage, listener=listener)
    soon = datetime.now(UTC) + timedelta(minutes=1)
    found = [item for item in doctor.check_listener(with_tls, soon) if "valid until" in item.sentence]
    assert [item.level for item in found] == [level, level]
    late = list(doctor.check_listener(with_tls, NOW + timedelta(days=400)))
    assert [item.level for item in late if "not valid now" in item.sentence] == [Level.PROBLEM] * 2
    made.certificate.write_text("nothing")
    assert [item.level for item in bad(doctor.check_listener(with_tls, NOW))] == [Level.PROBLEM]


def test_plain_text_is_said(storage: Path) -> None:
    loud = settings(storage, listener={"host": "0.0.0.0", "allow_plaintext": True})
    (finding,) = bad(doctor.check_listener(loud, NOW))
    assert "unencrypted" in finding.sentence


# destinations


@pytest.fixture
def archive() -> Iterator[Callable[..., int]]:
    """A peer that takes what it is told to."""
    servers: list[AE] = []

    def start(*classes: str) -> int:
        entity = AE("ARCHIVE")
        for uid in (Verification, *classes):
            entity.add_supported_context(uid, ExplicitVRLittleEndian)
        port = find_free_port()
        entity.start_server(
            ("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, lambda _event: 0xA700)]
        )
        servers.append(entity)
        return port

    yield start
    for entity in servers:
        entity.shutdown()


def towards(port: int, **options: Any) -> dict[str, Any]:
    return {
        "name": "pacs",
        "host": "127.0.0.1",
        "port": port,
        "ae_title": "ARCHIVE",
        "kind": "dicom",
        **options,
    }


def test_what_a_destination_takes(storage: Path, archive: Callable[..., int]) -> None:
    port = archive(SegmentationStorage, SecondaryCaptureImageStorage, FIND)
    having = settings(storage, destinations=[towards(port)])
    found = list(doctor_peers.check_destination(having.destinations[0], having, NOW))
    assert "answers" in found[0].sentence
    sentences = [item.sentence for item in found]
    assert "takes Segmentation Storage in Explicit VR Little Endian" in sentences
    (missing,) = bad(iter(found))
    assert str(Comprehensive3DSRStorage) in missing.todo
    assert missing.level is Level.PROBLEM
    assert "answers queries" in sentences


@pytest.mark.parametrize(
    ("options", "asked", "missing"),
    [
        ({"verify": "none"}, "", set()),
        ({"verify": "none"}, "pacs", {"doesn't answer queries (archive.destination names it)"}),
        ({"verify": "c-find"}, "", {"doesn't answer queries"}),
        ({"verify": "commitment"}, "", {"doesn't answer storage commitment"}),
    ],
)
def test_services_that_the_settings_rely_on(
    storage: Path, archive: Callable[..., int], options: dict[str, str], asked: str, missing: set[str]
) -> None:
    port = archive(SegmentationStorage, Comprehensive3DSRStorage)
    having = settings(storage, destinations=[towards(port, **options)], archive={"destination": asked})
    found = bad(doctor_peers.check_destination(having.destinations[0], having, NOW))
    assert {finding.sentence for finding in found} == missing


@pytest.mark.parametrize(("way", "number"), [("c-move", 2), ("c-get", 3)])
def test_the_way_that_earlier_examinations_come(
    storage: Path, archive: Callable[..., int], way: str, number: int
) -> None:
    model = f"1.2.840.10008.5.1.4.1.2.2.{number}"
    tables = {"archive": {"destination": "pacs"}, "priors": {"retrieve": way, "move_ae_title": "CTPRIOR"}}
    taken = (SegmentationStorage, Comprehensive3DSRStorage, FIND)
    lacks = {f"doesn't answer {way.upper()} (priors.retrieve)"}
    for port, missing in ((archive(*taken), lacks), (archive(*taken, model), set())):
        having = settings(storage, destinations=[towards(port)], **tables)
        found = bad(doctor_peers.check_destination(having.destinations[0], having, NOW))
        assert {finding.sentence for finding in found} == missing


def test_a_destination_that_is_not_there(storage: Path) -> None:
    having = settings(storage, destinations=[towards(find_free_port())])
    (finding,) = doctor_peers.check_destination(having.destinations[0], having, NOW)
    assert finding.level is Level.PROBLEM
    assert "CTNODE" in finding.todo


def test_the_test_result_arrives_and_names_its_study(storage: Path, tmp_path: Path) -> None:
    with ReceivingPeer(tmp_path / "peer", ae_title="ARCHIVE") as peer:
        having = settings(storage, destinations=[towards(peer.port)])
        found = list(doctor_peers.send_test(having.destinations[0], having, NOW))
        arrived = [item.read() for item in peer.objects]
    assert bad(iter(found)) == []
    assert [ds.SOPClassUID for ds in arrived] == [SecondaryCaptureImageStorage, Comprehensive3DSRStorage]
    assert {ds.PatientID for ds in arrived} == {doctor_peers.TEST_PATIENT}
    assert len({ds.StudyInstanceUID for ds in arrived}) == 1
    assert arrived[0].StudyInstanceUID in found[-1].sentence


def test_a_test_result_that_is_refused(storage: Path, archive: Callable[..., int]) -> None:
    having = settings(storage, destinations=[towards(archive(SecondaryCaptureImageStorage))])
    found = bad(doctor_peers.send_test(having.destinations[0], having, NOW))
    assert [item.level for item in found] == [Level.PROBLEM, Level.PROBLEM]


# the command


def test_the_command_and_its_exit_status(storage: Path, tmp_path: Path) -> None:
    config = tmp_path / "pacs-node.toml"
    text_ = f'[storage]\ndirectory = "{storage}"\nreserve_mb = 1\n[pipeline]\nprofile = "classical"\n'
    config.write_text(text_)
    record(storage, {**REFUSED, "reason": "unknown calling AE title"})
    done = CliRunner().invoke(main, ["doctor", "--config", str(config)])
    assert done.exit_code in {1, 3}, done.output
    assert "[[callers]]" in done.output
    assert "not for primary diagnosis" in done.output
    config.write_text(text_.replace("classical", "none"))
    assert CliRunner().invoke(main, ["doctor", "--config", str(config)]).exit_code == 3
    assert CliRunner().invoke(main, ["doctor", "--config", str(config), "--send-test", "x"]).exit_code == 2
    config.write_text("[listener]\nport = 0\n")
    wrong = CliRunner().invoke(main, ["doctor", "--config", str(config)])
    assert wrong.exit_code == 1
    assert "listener.port = 0" in wrong.output
