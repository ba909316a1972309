"""Every file that a listener opens, links or removes while peers call themselves, and objects, by paths."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.uid import UID, CTImageStorage

from tests.ct_factory import make_ct_series
from tests.faults.receiver import Given, Receiver, make_storage, receiver, settings, tracing
from tests.raw_peer import RawPeer, association_request
from tests.small_node import encoded

logger = logging.getLogger(__name__)
pytestmark = [pytest.mark.peer("strace"), pytest.mark.timeout(300)]

#: in every text of a peer, so in every path that is made of one
MARK = "4711.4712.4713"
WORD = "CANARY"
#: what the node calls its own, below the storage
OURS = re.compile(
    r"(|incoming(/[0-9a-f]{32}\.part)?|instances(/[0-9a-f]{2}(/[0-9a-f]{64}(-[0-9a-f]+)?\.dcm)?)?"
    r"|node\.db(-journal|-wal|-shm)?|ballast|[a-z]+\.lock)"
)
_CALL = re.compile(r"\b(\w+)\((.*)")
#: with ``strace -y`` the folder that it is relative to stands before it
_PATH = re.compile(r'(?:<([^>"]*)>, )?"((?:[^"\\]|\\.)*)"')
_WRITES = ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TMPFILE", "O_TRUNC")
_CHANGING = {"link", "linkat", "rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat"}
_CHANGING |= {"symlink", "symlinkat", "rmdir", "chmod", "fchmodat", "truncate", "mknod", "mknodat", "chown"}
_EXECUTING = {"execve", "execveat"}


@dataclass(frozen=True)
class Call:
    """A system call that names files."""

    name: str
    paths: tuple[str, ...]
    changes: bool


def calls(trace: str) -> Iterator[Call]:
    """Read what strace wrote."""
    for line in trace.splitlines():
        found = _CALL.search(line)
        if found is not None and (paths := tuple(str(Path(*pair)) for pair in _PATH.findall(found[2]))):
            opens = found[1].startswith("open") and any(flag in line for flag in _WRITES)
            yield Call(found[1], paths, opens or found[1] in _CHANGING)


def violations(trace: str, storage: Path) -> list[str]:
    """What isn't within the storage and named by the node, or holds text of a peer, or is a program."""
    found = []
    for call in calls(trace):
        for path in call.paths:
            if MARK in path or WORD in path.upper() or ".." in Path(path).parts:
                found.append(f"{call.name} {path}: text of a peer, or a way up")
            elif call.changes and not _is_ours(path, storage):
                found.append(f"{call.name} {path}: not ours")
        if call.name in _EXECUTING:
            found.append(f"{call.name} {call.paths}: a program")
    return found


def _is_ours(path: str, storage: Path) -> bool:
    return path.startswith(str(storage)) and OURS.fullmatch(path[len(str(storage)) :].strip("/")) is not None


def texts() -> list[str]:
    """What a peer may hope to reach a file with."""
    return [
        f"../../../../tmp/{WORD}",
        f"/tmp/{WORD}",
        f"..\\..\\{WORD}",
        f"{WORD}\0.dcm",
        f"|touch {WORD}",
        f"$({WORD})",
        f"file:///tmp/{WORD}",
        f"%2e%2e%2f{WORD}",
        f"{WORD}\n{WORD}",
    ]


def objects() -> list[Dataset]:
    """Objects whose every identifying text is one of these; and honest ones, whose UIDs stand in no path."""
    made = []
    for number, text in enumerate(texts()):
        (ds,) = make_ct_series(1, matrix=8, seed=f"path {number}", study_uid=f"1.2.{MARK}.{number}")
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID(f"1.3.{MARK}.{number}")
        ds.SeriesInstanceUID = f"1.4.{MARK}.{number}"
        ds.PatientID = ds.PatientName = ds.AccessionNumber = text.replace("\0", "").replace("\\", "/")[:16]
        ds.StudyDescription = ds.SeriesDescription = text.replace("\0", "")[:60]
        made.append(ds)
    return made


def attack(running: Receiver) -> int:
    """Everything at once; how many honest objects were stored."""
    stored = 0
    with RawPeer(running.port).associate() as peer:
        for ds in objects():
            stored += peer.store(encoded(ds)[0], CTImageStorage, str(ds.SOPInstanceUID)) == 0
        # the UID that the request names, and that of the data set too
        for ds, text in zip(objects(), texts(), strict=True):
            peer.store(encoded(ds)[0], CTImageStorage, text)
            data = encoded(ds)[0].replace(str(ds.SOPInstanceUID).encode(), text.encode()[:16].ljust(18, b"/"))
            peer.store(data, CTImageStorage, text[:64])
        peer.release()
    for text in texts():
        for calling, called in ((text, "CTNODE"), ("PACS", text)):
            with RawPeer(running.port) as peer:
                request = bytearray(association_request())
                request[10:26] = called.encode()[:16].ljust(16)
                request[26:42] = calling.encode()[:16].ljust(16)
                peer.send(bytes(request))
                peer.read()
    return stored


def test_no_path_holds_what_a_peer_wrote(tmp_path: Path) -> None:
    storage = make_storage(tmp_path / "storage")
    trace = tmp_path / "trace"
    with receiver(Given(storage, settings())) as running:
        with tracing(running.pid, "-s", "4096", "-o", str(trace), "-e", "trace=file,process"):
            stored = attack(running)
        running.kill()
    text = trace.read_text(errors="backslashreplace")
    seen = list(calls(text))
    logger.info("%d calls that name files, %d of them change some", len(seen), sum(c.changes for c in seen))
    assert stored == len(texts())
    # each object that was stored was written, and got its name
    assert sum(call.changes and ".part" in call.paths[0] for call in seen) >= 2 * stored
    assert violations(text, storage) == []
    assert not list(Path("/tmp").glob(f"*{WORD}*"))


@pytest.mark.parametrize(
    "line",
    [
        f'12 openat(AT_FDCWD, "/s/instances/1.2.{MARK}.dcm", O_WRONLY|O_CREAT|O_CLOEXEC, 0666) = 7',
        f'12 rename("/s/incoming/{32 * "a"}.part", "/s/instances/../../{WORD}") = 0',
        f'12 link("/s/incoming/{32 * "a"}.part", "/s/instances/aa/other.dcm") = 0',
        '12 openat(AT_FDCWD, "/tmp/harmless", O_RDWR|O_CREAT, 0666) = 7',
        f'12 openat(AT_FDCWD, "/etc/{WORD}", O_RDONLY) = -1 ENOENT',
        '12 execve("/bin/sh", ["sh", "-c", "true"], 0x7f) = 0',
    ],
)
def test_such_a_path_would_be_noticed(line: str) -> None:
    """The control."""
    assert len(violations(line, Path("/s"))) == 1
