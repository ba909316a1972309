"""A whole node whose disk is full: it refuses images, and all the rest goes on; with room all is as before.

What goes on at 0 bytes is what the ballast is for: the control has none, and must be caught. Where even the
ballast's room was taken, nothing can be recorded any more: then the node stays up, says so, and recovers.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from inference.phantom import write_phantom
from pacs_node import accounts
from pacs_node.accounts import HashCost, Passwords
from pacs_node.cli import main
from pacs_node.clock import utc_now
from pacs_node.config import Caller, DicomDestination
from pacs_node.config_template import render_settings
from pacs_node.db import AuditEvent, Delivery, Job
from pacs_node.db_accounts import Role
from pacs_node.destinations import Outcome
from pacs_node.dimse import send_files
from pacs_node.peer import ReceivingPeer
from pacs_node.states import DeliveryState, JobState
from tests.acceptance.node import Node, small_phantom
from tests.conftest import find_free_port
from tests.ct_factory import make_ct_series, write_series
from tests.faults.disks import mounted
from tests.faults.invariants import Seen, dataset_sha256, violations
from tests.faults.receiver import LONG

logger = logging.getLogger(__name__)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800 if LONG else 300)]

DISK_MB, RESERVE_MB = 500, 150
PASSWORD = "a password of one's own"
PATIENCE_S = 120.0
CYCLES = 4


@dataclass
class FullNode(Node):
    """A node whose storage is a disk of its own, and which tries again soon."""

    profile: str = "classical"
    ballast_mb: int = 64
    page_port: int = field(default_factory=find_free_port)

    def __post_init__(self) -> None:
        text = render_settings(
            callers=[Caller(ae_title="STORESCU", address="127.0.0.1")],
            destinations=list(self.destinations),
            overrides={
                "listener": {"port": self.port},
                "storage": {"reserve_mb": RESERVE_MB, "ballast_mb": self.ballast_mb},
                "pipeline": {"profile": self.profile},
                "completeness": {"settle_seconds": 1.0, "quiet_seconds": 3.0},
                "delivery": {"retry_first_seconds": 1.0, "retry_longest_seconds": 2.0},
                "web": {"port": self.page_port},
            },
        )
        self.config.write_text(text)

    def start(self) -> FullNode:
        """Start ``serve`` and wait until all of it is there."""
        super().start()
        self.until(self._answers, "the page answers", PATIENCE_S)
        return self

    def _answers(self) -> bool:
        with suppress(requests.ConnectionError):
            return (
                requests.get(f"http://127.0.0.1:{self.page_port}/health/live", timeout=30).status_code == 200
            )
        return False

    @property
    def log(self) -> str:
        """What it has said so far."""
        return (self.directory / "serve.log").read_text()

    @property
    def free(self) -> int:
        """Bytes that are free on its disk."""
        found = os.statvfs(self.storage)
        return found.f_bavail * found.f_frsize

    def parts(self) -> list[str]:
        """Process ids of its parts."""
        assert self.process is not None
        pid = self.process.pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@dataclass
class World:
    """A node, the PACS that sends and that which is to get the results, and somebody at the page."""

    node: FullNode
    peer: ReceivingPeer
    acknowledged: list[tuple[str, str]] = field(default_factory=list)

    @property
    def filler(self) -> Path:
        """What takes the room."""
        return self.node.storage / "filler"

    def fill(self, leaving: int = 0) -> None:
        """Take what is free now but so many bytes."""
        count = self.node.free - leaving
        with self.filler.open("ab", buffering=0) as file, suppress(OSError):
            while count > 0:
                count -= file.write(bytes(min(count, 1 << 20)))

    def fill_again_and_again(self) -> None:
        """Take all room, also that which the ballast gives back."""
        ballast = self.node.storage / "ballast"

        def is_full() -> bool:
            self.fill()
            return self.node.free == 0 and not ballast.exists()

        self.node.until(is_full, "0 bytes are free", PATIENCE_S)

    def make_room(self) -> None:
        self.filler.unlink()

    def send(self, files: list[Path]) -> tuple[Outcome, ...]:
        outcomes = send_files("127.0.0.1", self.node.port, "CTNODE", "STORESCU", files)
        for path, outcome in zip(files, outcomes, strict=True):
            if outcome.kind.stored:
                self.acknowledged.append((outcome.sop_instance_uid, dataset_sha256(path)))
        return outcomes

    def send_all(self, files: list[Path]) -> None:
        """Send until each object is taken, as a PACS does."""
        while rest := [
            path for path, one in zip(files, self.send(files), strict=True) if not one.kind.stored
        ]:
            files = rest

    def refuses(self, files: list[Path]) -> None:
        """Images are answered A700, and nothing of them is left."""
        assert {outcome.status for outcome in self.send(files[:3])} == {0xA700}
        assert list((self.node.storage / "incoming").iterdir()) == []

    def count(self, *conditions: object) -> int:
        """Deliveries with these properties."""
        query = select(func.count(Delivery.id)).where(*conditions)  # type: ignore[arg-type]
        found = self.node.ask(lambda session: session.scalar(query))
        assert isinstance(found, int)
        return found


class Page:
    """Somebody at the page of a node."""

    def __init__(self, node: FullNode) -> None:
        self._origin = f"http://127.0.0.1:{node.page_port}"
        self._browser = requests.Session()

    def log_in(self) -> int:
        """Log in; the status, 303 where it went well."""
        form = self._browser.get(f"{self._origin}/login", timeout=30)
        found = re.search(r'name="csrf" value="([^"]+)"', form.text)
        assert found is not None, form.text
        answer = self._browser.post(
            f"{self._origin}/login",
            {"csrf": found[1], "next": "/", "name": "anna", "password": PASSWORD},
            allow_redirects=False,
            timeout=60,
        )
        return answer.status_code

    def get(self, path: str) -> requests.Response:
        return self._browser.get(self._origin + path, timeout=60, allow_redirects=False)

    def shows_the_overview(self) -> None:
        """The overview says that images are refused; the health endpoints tell life from readiness."""
        seen = self.get("/")
        assert (seen.status_code, "images are refused" in seen.text) == (200, True)
        assert self.get("/health/live").json() == {"status": "live"}
        ready = self.get("/health/ready")
        assert (ready.status_code, ready.json()["checks"]["disk"]["ok"]) == (503, False)
        assert ready.json()["checks"]["database"] == {"ok": True}


@contextmanager
def world(tmp_path: Path, ballast_mb: int = 64) -> Iterator[World]:
    """A node on a small disk with one account; its destination is away."""
    directory, port = tmp_path / "node", find_free_port()
    directory.mkdir()
    destination = DicomDestination(name="pacs", host="127.0.0.1", port=port, ae_title="PEER")
    node = FullNode(directory, [destination], ballast_mb=ballast_mb)
    with mounted(node.storage, "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs"):
        made = World(node, ReceivingPeer(tmp_path / "peer", port=port))
        try:
            node.start()
            add_account(node)
            yield made
        finally:
            node.kill()


def add_account(node: FullNode) -> None:
    cheap = Passwords(HashCost(memory_kib=64, passes=1, lanes=1))
    hashed = accounts.hashed(cheap, "anna", PASSWORD, one_time=False)
    database = node.database()
    with database.write() as session:
        accounts.add(session, "anna", Role.ADMINISTRATOR, hashed, at=utc_now(), actor="test")
    database.dispose()


def what_stands_still(world: World) -> list[str]:
    """At 0 bytes free, with the destination back: what of the promise doesn't hold."""
    found = []
    page = Page(world.node)
    if (status := page.log_in()) != 303:
        found.append(f"log-in: {status}")
    elif (status := page.get("/studies").status_code) != 200:
        found.append(f"studies: {status}")
    failures = world.node.log.count("delivery step failed")

    def is_over() -> bool:
        undelivered = world.count(Delivery.state != DeliveryState.COMMITTED)
        return undelivered == 0 or world.node.log.count("delivery step failed") > failures + 3

    world.node.until(is_over, "results are delivered, or it is said that they are not", PATIENCE_S)
    if left := world.count(Delivery.state != DeliveryState.COMMITTED):
        found.append(f"{left} deliveries wait")
    return found


def doctor(node: FullNode) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["doctor", "--offline", "--config", str(node.config)])
    return done.exit_code, done.output


def recorded(session: Session) -> set[tuple[str, str]]:
    """Kind and state of each step of a delivery that stands in the audit record."""
    rows = session.scalars(select(AuditEvent).where(AuditEvent.event == "delivery"))
    return {(row.objects["kind"], row.objects["state"]) for row in rows}


def check_all(world: World, studies: int) -> None:
    """Everything has come to its end, once, and every invariant holds."""
    node = world.node
    node.wait_finished(studies, 4 * PATIENCE_S)
    assert node.stop() == 0
    there: dict[str, str | None] = dict.fromkeys(item.sop_instance_uid for item in world.peer.objects)
    seen = Seen(world.acknowledged, arrived={"pacs": there}, temporary_s=0, orphan_s=0, leftover_s=0)
    database = node.database()
    assert violations(database, node.storage, seen) == []
    with database.read() as session:
        rows = [(job.state, job.attempts, job.last_error) for job in session.scalars(select(Job))]
    database.dispose()
    # a full disk is no fault of a study's
    assert {(state, attempts) for state, attempts, _ in rows} == {(JobState.SUCCEEDED, 1)}, rows


def test_a_node_goes_on_at_0_bytes_and_starts_there(tmp_path: Path) -> None:
    first = write_phantom(small_phantom(4), tmp_path / "first")
    second = write_phantom(small_phantom(5), tmp_path / "second")
    with world(tmp_path) as here:
        node, page = here.node, Page(here.node)
        assert page.log_in() == 303
        here.send_all(first)
        node.until(lambda: here.count(Delivery.attempts > 0), "the destination is away", PATIENCE_S)
        parts = node.parts()

        here.fill(leaving=(RESERVE_MB - 1) << 20)
        here.refuses(second)
        page.shows_the_overview()
        here.fill()
        node.until(lambda: not (node.storage / "ballast").exists(), "the ballast is given up", PATIENCE_S)
        here.refuses(second)
        page.shows_the_overview()
        assert here.count(Delivery.state == DeliveryState.COMMITTED) == 0
        with here.peer:
            assert what_stands_still(here) == []
            assert {("seg", "committed"), ("sr", "committed")} <= node.ask(recorded)  # type: ignore[operator]
            assert len(here.peer.objects) == 2
            assert "nothing is analysed" in doctor(node)[1]

            without_even_the_ballast(here, page, second)
            assert node.parts() == parts, node.log[-3000:]
            resumes(here, first, second)
            assert node.parts() == parts, node.log[-3000:]
            started_on_a_full_disk(here, first)
            check_all(here, 2)


def without_even_the_ballast(here: World, page: Page, files: list[Path]) -> None:
    """Others took its room too: nothing can be recorded, and whoever is logged in still sees why."""
    here.fill_again_and_again()
    here.refuses(files)
    page.shows_the_overview()
    listed = page.get("/studies")
    assert (listed.status_code, "The disk is full" in listed.text) == (503, True)
    assert Page(here.node).log_in() == 503
    status, said = doctor(here.node)
    assert (status, "nothing can be written" in said, "free space there" in said) == (3, True, True), said
    assert "Traceback" not in said


def resumes(here: World, known: list[Path], new: list[Path]) -> None:
    """With room the next object is taken, here one that came before: the goal is 10 s, which is logged."""
    node, began = here.node, time.monotonic()
    here.make_room()
    node.until(lambda: here.send(known[:1])[0].status == 0, "an object is taken", PATIENCE_S)
    logger.info("an object is taken %.2f s after there was room", time.monotonic() - began)
    here.send_all(new)
    node.wait_finished(2, 4 * PATIENCE_S)
    logger.info("analysed, delivered and proved %.1f s after there was room", time.monotonic() - began)
    node.until((node.storage / "ballast").exists, "the ballast is back", PATIENCE_S)
    assert Page(node).get("/health/ready").status_code == 200


def started_on_a_full_disk(here: World, files: list[Path]) -> None:
    """The ballast is what it starts with."""
    node = here.node
    assert node.stop() == 0
    here.fill()
    assert node.free == 0
    node.start()
    here.refuses(files)
    page = Page(node)
    assert page.log_in() == 303
    page.shows_the_overview()
    here.make_room()
    here.send_all(files[:3])
    node.until((node.storage / "ballast").exists, "the ballast is back", PATIENCE_S)


@pytest.mark.skipif(not LONG, reason="make faults")
def test_without_a_ballast_it_is_noticed(tmp_path: Path) -> None:
    """The control; also such a node stays up, comes up, and delivers once there is room."""
    files = write_series(make_ct_series(4, matrix=16), tmp_path / "few")
    with world(tmp_path, ballast_mb=0) as here:
        node = here.node
        # too few slices: a report without an analysis
        here.send_all(files)
        node.until(lambda: here.count(Delivery.attempts > 0), "the destination is away", PATIENCE_S)
        here.fill_again_and_again()
        with here.peer:
            assert what_stands_still(here) == ["log-in: 503", "1 deliveries wait"]
            assert here.peer.objects == []
            node.kill()
            node.start()
            assert node.free == 0
            here.refuses(files)
            here.make_room()
            here.send_all(files)
            check_all(here, 1)
            # also what could be written down later only
            started = select(AuditEvent.actor).where(AuditEvent.event == "node started")
            assert node.ask(lambda session: Counter(session.scalars(started))) == Counter(
                dict.fromkeys(("listener", "worker", "delivery", "schedule", "web"), 2)
            )


@pytest.mark.skipif(not LONG, reason="make faults")
def test_filled_again_and_again_while_it_works(tmp_path: Path) -> None:
    """While an analysis runs, to 0 bytes with and without the ballast's room; no study pays for it."""
    with world(tmp_path) as here, here.peer:
        node = here.node
        parts = node.parts()
        for number in range(1, CYCLES + 1):
            files = write_phantom(small_phantom(10 + number), tmp_path / f"study{number}")
            here.send_all(files)
            node.until(lambda: node.ask(is_working), "it is analysed", PATIENCE_S)
            if number % 2:
                here.fill_again_and_again()
            else:
                here.fill()
            until_the_attempt_ends(node)
            here.refuses(files)
            here.make_room()
            node.wait_finished(number, 4 * PATIENCE_S)
            node.until((node.storage / "ballast").exists, "the ballast is back", PATIENCE_S)
        assert node.parts() == parts, node.log[-3000:]
        check_all(here, CYCLES)


def is_working(session: Session) -> bool:
    return session.scalar(select(Job.id).where(Job.state == JobState.RUNNING)) is not None


def until_the_attempt_ends(node: FullNode) -> None:
    """Wait for its end, or for that it waits for room to be written down."""
    said = node.log.count("the end of an attempt waits")

    def has_ended() -> bool:
        return node.log.count("the end of an attempt waits") > said or not node.ask(is_working)

    node.until(has_ended, "the attempt ends, or waits for room", 2 * PATIENCE_S)
