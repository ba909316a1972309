"""The doctor's questions, asked from the page: in a thread of their own, the last answers kept.

Nobody waits for a peer that doesn't answer: who asks waits for a short while and sees then what is there.
The answers are also written to a file beside the database, so that a restart doesn't lose them.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from pacs_node.clock import Clock, utc_now
from pacs_node.config import DestinationSettings, Settings
from pacs_node.delivery import make_destination
from pacs_node.doctor import examine
from pacs_node.doctor_findings import Finding, Level
from pacs_node.doctor_peers import check_destination
from pacs_node.doctor_queue import check_queue
from pacs_node.errors import ConfigurationError

logger = logging.getLogger(__name__)

FILE = "doctor.json"
NODE = "node"
"""The subject that is this machine; the others are ``echo NAME`` and ``doctor NAME`` of a destination."""

Look = Callable[[], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found about one subject.

    Parameters
    ----------
    began, seconds
        When, and how long it took; None while it goes on.
    whole
        Whether it came to its end; a fault of ours may break it off, the log says why.
    """

    subject: str
    began: datetime
    seconds: float | None = None
    whole: bool = False
    findings: tuple[Finding, ...] = ()

    @property
    def worst(self) -> Level:
        """The worst level found."""
        order = list(Level)
        return max((one.level for one in self.findings), key=order.index, default=Level.GOOD)


class Examinations:
    """Asks, and keeps the last answers.

    Parameters
    ----------
    directory
        Where they are kept; the storage directory.
    """

    def __init__(self, directory: Path, clock: Clock = utc_now) -> None:
        self._path = directory / FILE
        self._clock = clock
        self._lock = Lock()
        self._last = _read(self._path)
        self._running: dict[str, Examination] = {}

    def last(self, subject: str) -> Examination | None:
        """The last answers about a subject, those of one that goes on if there is one."""
        with self._lock:
            return self._running.get(subject) or self._last.get(subject)

    def ask(self, subject: str, look: Look, patience: float) -> bool:
        """Begin an examination and wait for its end, at most for a while.

        Parameters
        ----------
        look
            What finds out; runs in a thread of its own.
        patience
            Seconds.

        Returns
        -------
        bool
            False if one of this subject is going on already.
        """
        with self._lock:
            if subject in self._running:
                return False
            begun = self._running[subject] = Examination(subject, self._clock())
        thread = Thread(target=self._examine, args=(begun, look), name=f"examine {subject}", daemon=True)
        thread.start()
        thread.join(patience)
        return True

    def _examine(self, begun: Examination, look: Look) -> None:
        findings: list[Finding] = []
        started, whole = time.monotonic(), False
        try:
            findings.extend(look())
            whole = True
        finally:
            took = time.monotonic() - started
            done = Examination(begun.subject, begun.began, took, whole, tuple(findings))
            with self._lock:
                del self._running[begun.subject]
                self._last[begun.subject] = done
                self._write()

    def _write(self) -> None:
        rows = [asdict(one) | {"began": one.began.isoformat()} for one in self._last.values()]
        part = self._path.with_suffix(".part")
        try:
            part.write_text(json.dumps(rows), encoding="utf-8")
            part.replace(self._path)
        except OSError as error:
            # what was found stays in memory
            logger.warning("the doctor's findings can't be kept", extra={"error": error.strerror})


def _read(path: Path) -> dict[str, Examination]:
    """What a process before this one found; nothing where that can't be read."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {row["subject"]: _examination(row) for row in rows}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _examination(row: dict[str, Any]) -> Examination:
    findings = tuple(
        Finding(Level(one["level"]), str(one["about"]), str(one["sentence"]), str(one["todo"]))
        for one in row["findings"]
    )
    began = datetime.fromisoformat(row["began"])
    if began.tzinfo is None:
        raise ValueError("a time without its zone")
    return Examination(str(row["subject"]), began, float(row["seconds"]), bool(row["whole"]), findings)


def look_at_node(settings: Settings, now: datetime) -> Iterator[Finding]:
    """All that ``pacs-node doctor --offline`` looks at."""
    yield from examine(settings, now)
    yield from check_queue(settings, now)


def look_at_destination(item: DestinationSettings, settings: Settings, now: datetime) -> Iterator[Finding]:
    """What ``pacs-node doctor`` asks a destination: answers, SOP classes, transfer syntaxes, services."""
    yield from check_destination(item, settings, now)


def echo_destination(item: DestinationSettings, settings: Settings) -> Iterator[Finding]:
    """Whether a destination answers: C-ECHO, or a QIDO-RS question."""
    about = f"destination {item.name}"
    try:
        answer = make_destination(item, settings).echo()
    except ConfigurationError as error:
        yield Finding(Level.PROBLEM, about, str(error), "correct the file named here")
        return
    sentence = f"{answer.detail} ({answer.seconds * 1000:.0f} ms)"
    if answer.ok:
        yield Finding(Level.GOOD, about, sentence)
    else:
        todo = "ask the doctor for more; results wait and go by themselves when it answers"
        yield Finding(Level.PROBLEM, about, sentence, todo)
