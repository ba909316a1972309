"""Every file that any process of a whole node touches while a study whose texts are paths goes through it."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import UID

from inference.phantom import write_phantom
from pacs_node.config import Caller, DicomDestination
from tests.acceptance.node import Node, small_phantom
from tests.faults.receiver import LONG
from tests.faults.test_paths import MARK, calls
from tests.peers import Storescp, storescp, storescu

logger = logging.getLogger(__name__)

#: in every text of a peer; in the name of no file of a library
WORD = "STRANGER"
CALLING, CALLED, DESTINATION = f"$({WORD})/../x", f"/tmp/{WORD}", f"../{WORD}"
TEXTS = {
    "LO": f"../../../../tmp/{WORD}",
    "SH": f"|touch {WORD}",
    "PN": f"/tmp/{WORD}^$({WORD})",
    "ST": f"file:///tmp/{WORD}",
    "LT": f"`touch {WORD}`;{WORD}",
}
#: without it there are no Hounsfield units
KEPT = {"RescaleType"}

#: what the node calls its own, below the storage
_RESULT = r"results(/\d{8}(/[0-9a-f]{12}(/[a-z]+(-\d+(-slices)?)?\.[a-z]+(\.part)?)?)?)?"
_STORED = r"incoming(/[0-9a-f]{32}\.part)?|instances(/[0-9a-f]{2}(/[0-9a-f]{64}(-[0-9a-f]+)?\.dcm)?)?"
_OWN = r"node\.db(-journal|-wal|-shm)?|ballast(\.part)?|[a-z]+\.lock|audit-heads\.jsonl"
OURS = re.compile(rf"/?({_STORED}|{_RESULT}|{_OWN})?")
#: what Python, its libraries and the system need: semaphores, files without a name, the fonts' cache
DECLARED = re.compile(
    rf"/dev/null|/dev/shm/sem\.(mp-)?\w+|{re.escape(tempfile.gettempdir())}/[a-z0-9_]{{8}}"
    rf"|{re.escape(str(Path.home()))}/\.(cache|config)(/matplotlib(/fontlist-v\d+\.json(\.matplotlib-lock)?)?)?"
)
#: this interpreter, for the node's own parts; and how ctypes looks for a library
PROGRAMS = re.compile(
    rf"{re.escape(sys.executable)}( -[A-Z])*"
    r"( -m pacs_node\.cli serve --config \S+| -m pacs_node\.reader_process"
    r"| -c from multiprocessing\.(spawn|resource_tracker) import .*)"
    r"|/sbin/ldconfig -p"
)


def violations(trace: str, storage: Path) -> list[str]:
    """What is changed elsewhere or under other names, is another program, or holds text of a peer."""
    found = [f"{line}: text of a peer" for line in trace.splitlines() if MARK in line or WORD in line.upper()]
    for call in calls(trace):
        if call.name.startswith("execve") and not PROGRAMS.fullmatch(" ".join(call.paths[1:])):
            found.append(f"{call.paths}: not a program of the node")
        if call.changes:
            found += [
                f"{call.name} {path}: not ours" for path in call.paths if not _may_change(path, storage)
            ]
    return found


def _may_change(path: str, storage: Path) -> bool:
    inside = path.startswith(str(storage)) and OURS.fullmatch(path.removeprefix(str(storage)))
    return bool(inside or DECLARED.fullmatch(path))


def make_hostile(path: Path, number: int) -> None:
    """Every UID and every text of an image, as far as it can still be stored."""
    ds = dcmread(path)
    for element in ds:
        if element.VR in TEXTS and element.keyword not in KEPT:
            element.value = TEXTS[element.VR]
    ds.SeriesDescription, ds.StudyDescription = f"{WORD}/$(touch {WORD})/..", f"/etc/{WORD}"
    ds.PatientID = ds.AccessionNumber = ds.StudyID = f"../../{WORD}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = (
        f"1.{arc}.{MARK}" for arc in (2, 4, 5)
    )
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID(f"1.3.{MARK}.{number}")
    ds.save_as(path)


def make_node(directory: Path, pacs: Storescp) -> Node:
    """A node that knows its callers and its destination by such names."""
    directory.mkdir()
    item = DicomDestination(
        name="pacs", host="127.0.0.1", port=pacs.port, ae_title=DESTINATION, verify="none"
    )
    caller = Caller(ae_title=CALLING, address="127.0.0.1", called_ae_title=CALLED)
    return Node(directory, [item], profile="classical", callers=[caller])


@contextmanager
def traced(node: Node, trace: Path) -> Iterator[None]:
    """Run ``serve`` and all that it starts under strace, from the first call to the last."""
    what = ("-y", "-s", "4096", "-e", "trace=%file,%process,bind", "-o", str(trace))
    with (node.directory / "serve.log").open("ab") as log:
        node.process = subprocess.Popen(
            ["strace", "-f", "--seccomp-bpf", "-qq", *what, *node.command("serve")],
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=node.directory,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
    try:
        node.until(node.listens, "the node listens", 240)
        yield
        os.killpg(node.process.pid, signal.SIGTERM)
        node.process.wait(60)
    finally:
        node.kill()


@pytest.mark.skipif(not LONG, reason="the long form")
@pytest.mark.peer("strace", "storescp", "storescu")
@pytest.mark.timeout(600)
def test_no_process_of_a_node_makes_a_path_of_what_a_peer_wrote(tmp_path: Path) -> None:
    files = write_phantom(small_phantom(1), tmp_path / "sent")
    for number, path in enumerate(files):
        make_hostile(path, number)
    with storescp(tmp_path / "pacs") as pacs:
        node = make_node(tmp_path / "node", pacs)
        with traced(node, tmp_path / "trace"):
            answer = storescu(node.port, *files, calling_ae=CALLING, called_ae=CALLED)
            assert answer.returncode == 0, answer.stderr
            node.until(lambda: len(pacs.files()) >= 2, "SEG and SR are at the PACS", 300)
    text = (tmp_path / "trace").read_text(errors="backslashreplace")
    seen = list(calls(text))
    changing, programs = [c for c in seen if c.changes], [c for c in seen if c.name.startswith("execve")]
    logger.info("%d calls name files, %d change some, %d programs", len(seen), len(changing), len(programs))
    written = " ".join(path for call in changing for path in call.paths)
    assert all(name in written for name in ("/instances/", "/seg.dcm", "/sr.dcm", "node.db-journal"))
    assert violations(text, node.storage) == []
    assert not list(Path("/tmp").glob(f"*{WORD}*")) + list(tmp_path.rglob(f"*{WORD}*"))


@pytest.mark.parametrize(
    "line",
    [
        f'12 openat(AT_FDCWD</s>, "/s/results/00000001/1.2.{MARK}/sr.dcm", O_WRONLY|O_CREAT, 0666) = 7',
        '12 openat(7</s/results>, "00000001/a/sr.dcm", O_WRONLY|O_CREAT, 0666) = 7',
        '12 rename("/s/results/00000001/0123456789ab/sr.dcm.part", "/s/instances/../../sr.dcm") = 0',
        '12 mkdirat(AT_FDCWD</s>, "results/../x", 0777 <unfinished ...>',
        '12 openat(AT_FDCWD</s>, "/tmp/harmless.txt", O_RDWR|O_CREAT, 0666) = 7',
        f'12 newfstatat(AT_FDCWD</s>, "/etc/{WORD}", 0x7ff, 0) = -1 ENOENT',
        f'12 execve("{sys.executable}", ["{sys.executable}", "-c", "print()"], 0x7f /* 9 vars */) = 0',
        '12 execve("/bin/sh", ["/bin/sh", "-c", "true"], 0x7f /* 9 vars */) = 0',
    ],
)
def test_such_a_call_of_a_node_would_be_noticed(line: str) -> None:
    """The control."""
    assert len(violations(line, Path("/s"))) >= 1


@pytest.mark.parametrize(
    "line",
    [
        '12 openat(AT_FDCWD</x>, "/s/results/00000001/0123456789ab/sr.dcm.part", O_WRONLY|O_CREAT, 0666) = 7',
        '12 openat(7</s/results>, "00000001", O_RDONLY|O_CLOEXEC) = 7',
        f'12 execve("python", ["{sys.executable}", "-P", "-m", "pacs_node.reader_process"], 0x7f) = 0',
    ],
)
def test_what_a_node_does_is_no_violation(line: str) -> None:
    assert violations(line, Path("/s")) == []
