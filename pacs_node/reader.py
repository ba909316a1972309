"""Opens files that peers have sent: in a child that may die of them or, for tests and debugging, right here.

A file that crashes, stops or fills the memory of what reads it ends one child and makes its own series
unsuitable, with a reason. Nothing but a small JSON text and voxels come back from a child; headers that are
needed here too are read again when a child has shown that they do no harm: the same code, the same bytes.
"""

from __future__ import annotations

import atexit
import json
import logging
import math
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from inference.errors import ReasonCode, UnsuitableSeriesError
from inference.load import LoadedSeries, SeriesPlan, assemble, load_series, plan_series
from inference.select import SeriesVerdict
from pacs_node import reader_tasks, returned_files
from pacs_node.errors import NodeError
from pacs_node.reader_tasks import ImageFacts, image_facts

logger = logging.getLogger(__name__)

HEADER_SECONDS = 10.0
"""For one file, without its pixels."""
DECODE_SECONDS = 60.0
"""For one file with its pixels."""
TASK_SECONDS = 900.0
"""For all files of a question without their pixels; an analysis has its own limit."""

_START_SECONDS = 120.0
_LEAST_SECONDS = 0.001
_WITH_PIXELS = frozenset({"compare", "decode", "masks"})
_MAX_ANSWER = 16 << 20
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "PYTHONPATH", "LD_LIBRARY_PATH", "TMPDIR")


class ReaderFailedError(NodeError):
    """Files could not be read for a reason that isn't theirs."""


class SeriesReading(NamedTuple):
    """A verdict on a series, and whom its headers name."""

    verdict: SeriesVerdict
    patients: frozenset[str]
    manufacturers: frozenset[str]


class Reader(Protocol):
    """What the node asks of received files. Paths are those of one series."""

    def judge(self, series_uid: str, paths: Sequence[Path]) -> SeriesReading:
        """Judge a series by its headers."""

    def has_no_gaps(self, paths: Sequence[Path]) -> bool:
        """Whether its slices are complete as far as their positions tell."""

    def same_content(self, first: Path, second: Path) -> bool:
        """Whether two files hold the same object; False where they can't be compared."""

    def readable(self, paths: Sequence[Path]) -> list[Path]:
        """Those whose headers can be read."""

    def describe(self, paths: Sequence[Path]) -> list[ImageFacts | None]:
        """What each image says of itself and its patient; None for one that can't be read.

        Raises
        ------
        UnsuitableSeriesError
            Reading one of them ended the process that did it.
        """

    def returned(self, path: Path) -> dict[str, Any]:
        """What a SEG or a report says; see `pacs_node.returned_files.read_object`.

        Raises
        ------
        UnsuitableSeriesError
            It can't be read.
        """

    def masks(self, ours: Path, theirs: Path) -> dict[str, dict[str, float]]:
        """Hold the masks of two SEG against each other; see `pacs_node.returned_files.compare_masks`.

        Raises
        ------
        UnsuitableSeriesError
            They can't be compared.
        """

    def load(self, paths: Sequence[Path]) -> LoadedSeries:
        """Load a series.

        Raises
        ------
        UnsuitableSeriesError
            See `inference.load.load_series`.
        """


class OpenReader:
    """Reads in this process: for tests, the command line and debugging."""

    def judge(self, series_uid: str, paths: Sequence[Path]) -> SeriesReading:
        """Judge a series by its headers."""
        return _reading(reader_tasks.judge(paths, _nothing, series_uid=series_uid))

    def has_no_gaps(self, paths: Sequence[Path]) -> bool:
        """Whether its slices are complete as far as their positions tell."""
        return reader_tasks.gaps(paths, _nothing)

    def same_content(self, first: Path, second: Path) -> bool:
        """Whether two files hold the same object."""
        return reader_tasks.compare((first, second), _nothing)

    def readable(self, paths: Sequence[Path]) -> list[Path]:
        """Those whose headers can be read."""
        return _chosen(paths, reader_tasks.screen(paths, _nothing))

    def describe(self, paths: Sequence[Path]) -> list[ImageFacts | None]:
        """What each image says of itself and its patient."""
        return image_facts(reader_tasks.describe(paths, _nothing))

    def returned(self, path: Path) -> dict[str, Any]:
        """What a SEG or a report says."""
        return returned_files.read_object((path,), _nothing)

    def masks(self, ours: Path, theirs: Path) -> dict[str, dict[str, float]]:
        """Hold the masks of two SEG against each other."""
        return returned_files.compare_masks((ours, theirs), _nothing)

    def load(self, paths: Sequence[Path]) -> LoadedSeries:
        """Load a series."""
        return load_series(paths)


class ConfinedReader:
    """Reads in a child for each task, with limits; see `pacs_node.reader_process`.

    Parameters
    ----------
    header_seconds, decode_seconds
        For one file; a child that takes longer is killed.
    task_seconds
        For all files of a question without their pixels, however many and however slow each is.
    """

    program: tuple[str, ...] = ("-m", "pacs_node.reader_process")

    def __init__(
        self,
        header_seconds: float = HEADER_SECONDS,
        decode_seconds: float = DECODE_SECONDS,
        task_seconds: float = TASK_SECONDS,
    ) -> None:
        self._header_seconds = header_seconds
        self._decode_seconds = decode_seconds
        self._task_seconds = task_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._lock = threading.Lock()

    def judge(self, series_uid: str, paths: Sequence[Path]) -> SeriesReading:
        """Judge a series by its headers; what reading them ends is unsuitable."""
        try:
            return _reading(self._ask("judge", paths, series_uid=series_uid))
        except UnsuitableSeriesError as error:
            verdict = SeriesVerdict(series_uid, suitable=False, code=error.code, sentence=error.sentence)
            return SeriesReading(verdict, frozenset(), frozenset())

    def has_no_gaps(self, paths: Sequence[Path]) -> bool:
        """Whether its slices are complete as far as their positions tell."""
        try:
            return self._ask("gaps", paths) is True
        except UnsuitableSeriesError:
            return False

    def same_content(self, first: Path, second: Path) -> bool:
        """Whether two files hold the same object."""
        try:
            return self._ask("compare", (first, second)) is True
        except UnsuitableSeriesError:
            return False

    def readable(self, paths: Sequence[Path]) -> list[Path]:
        """Those whose headers can be read; one that ends its child isn't, and the rest are asked again."""
        found: list[Path] = []
        pieces, until = [list(paths)], time.monotonic() + self._task_seconds
        while pieces:
            rest = pieces.pop()
            try:
                found += _chosen(rest, self._ask("screen", rest, until=until))
            except _EndedError as error:
                if time.monotonic() >= until:
                    raise
                # those before it were read; their own answers were lost with the child
                pieces += [piece for piece in (rest[error.done + 1 :], rest[: error.done]) if piece]
        return found

    def describe(self, paths: Sequence[Path]) -> list[ImageFacts | None]:
        """What each image says of itself and its patient."""
        return image_facts(self._ask("describe", paths))

    def returned(self, path: Path) -> dict[str, Any]:
        """What a SEG or a report says."""
        found: dict[str, Any] = self._ask("returned", (path,))
        return found

    def masks(self, ours: Path, theirs: Path) -> dict[str, dict[str, float]]:
        """Hold the masks of two SEG against each other."""
        found: dict[str, dict[str, float]] = self._ask("masks", (ours, theirs))
        return found

    def load(self, paths: Sequence[Path]) -> LoadedSeries:
        """Load a series; its pixels are decoded in the child."""
        voxels = os.memfd_create("voxels")
        try:
            kind = self._ask("decode", paths, voxels=voxels)
            plan = plan_series(paths)
            return assemble(plan, _mapped(voxels, plan, kind))
        finally:
            os.close(voxels)

    def close(self) -> None:
        """End the process that makes the children."""
        with self._lock:
            self._end()

    def _ask(
        self,
        name: str,
        paths: Sequence[Path],
        *,
        voxels: int | None = None,
        until: float = math.inf,
        **options: str,
    ) -> Any:
        task = {"name": name, "paths": [str(path) for path in paths], "options": options}
        with self._lock, _memory_file(json.dumps(task).encode()) as request, _memory_file() as answer:
            socket.send_fds(self._ready(), [b"?"], [request, answer, request if voxels is None else voxels])
            status, done = self._wait(name, len(paths), until)
            if status:
                raise _ended(status, done, len(paths))
            said = _read_answer(answer)
        if "refusal" in said:
            code, sentence = said["refusal"]
            raise UnsuitableSeriesError(ReasonCode(code), str(sentence)[:2000])
        if "failed" in said:
            raise ReaderFailedError(f"reading files failed ({str(said['failed'])[:200]})")
        if "ok" not in said:
            raise UnsuitableSeriesError(
                ReasonCode.DECODE, "Reading the images takes more memory than there is for it."
            )
        return said["ok"]

    def _wait(self, name: str, files: int, until: float) -> tuple[int, int]:
        """Wait for the child's end, till `until`; its status, and how many files it was through with."""
        steps = -1
        while True:
            seconds = self._seconds(name, steps, files)
            left = math.inf if steps < 0 else max(until - time.monotonic(), _LEAST_SECONDS)
            try:
                message = self._hear(min(seconds, left))
            except TimeoutError:
                self._end()
                if steps < 0:
                    raise ReaderFailedError("the process that reads files doesn't answer") from None
                what = f"Reading {_which(steps, files)} took more than {seconds:g} s."
                if left < seconds:
                    what = f"Reading {files} images took more than {self._task_seconds:g} s."
                raise _EndedError(what, steps % max(files, 1)) from None
            if not message:
                self._end()
                raise ReaderFailedError("the process that reads files has ended")
            if message != b".":
                return int(message), steps
            if steps < 0 and name not in _WITH_PIXELS:
                until = min(until, time.monotonic() + self._task_seconds)
            steps += 1

    def _seconds(self, name: str, steps: int, files: int) -> float:
        """For the next step: the child's start, then headers, then pixels."""
        if steps < 0:
            return _START_SECONDS
        pixels = name in _WITH_PIXELS and (name != "decode" or steps >= files)
        return self._decode_seconds if pixels else self._header_seconds

    def _hear(self, seconds: float) -> bytes:
        channel = self._ready()
        channel.settimeout(seconds)
        try:
            return channel.recv(16)
        except ConnectionResetError:
            return b""

    def _ready(self) -> socket.socket:
        if self._channel is not None and self._process is not None and self._process.poll() is None:
            return self._channel
        self._end()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - this program itself
                [sys.executable, "-P", *self.program],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
            )
        self._channel = ours
        return ours

    def _end(self) -> None:
        """Kill the process and its child: its session is its own."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None


@cache
def confined_reader() -> ConfinedReader:
    """Return the one of this process."""
    reader = ConfinedReader()
    atexit.register(reader.close)
    return reader


class _EndedError(UnsuitableSeriesError):
    """The files have ended the child that read them.

    Parameters
    ----------
    done
        How many were read before.
    """

    def __init__(self, sentence: str, done: int) -> None:
        super().__init__(ReasonCode.DECODE, sentence)
        self.done = done


def _ended(status: int, steps: int, files: int) -> Exception:
    """What a child's end means: SIGKILL comes from outside, and an exit status from a fault of ours."""
    name = signal.Signals(-status).name if status < 0 else f"status {status}"
    logger.error("a child that read files has ended", extra={"status": name, "after": steps})
    if status > 0 or -status == signal.SIGKILL:
        return ReaderFailedError(f"the process that read files has ended ({name})")
    return _EndedError(
        f"Reading {_which(steps, files)} ended the process that did it ({name}).", steps % files
    )


def _which(steps: int, files: int) -> str:
    return f"image {steps % files + 1} of {files}" if files else "the images"


def _nothing() -> None:
    """Nobody waits for a sign of progress in the same process."""


def _chosen(paths: Sequence[Path], readable: Sequence[bool]) -> list[Path]:
    return [path for path, good in zip(paths, readable, strict=True) if good]


def _reading(said: dict[str, Any]) -> SeriesReading:
    verdict = dict(said["verdict"])
    code = verdict.pop("code")
    verdict["sentence"] = str(verdict["sentence"])[:2000]
    verdict["score"] = tuple(verdict["score"])
    return SeriesReading(
        SeriesVerdict(**verdict, code=None if code is None else ReasonCode(code)),
        frozenset(said["patients"]),
        frozenset(said["manufacturers"]),
    )


@contextmanager
def _memory_file(content: bytes = b"") -> Iterator[int]:
    descriptor = os.memfd_create("task")
    try:
        os.write(descriptor, content)
        yield descriptor
    finally:
        os.close(descriptor)


def _read_answer(answer: int) -> dict[str, Any]:
    size = os.fstat(answer).st_size
    if size > _MAX_ANSWER:
        raise ReaderFailedError("an answer that is too long")
    said = json.loads(os.pread(answer, size, 0))
    if not isinstance(said, dict):
        raise ReaderFailedError("an answer that is none")
    return said


def _mapped(voxels: int, plan: SeriesPlan, kind: str) -> np.ndarray[Any, np.dtype[Any]]:
    """The voxels that a child has written; it has ended, so nobody changes them any more."""
    if kind != plan.dtype.str or os.fstat(voxels).st_size != plan.nbytes:
        raise ReaderFailedError("other voxels than the headers say")
    memory = mmap.mmap(voxels, plan.nbytes, access=mmap.ACCESS_COPY)
    return np.frombuffer(memory, plan.dtype).reshape(plan.grid.shape)
