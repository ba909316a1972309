"""The port, what a status means, and the shipped fake."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import dcmread

from pacs_node.destinations import (
    Destination,
    FakeDestination,
    ObjectFile,
    Outcome,
    OutcomeKind,
    UnreadableFileError,
    classify_status,
    outcome_of_status,
)
from tests.small_objects import reference, write_ct, write_sr


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (0x0000, OutcomeKind.STORED),
        (0x0111, OutcomeKind.STORED),
        (0x0107, OutcomeKind.WARNING_STORED),
        (0xB000, OutcomeKind.WARNING_STORED),
        (0xB006, OutcomeKind.WARNING_STORED),
        (0xB007, OutcomeKind.WARNING_STORED),
        (0xB123, OutcomeKind.WARNING_STORED),
        (0x0110, OutcomeKind.TRANSIENT),
        (0x0213, OutcomeKind.TRANSIENT),
        (0xA700, OutcomeKind.TRANSIENT),
        (0xA7FF, OutcomeKind.TRANSIENT),
        (0xFE00, OutcomeKind.TRANSIENT),
        (0x0117, OutcomeKind.PERMANENT),
        (0x0122, OutcomeKind.PERMANENT),
        (0x0124, OutcomeKind.PERMANENT),
        (0x0211, OutcomeKind.PERMANENT),
        (0xA801, OutcomeKind.PERMANENT),
        (0xA900, OutcomeKind.PERMANENT),
        (0xA9FF, OutcomeKind.PERMANENT),
        (0xC000, OutcomeKind.PERMANENT),
        (0xC211, OutcomeKind.PERMANENT),
        (0xCFFF, OutcomeKind.PERMANENT),
        (0x1234, OutcomeKind.TRANSIENT),
        (0xFF00, OutcomeKind.TRANSIENT),
    ],
)
def test_kind_of_a_status(status: int, kind: OutcomeKind) -> None:
    assert classify_status(status)[0] is kind
    outcome = outcome_of_status("1.2", status)
    assert (outcome.kind, outcome.status) == (kind, status)
    assert f"{status:04X}H" in outcome.detail


@given(st.integers(0, 0xFFFF))
def test_only_success_duplicate_and_warnings_count_as_stored(status: int) -> None:
    kind, clause = classify_status(status)
    named = status in {0x0000, 0x0001, 0x0107, 0x0111, 0x0116}
    assert kind.stored == (named or 0xB000 <= status <= 0xBFFF)
    assert clause


def test_read_object_file(tmp_path: Path) -> None:
    path = write_sr(tmp_path)
    report = dcmread(path)
    assert ObjectFile.read(path) == ObjectFile(
        path, report.SOPClassUID, report.SOPInstanceUID, report.file_meta.TransferSyntaxUID
    )


def unreadable(path: Path) -> UnreadableFileError:
    with pytest.raises(UnreadableFileError) as caught:
        ObjectFile.read(path)
    return caught.value


def test_unreadable_files(tmp_path: Path) -> None:
    assert unreadable(tmp_path / "gone.dcm").kind is OutcomeKind.PERMANENT
    assert unreadable(tmp_path).kind is OutcomeKind.TRANSIENT  # EISDIR stands for every error of the disk
    (tmp_path / "text.dcm").write_text("no DICOM " * 100)
    assert unreadable(tmp_path / "text.dcm").outcome() == Outcome(
        "", OutcomeKind.PERMANENT, None, "the file is not DICOM"
    )
    (tmp_path / "short.dcm").write_bytes(write_sr(tmp_path).read_bytes()[:140])
    assert unreadable(tmp_path / "short.dcm").kind is OutcomeKind.PERMANENT


def test_file_with_a_hostile_uid_is_not_sent(tmp_path: Path) -> None:
    path = write_sr(tmp_path)
    uid = str(dcmread(path).file_meta.MediaStorageSOPInstanceUID)
    hostile = "../../../etc/passwd".ljust(len(uid), "x")
    path.write_bytes(path.read_bytes().replace(uid.encode(), hostile.encode()))
    assert "UID" in str(unreadable(path))


def test_fake_answers_by_script(tmp_path: Path) -> None:
    paths = write_ct(tmp_path, n_slices=5)
    uids = [str(dcmread(path).SOPInstanceUID) for path in paths]
    fake = FakeDestination("pacs", [0x0000, 0xA700, OutcomeKind.TRANSIENT, 0xB000])
    destination: Destination = fake
    kinds = [outcome.kind for outcome in destination.send(paths)]
    assert kinds == [
        OutcomeKind.STORED,
        OutcomeKind.TRANSIENT,
        OutcomeKind.TRANSIENT,
        OutcomeKind.WARNING_STORED,
        OutcomeKind.STORED,
    ]
    assert fake.attempts == uids
    assert fake.stored == {uids[n]: paths[n].read_bytes() for n in (0, 3, 4)}
    assert {outcome.kind for outcome in destination.send(paths)} == {OutcomeKind.STORED}


def test_fake_verifies_what_it_has(tmp_path: Path) -> None:
    paths = write_ct(tmp_path)
    objects = [reference(dcmread(path)) for path in paths]
    fake = FakeDestination()
    fake.send(paths)
    del fake.stored[objects[1].sop_instance_uid]
    assert list(fake.verify(objects).values()) == [True, False, True]
    assert set(FakeDestination(can_verify=False).verify(objects).values()) == {None}


def test_fake_that_does_not_answer(tmp_path: Path) -> None:
    paths = [*write_ct(tmp_path), tmp_path / "gone.dcm"]
    fake = FakeDestination(answers=False)
    assert not fake.echo().ok
    kinds = [outcome.kind for outcome in fake.send(paths)]
    assert kinds == [OutcomeKind.TRANSIENT] * 3 + [OutcomeKind.PERMANENT]
    assert not fake.stored


def test_clients_load_no_torch_and_no_inference() -> None:
    modules = "destinations", "dimse", "dicomweb", "peer", "tcia"
    code = "; ".join(f"import pacs_node.{name}" for name in modules)
    # of dicom_sr only who wrote a file, which names itself on the wire too
    code += "; import sys; print([name for name in sys.modules if name == 'torch'"
    code += " or name.startswith('inference.') and name != 'inference.uids'"
    code += " or name.startswith('dicom_sr.') and name != 'dicom_sr.part10'])"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert ran.stdout.strip() == "[]"
