"""The spool: durable or not there at all, whatever the disk does, and no byte of a peer in a path."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from pacs_node.errors import OutOfSpaceError
from pacs_node.spool import FoundFile, Spool, StoredFile
from tests.ct_factory import make_ct_series
from tests.small_node import encoded

DATASET, SYNTAX = encoded(make_ct_series(1, matrix=16)[0])
NAME = re.compile(r"instances/[0-9a-f]{2}/[0-9a-f]{64}\.dcm")


def write(spool: Spool, dataset: bytes = DATASET, uid: str = "1.2.3") -> StoredFile:
    return spool.write(
        dataset, sop_class_uid=CTImageStorage, sop_instance_uid=uid, transfer_syntax_uid=SYNTAX
    )


def files(spool: Spool) -> list[Path]:
    return sorted(path for path in spool.directory.rglob("*") if path.is_file() and path.suffix != ".db")


class Call(NamedTuple):
    what: str
    path: str


@pytest.fixture
def calls(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Every fsync, link and rename, once the spool is open, with the path it was about, in order."""
    seen: list[Call] = []
    real_fsync, real_rename, real_link = os.fsync, Path.rename, os.link

    def fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        seen.append(Call("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))

    def rename(self: Path, target: Any) -> Path:
        seen.append(Call("rename", str(target)))
        return real_rename(self, target)

    def link(source: Any, target: Any) -> None:
        real_link(source, target)
        seen.append(Call("link", str(target)))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(Path, "rename", rename)
    return seen


def test_name_then_file_and_directory(spool: Spool, calls: list[Call]) -> None:
    """Both syncs come after the name, so both are needed for it; which of them ends first is open."""
    target = str(spool.absolute(write(spool).path))
    after = calls[calls.index(Call("link", target)) + 1 :]
    part = next(call.path for call in after if "incoming" in call.path)
    assert sorted(after) == sorted([Call("fsync", part), Call("fsync", str(Path(target).parent))])


def test_what_is_there_is_replaced_only_by_what_is_durable(spool: Spool, calls: list[Call]) -> None:
    """After a power cut a file may have its name and not its bytes."""
    target = spool.absolute(write(spool).path)
    content = target.read_bytes()
    target.write_bytes(b"")
    calls.clear()
    write(spool)
    assert target.read_bytes() == content
    assert [call.what for call in calls] == ["fsync", "rename", "fsync"]
    assert calls[1:] == [Call("rename", str(target)), Call("fsync", str(target.parent))]


def test_the_folder_of_the_file_is_durable_before_it(tmp_path: Path, calls: list[Call]) -> None:
    spool = Spool(tmp_path / "new" / "storage", reserve_bytes=1)
    target = spool.absolute(write(spool).path)
    named = calls.index(Call("link", str(target)))
    before = {call.path for call in calls[:named] if call.what == "fsync"}
    assert {str(target.parents[1]), str(spool.directory), str(spool.directory.parent)} <= before


def test_the_same_again_is_made_durable_too(spool: Spool, calls: list[Call]) -> None:
    """The first writer may have been killed between the name and its fsync."""
    first = write(spool)
    calls.clear()
    assert write(spool) == first
    assert Call("fsync", str(spool.absolute(first.path).parent)) in calls
    assert len(files(spool)) == 1


def test_what_is_written_is_a_dicom_file_with_these_bytes(spool: Spool) -> None:
    stored = write(spool, uid="1.2.840.99")
    content = spool.absolute(stored.path).read_bytes()
    assert content[:132] == bytes(128) + b"DICM"
    assert content.endswith(DATASET)
    assert stored.size == len(DATASET)
    ds = dcmread(BytesIO(content))
    assert ds.file_meta.MediaStorageSOPInstanceUID == "1.2.840.99"
    assert ds.file_meta.MediaStorageSOPClassUID == CTImageStorage
    assert ds.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert len(ds.PixelData) == 512


def test_a_file_says_what_it_is(spool: Spool) -> None:
    incoming = spool.begin(
        sop_class_uid=CTImageStorage, sop_instance_uid="1.2", transfer_syntax_uid=SYNTAX, source_ae="PACS"
    )
    incoming.write(memoryview(DATASET))
    stored = incoming.keep()
    incoming.discard()
    assert dcmread(spool.absolute(stored.path)).file_meta.SourceApplicationEntityTitle == "PACS"
    found = spool.find(stored.path, 100)
    assert found == FoundFile(stored, SYNTAX, "PACS", DATASET[:100])
    plain = write(spool, DATASET + b"\0\0")
    assert spool.find(plain.path, 1) == FoundFile(plain, SYNTAX, "", DATASET[:1])


@pytest.mark.parametrize("length", [0, 10, 140, 200, 500, -1])
def test_a_file_that_was_cut_is_found_out(spool: Spool, length: int) -> None:
    path = spool.absolute(write(spool).path)
    path.write_bytes(path.read_bytes()[:length])
    assert spool.find(str(path.relative_to(spool.directory)), 100) is None


def test_a_file_with_another_byte_is_found_out(spool: Spool) -> None:
    path = spool.absolute(write(spool).path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert spool.find(str(path.relative_to(spool.directory)), 100) is None


def test_the_same_bytes_are_one_file_other_bytes_another(spool: Spool) -> None:
    assert write(spool) == write(spool)
    assert write(spool).path != write(spool, DATASET + b"\0").path
    other = spool.write(
        DATASET, sop_class_uid=CTImageStorage, sop_instance_uid="1", transfer_syntax_uid="1.2.840.10008.1.2"
    )
    assert other.sha256 != write(spool).sha256
    assert len(files(spool)) == 3


def test_many_at_once_write_each_file_once(spool: Spool) -> None:
    contents = [DATASET + bytes([n % 5, 0]) for n in range(60)]
    with ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(lambda content: write(spool, content), contents))
    assert len({item.path for item in stored}) == 5 == len(files(spool))
    for item, content in zip(stored, contents, strict=True):
        assert spool.absolute(item.path).read_bytes().endswith(content)


def failing(error: int) -> Callable[..., Any]:
    def fail(*_args: Any, **_kwargs: Any) -> Any:
        raise OSError(error, os.strerror(error))

    return fail


@pytest.mark.parametrize("where", ["os.fsync", "os.link"])
@pytest.mark.parametrize("error", [errno.EIO, errno.EROFS])
def test_a_disk_error_leaves_no_partial_file(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, where: str, error: int
) -> None:
    monkeypatch.setattr(where, failing(error))
    with pytest.raises(OSError, match=os.strerror(error)):
        write(spool)
    monkeypatch.undo()
    assert files(spool) == []


@pytest.mark.parametrize("where", ["os.fsync", "os.link"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_meanwhile_is_out_of_space(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, where: str, error: int
) -> None:
    monkeypatch.setattr(where, failing(error))
    with pytest.raises(OutOfSpaceError):
        write(spool)
    monkeypatch.undo()
    assert files(spool) == []


def test_after_a_failed_sync_of_the_directory_the_same_again_does_not_pass(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output"):
            write(spool)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_no_partial_file(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def interrupt(_descriptor: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(error):
        write(spool)
    assert files(spool) == []


def test_below_the_reserve_nothing_is_written(tmp_path: Path) -> None:
    spool = Spool(tmp_path, reserve_bytes=shutil.disk_usage(tmp_path).free * 2)
    with pytest.raises(OutOfSpaceError, match="MiB free, reserve is"):
        write(spool)
    assert files(spool) == []


def test_the_size_of_the_object_counts(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(spool.directory)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    spool.check_space(999)
    with pytest.raises(OutOfSpaceError):
        spool.check_space(1000)


def test_sweep_removes_what_a_killed_process_left(spool: Spool) -> None:
    kept = write(spool)
    (spool.directory / "incoming" / "0123.part").write_bytes(b"half")
    assert spool.sweep() == 1
    assert files(spool) == [spool.absolute(kept.path)]
    assert spool.sweep() == 0


def test_remove_twice_is_fine(spool: Spool) -> None:
    stored = write(spool)
    spool.remove(stored.path)
    spool.remove(stored.path)
    assert files(spool) == []


def test_only_the_owner_may_look(spool: Spool) -> None:
    folder = spool.absolute(write(spool).path).parent
    for directory in (folder, folder.parent, spool.directory / "incoming"):
        assert directory.stat().st_mode & 0o077 == 0


@pytest.mark.filterwarnings("ignore:.*UI")
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    uid=st.text(st.characters(codec="ascii"), min_size=1, max_size=64),
    dataset=st.binary(max_size=64),
)
def test_no_byte_of_a_peer_in_a_path(spool: Spool, uid: str, dataset: bytes) -> None:
    try:
        stored = write(spool, dataset, uid)
    except (ValueError, AttributeError):
        # pydicom refuses it; the listener lets only valid UIDs come this far
        return
    assert NAME.fullmatch(stored.path)
    assert spool.absolute(stored.path).is_file()
    assert all(NAME.fullmatch(str(path.relative_to(spool.directory))) for path in files(spool))
