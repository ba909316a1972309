"""Files are read in a child that may die of them: what it may do, and what its end means."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.errors import ReasonCode, UnsuitableSeriesError
from pacs_node.engines import ProcessEngine
from pacs_node.reader import ConfinedReader, OpenReader, ReaderFailedError
from tests.ct_factory import make_ct_series, write_series
from tests.small_node import SmallNode, chest

#: A reader process whose tasks do, for files of these names, what a file must not be able to do.
MISBEHAVING = """
import ctypes, os, resource, signal, socket, subprocess, sys, time
from pathlib import Path
from pacs_node import confinement, reader_process
from pacs_node.reader_tasks import TASKS

def refused(act):
    try:
        act()
    except OSError as error:
        return error.strerror
    return "allowed"

def probe(path):
    return {
        "inet": refused(socket.socket),
        "unix": refused(lambda: socket.socket(socket.AF_UNIX)),
        "program": refused(lambda: os.execv("/bin/true", ["true"])),
        "fork": refused(os.fork),
        "signal": refused(lambda: os.kill(os.getppid(), 0)),
        "write": refused(lambda: Path(path).write_bytes(b"")),
        "remove": refused(lambda: Path(path).unlink()),
        "make": refused(lambda: Path(path).with_suffix(".new").mkdir()),
        "read": refused(lambda: Path(path).read_bytes()),
        "held": confinement.held(),
        "memory": resource.getrlimit(resource.RLIMIT_AS),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "environment": sorted(os.environ),
    }

ACTS = {
    "crash": lambda path: ctypes.string_at(0),
    "abort": lambda path: os.abort(),
    "hang": lambda path: time.sleep(3600),
    "slow": lambda path: time.sleep(0.25),
    "memory": lambda path: bytearray(2 << 30),
    "exit": lambda path: os._exit(3),
    "killed": lambda path: signal.raise_signal(signal.SIGKILL),
    "fault": lambda path: 1 // 0,
    "probe": probe,
}

def wrapped(task):
    def do(paths, progress, **options):
        bad = [number for number, path in enumerate(paths) if path.stem in ACTS]
        if not bad:
            return task(paths, progress, **options)
        for _ in range(bad[0]):
            progress()
        if paths[bad[0]].stem == "slow":
            for path in paths:
                progress()
                ACTS["slow"](path)
        return ACTS[paths[bad[0]].stem](paths[bad[0]])
    return do

TASKS.update({name: wrapped(task) for name, task in TASKS.items()})
reader_process.main()
"""


class Misbehaving(ConfinedReader):
    program = ("-c", MISBEHAVING)


@pytest.fixture(scope="module")
def confined() -> Iterator[ConfinedReader]:
    reader = ConfinedReader()
    yield reader
    reader.close()


@pytest.fixture(scope="module")
def misbehaving() -> Iterator[ConfinedReader]:
    reader = Misbehaving(header_seconds=2, decode_seconds=2)
    yield reader
    reader.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_series(
        make_ct_series(52, matrix=32, pixel_spacing_mm=(10, 10), spacing_mm=3), tmp_path_factory.mktemp("ct")
    )


def bad(name: str, files: list[Path], tmp_path: Path, place: int = 1) -> list[Path]:
    """A few files of which one does what its name says."""
    wrong = tmp_path / f"{name}.dcm"
    wrong.write_bytes(files[0].read_bytes())
    return [*files[:place], wrong, *files[place:3]]


def test_both_readers_say_the_same(confined: ConfinedReader, files: list[Path], tmp_path: Path) -> None:
    open_reader = OpenReader()
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(b"no image")
    for given in (files, files[:4], [*files, broken]):
        assert confined.judge("1.2", given) == open_reader.judge("1.2", given)
        assert confined.has_no_gaps(given) == open_reader.has_no_gaps(given)
        assert confined.readable(given) == open_reader.readable(given)
    assert confined.same_content(files[0], files[0]) is open_reader.same_content(files[0], files[0]) is True
    assert confined.same_content(files[0], files[1]) is open_reader.same_content(files[0], files[1]) is False
    one, other = confined.load(files), open_reader.load(files)
    np.testing.assert_array_equal(one.volume.array, other.volume.array)
    assert one.headers == other.headers
    assert one.volume.frames == other.volume.frames
    with pytest.raises(UnsuitableSeriesError, match="isn't a DICOM file"):
        confined.load([*files, broken])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("crash", r"Reading image 2 of 4 ended the process that did it \(SIGSEGV\)"),
        ("abort", r"\(SIGABRT\)"),
        ("hang", r"Reading image 2 of 4 took more than 2 s"),
        ("memory", "takes more memory than there is for it"),
    ],
)
def test_a_file_that_harms_its_reader_is_unsuitable_and_the_next_is_read(
    misbehaving: ConfinedReader, files: list[Path], tmp_path: Path, name: str, words: str
) -> None:
    """The control too: a decoder that crashes is noticed."""
    wrong = bad(name, files, tmp_path)
    with pytest.raises(UnsuitableSeriesError, match=words) as caught:
        misbehaving.load(wrong)
    assert caught.value.code is ReasonCode.DECODE
    assert misbehaving.load(files).volume.array.shape == (52, 32, 32)


def test_what_is_not_the_files_fault_is_no_verdict(
    misbehaving: ConfinedReader, files: list[Path], tmp_path: Path
) -> None:
    for name, words in (
        ("exit", "status 1|status 3"),
        ("killed", "SIGKILL"),
        ("fault", "ZeroDivisionError, <string>"),
    ):
        with pytest.raises(ReaderFailedError, match=words):
            misbehaving.judge("1.2", bad(name, files, tmp_path))
    assert misbehaving.has_no_gaps(files)


def test_every_question_survives_a_crash(
    misbehaving: ConfinedReader, files: list[Path], tmp_path: Path
) -> None:
    wrong = bad("crash", files, tmp_path)
    verdict = misbehaving.judge("1.2", wrong).verdict
    assert (verdict.series_uid, verdict.suitable, verdict.code) == ("1.2", False, ReasonCode.DECODE)
    assert misbehaving.has_no_gaps(wrong) is False
    assert misbehaving.same_content(wrong[1], files[0]) is False
    assert misbehaving.readable(wrong) == files[:3]


def test_a_question_has_a_limit_however_many_files_it_has(files: list[Path], tmp_path: Path) -> None:
    """Each file is quick enough; forty of them aren't, and whoever asks next need not wait for them."""
    reader = Misbehaving(header_seconds=2, task_seconds=0.5)
    wrong = [*bad("slow", files, tmp_path), *files] * 10
    verdict = reader.judge("1.2", wrong).verdict
    assert (verdict.suitable, verdict.code) == (False, ReasonCode.DECODE)
    assert verdict.sentence == f"Reading {len(wrong)} images took more than 0.5 s."
    with pytest.raises(UnsuitableSeriesError, match=r"took more than 0\.5 s"):
        reader.readable(wrong)
    assert reader.has_no_gaps(files)
    reader.close()


def test_the_reader_process_is_replaced_when_it_dies(confined: ConfinedReader, files: list[Path]) -> None:
    assert confined.has_no_gaps(files)
    assert confined._process is not None
    os.kill(confined._process.pid, signal.SIGKILL)
    confined._process.wait()
    assert confined.has_no_gaps(files)


def test_nothing_is_left_when_whoever_asks_is_gone(files: list[Path], tmp_path: Path) -> None:
    """A child that hangs ends with the node."""
    reader = Misbehaving(header_seconds=60)
    channel = reader._ready()
    process = reader._process
    assert process is not None
    channel.close()
    assert process.wait(timeout=30) == 0
    reader.close()


def test_a_child_may_do_nothing_but_read(
    misbehaving: ConfinedReader, files: list[Path], tmp_path: Path
) -> None:
    path = bad("probe", files, tmp_path)[1]
    found = misbehaving._ask("screen", [path])
    denied = {"Operation not permitted", "Permission denied"}
    for act in ("inet", "unix", "program", "fork", "signal", "write", "remove", "make"):
        assert found[act] in denied, act
    assert found["read"] == "allowed"
    assert found["held"] == {"NoNewPrivs": "1", "Seccomp": "2"}
    assert found["memory"] == [1 << 30, 1 << 30]
    assert found["core"] == [0, 0]
    assert set(found["environment"]) <= {
        "HOME",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "LD_LIBRARY_PATH",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "PATH",
        "PYTHONPATH",
        "TMPDIR",
    }


def probe(model: Path, result: Path) -> dict[str, Any]:
    """What the process that analyses may do; runs in it."""
    import resource  # noqa: PLC0415 - in the child
    import socket  # noqa: PLC0415

    from pacs_node import confinement  # noqa: PLC0415

    def refused(act: Any) -> str:
        try:
            act()
        except OSError as error:
            return str(error.strerror)
        return "allowed"

    return {
        "inet": refused(socket.socket),
        "inet6": refused(lambda: socket.socket(socket.AF_INET6)),
        "change a model": refused(lambda: model.write_bytes(b"")),
        "remove a model": refused(model.unlink),
        "add a model": refused(lambda: model.with_name("new").write_bytes(b"")),
        "read a model": refused(model.read_bytes),
        "write a result": refused(lambda: (result / "seg.dcm").write_bytes(b"x")),
        "held": confinement.held(),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
    }


def test_the_process_that_analyses_has_no_network_and_changes_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, result, temporary = tmp_path / "model", tmp_path / "results", tmp_path / "temporary"
    result.mkdir()
    temporary.mkdir()
    # where it may write too
    monkeypatch.setenv("TMPDIR", str(temporary))
    model.write_bytes(b"weights")
    engine = ProcessEngine(writable=[result])
    found = engine.submit(probe, model, result).result(timeout=120)
    engine.kill()
    assert found == {
        "inet": "Operation not permitted",
        "inet6": "Operation not permitted",
        "change a model": "Permission denied",
        "remove a model": "Permission denied",
        "add a model": "Permission denied",
        "read a model": "allowed",
        "write a result": "allowed",
        "held": {"NoNewPrivs": "1", "Seccomp": "2"},
        "core": (0, 0),
    }


def test_a_study_that_crashes_its_reader_has_a_reason_and_the_next_one_is_queued(
    node: SmallNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Misbehaving()
    monkeypatch.setattr(node.intake, "_reader", reader)
    node.receive(*chest(seed="bad"))
    node.receive(*make_ct_series(52, matrix=8, pixel_spacing_mm=(40, 40), spacing_mm=3, seed="good"))
    crashed: list[str] = []
    real = node.intake._spool.absolute

    def absolute(path: str) -> Path:
        """One file of the first study goes by a name that the misbehaving reader knows."""
        if not crashed:
            crashed.append(path)
            (node.spool.directory / "crash.dcm").write_bytes(real(path).read_bytes())
        return node.spool.directory / "crash.dcm" if path == crashed[0] else real(path)

    monkeypatch.setattr(node.intake._spool, "absolute", absolute)
    node.quiet()
    reader.close()
    states = {str(reason) for _, reason in node.states().values()}
    assert states == {"DECODE", "None"}
    refusal, analysis = sorted(node.all_jobs(), key=lambda job: job.kind != "refusal")
    assert (refusal.kind, analysis.kind) == ("refusal", "analysis")
    assert "(SIGSEGV)" in str(refusal.reason)
