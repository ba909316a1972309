"""A whole node beside an Orthanc, and one fault after the other: at the end every promise holds.

``make soak`` runs it for half an hour; `PACS_NODE_SOAK_SECONDS` says how long, `PACS_NODE_SOAK_SEED` which
faults. The clock isn't moved here: that stands in the unit tests, with a clock of their own.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from inference.phantom import write_phantom
from pacs_node.association import Timeouts
from pacs_node.config import Caller, DicomDestination
from pacs_node.config_template import render_settings
from pacs_node.db import Delivery, Instance, Job
from pacs_node.dimse import DimseDestination
from pacs_node.jobs import NOT_ANALYSED
from pacs_node.states import JobState
from tests.acceptance.node import Node, small_phantom
from tests.conftest import find_free_port
from tests.ct_factory import make_ct_series, write_series
from tests.faults.disks import mounted
from tests.faults.invariants import Seen, dataset_sha256, violations
from tests.peers import Orthanc, orthanc
from tests.tcp_proxy import Fault, Line, Way

logger = logging.getLogger(__name__)

SECONDS = float(os.environ.get("PACS_NODE_SOAK_SECONDS", "0"))
SEED = int(os.environ.get("PACS_NODE_SOAK_SEED", "1"))
DISK_MB, RESERVE_MB = 900, 100
PAUSE_S = (1.0, 5.0)
#: one phantom that is analysed for so many small series that are only refused
SMALL_FOR_EACH_PHANTOM = 6
MOST_WAITING = 6
FINISH_S = 600

pytestmark = [
    pytest.mark.skipif(not SECONDS, reason="make soak"),
    pytest.mark.peer("orthanc"),
    pytest.mark.slow,
    pytest.mark.timeout(SECONDS + FINISH_S + 300),
]


class SoakNode(Node):
    """A node on a small disk which is patient with nobody."""

    def __post_init__(self) -> None:
        text = render_settings(
            callers=[Caller(ae_title="STORESCU", address="127.0.0.1")],
            destinations=list(self.destinations),
            overrides={
                "listener": {"port": self.port, "dimse_timeout_seconds": 5.0},
                "storage": {"reserve_mb": RESERVE_MB},
                "pipeline": {"profile": self.profile},
                "completeness": {"settle_seconds": 1.5, "quiet_seconds": 8.0},
                "delivery": {
                    "retry_first_seconds": 1.0,
                    "retry_longest_seconds": 10.0,
                    "timeout_seconds": 5.0,
                },
                "web": {"port": find_free_port()},
            },
        )
        self.config.write_text(text)


class Pacs:
    """Sends study after study, each until all of it was acknowledged; some of them again."""

    def __init__(self, directory: Path, port: int, seed: int, waiting: Callable[[], int]) -> None:
        self.acknowledged: list[tuple[str, str]] = []
        self.studies = 0
        self.refused = ""
        """What became of an object that was not taken, last."""
        self._directory = directory
        self._port = port
        self._waiting = waiting
        self._chance = random.Random(seed)
        self._over = threading.Event()
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self, node: Node) -> None:
        """Finish the study that is on its way, then send no more."""
        self._over.set()
        try:
            node.until(lambda: not self._thread.is_alive(), "the last study is taken", FINISH_S)
        finally:
            if self._thread.is_alive():
                logger.error("study %d is not taken: %s", self.studies, self.refused)
            self._given_up.set()
            self._thread.join()

    def _run(self) -> None:
        sent: list[list[Path]] = []
        while not self._over.is_set():
            files = self._study(self.studies)
            self._send(files)
            self.studies += 1
            sent.append(files)
            if self._chance.random() < 0.3:
                self._send(self._chance.choice(sent))
            self._over.wait(self._chance.uniform(0.5, 4))
            # the analysis of what was sent must come to an end some time
            while self._waiting() > MOST_WAITING and not self._over.wait(1):
                pass

    def _study(self, number: int) -> list[Path]:
        directory = self._directory / f"study{number}"
        if number % (SMALL_FOR_EACH_PHANTOM + 1) == 0:
            return write_phantom(small_phantom(number + 100), directory)
        return write_series(make_ct_series(20, matrix=32, seed=f"soak{number}"), directory)

    def _send(self, files: list[Path]) -> None:
        rest = {path.name: path for path in files}
        quick = Timeouts(connect=5, association=5, progress=15)
        peer = DimseDestination(
            "node", "127.0.0.1", self._port, "CTNODE", "STORESCU", timeouts=quick, verify="none"
        )
        while rest and not self._given_up.is_set():
            outcomes = peer.send(list(rest.values()))
            for path, outcome in zip(list(rest.values()), outcomes, strict=True):
                if outcome.kind.stored:
                    self.acknowledged.append((outcome.sop_instance_uid, dataset_sha256(path)))
                    del rest[path.name]
                else:
                    self.refused = f"{outcome}"
            time.sleep(0.5 if rest else 0)


class Chaos:
    """One fault after the other."""

    def __init__(self, node: Node, peer: Orthanc, inward: Line, outward: Line, disk: Path, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self._node = node
        self._peer = peer
        self._lines = (inward, outward)
        self._filler = disk / "filler"
        self._chance = random.Random(seed)

    def run(self, seconds: float) -> None:
        faults: list[Callable[[], None]] = [
            self.kill_a_part,
            self.kill_a_part,
            self.stop_a_part,
            self.kill_the_node,
            self.stop_the_peer,
            self.break_lines,
            self.break_lines,
            self.fill_the_disk,
        ]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            fault = self._chance.choice(faults)
            fault()
            self.done[fault.__name__] += 1
            time.sleep(self._chance.uniform(*PAUSE_S))

    def kill_a_part(self) -> None:
        self._signal(signal.SIGKILL)

    def stop_a_part(self) -> None:
        pid = self._signal(signal.SIGSTOP)
        time.sleep(self._chance.uniform(1, 12))
        if pid is not None:
            _send_signal(pid, signal.SIGCONT)

    def kill_the_node(self) -> None:
        self._node.kill()
        self._node.start()

    def stop_the_peer(self) -> None:
        _send_signal(self._peer.process.pid, signal.SIGSTOP)
        time.sleep(self._chance.uniform(1, 10))
        _send_signal(self._peer.process.pid, signal.SIGCONT)

    def break_lines(self) -> None:
        line = self._chance.choice(self._lines)
        for _ in range(self._chance.randint(1, 4)):
            way = self._chance.choice([Way.CUT, Way.RESET, Way.SILENCE, Way.HALF_OPEN])
            line.give(Fault(way, self._chance.randint(0, 300_000), answers=self._chance.random() < 0.3))

    def fill_the_disk(self) -> None:
        leaving = self._chance.choice([0, (RESERVE_MB << 20) // 2])
        with suppress(OSError), self._filler.open("wb", buffering=0) as file:
            free = os.statvfs(self._filler.parent)
            for _ in range((free.f_bavail * free.f_frsize - leaving) >> 20):
                file.write(bytes(1 << 20))
        time.sleep(self._chance.uniform(1, 8))
        self._filler.unlink(missing_ok=True)

    def _signal(self, number: int) -> int | None:
        parts = _parts(self._node)
        if not parts:
            return None
        pid = self._chance.choice(parts)
        _send_signal(pid, number)
        return pid


def _parts(node: Node) -> list[int]:
    """Processes of the node: its parts and what they started, but not the supervisor."""
    found: list[int] = []
    waiting = [node.process.pid] if node.process is not None else []
    while waiting:
        with suppress(OSError):
            pid = waiting.pop()
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            waiting += [int(child) for child in children]
            found += [int(child) for child in children]
    return found


def _send_signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


@contextmanager
def world(tmp_path: Path) -> Iterator[tuple[SoakNode, Orthanc, Line, Line, Path]]:
    with ExitStack() as stack:
        disk = stack.enter_context(
            mounted(tmp_path / "disk", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs")
        )
        (tmp_path / "orthanc").mkdir()
        peer = stack.enter_context(orthanc(tmp_path / "orthanc"))
        outward = stack.enter_context(Line(peer.dicom_port))
        destination = DicomDestination(
            name="pacs", host="127.0.0.1", port=outward.port, ae_title="ORTHANC", verify="c-find"
        )
        node = SoakNode(disk, [destination], profile="classical")
        inward = stack.enter_context(Line(node.port))
        stack.callback(node.kill)
        node.start()
        yield node, peer, inward, outward, disk


def _waiting(node: Node) -> int:
    """Jobs that are not at their end."""
    unfinished = select(func.count(Job.id)).where(Job.state.in_([JobState.QUEUED, JobState.RUNNING]))
    try:
        answer = node.ask(lambda session: session.scalar(unfinished))
    except OperationalError:
        # a full disk, or a database that is busy
        return 0
    return answer if isinstance(answer, int) else 0


def end_everything(node: Node, studies: int) -> int:
    """Wait for all results; a job whose three workers were killed is for an operator to requeue."""
    node.until(lambda: _waiting(node) == 0, "no job waits", FINISH_S)
    failed = node.ask(_failed)
    assert isinstance(failed, list)
    for study_uid in failed:
        subprocess.run([*node.command("requeue"), study_uid], check=True, capture_output=True, timeout=120)
    node.wait_finished(studies, FINISH_S)
    return len(failed)


def _failed(session: Session) -> list[str]:
    """Studies with a job that was given up because its workers died; no other failure is expected."""
    failed = select(Job).where(Job.state == JobState.FAILED)
    jobs = list(session.execute(failed).scalars())
    ends = [(job.id, job.outcome, job.reason_code, job.last_error) for job in jobs]
    # the report that says so, or not even that
    assert {outcome for _, outcome, _, _ in ends} <= {None, NOT_ANALYSED}, ends
    assert {code for _, _, code, _ in ends} <= {"SOFTWARE_FAILURE"}, ends
    return sorted({job.series.study.study_uid for job in jobs})


def _counts(session: Session) -> str:
    return ", ".join(
        f"{session.scalar(select(func.count()).select_from(table))} {table.__tablename__}"
        for table in (Instance, Job, Delivery)
    )


@pytest.fixture
def _few_words() -> Iterator[None]:
    """Not a line for each object of half an hour."""
    loggers = [logging.getLogger(name) for name in ("pynetdicom", "pacs_node")]
    for item in loggers:
        item.setLevel(logging.CRITICAL)
    yield
    for item in loggers:
        item.setLevel(logging.NOTSET)


@pytest.mark.usefixtures("_few_words")
def test_all_promises_hold_at_the_end(tmp_path: Path) -> None:
    with world(tmp_path) as (node, peer, inward, outward, disk):
        studies = tmp_path / "studies"
        studies.mkdir()
        pacs = Pacs(studies, inward.port, SEED, lambda: _waiting(node))
        chaos = Chaos(node, peer, inward, outward, disk, SEED)
        pacs.start()
        try:
            chaos.run(SECONDS)
        finally:
            pacs.stop(node)
        requeued = end_everything(node, pacs.studies)
        counts = node.ask(_counts)
        assert node.stop() == 0
        there = dict.fromkeys(item["SOPInstanceUID"] for item in peer.instances())
        database = node.database()
        seen = Seen(pacs.acknowledged, arrived={"pacs": there}, temporary_s=0, orphan_s=0)
        found = violations(database, node.storage, seen)
        database.dispose()
        logger.info("seed %d, %.0f s, faults: %s", SEED, SECONDS, dict(chaos.done))
        logger.info(
            "%d studies (%d requeued by hand), %s, %d objects at the PACS, %d violations",
            pacs.studies,
            requeued,
            counts,
            len(there),
            len(found),
        )
        assert found == []
