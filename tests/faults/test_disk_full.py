"""A disk that is full or fails: no success that isn't true, no half a file, and on again with room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from pacs_node import audit
from pacs_node.ballast import Ballast
from pacs_node.clock import utc_now
from pacs_node.db import Database, is_full, sqlite_url
from tests.ct_factory import make_ct_series
from tests.faults.receiver import LONG, Given, Ledger, injecting, make_storage, receiver, settings, store
from tests.small_node import encoded

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SIZE_MB = 24
REFUSED = {0xA700, 0x0110}


def instances(count: int, seed: str, matrix: int = 512) -> list[tuple[str, str, bytes]]:
    return [
        (str(ds.SOPClassUID), str(ds.SOPInstanceUID), encoded(ds)[0])
        for ds in make_ct_series(count, matrix=matrix, seed=seed)
    ]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small file system here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_a700_and_it_goes_on_with_room(small_disk: Path) -> None:
    storage = make_storage(small_disk / "storage")
    ledger, filler = Ledger(), small_disk / "filler"
    with receiver(Given(storage, settings(), reserve_bytes=4 << 20)) as running:
        sent = store(running.port, ledger, instances(60, "fill"))
        taken = sent.count(0)
        assert 0 < taken < 60
        assert sent == [0] * taken + [0xA700] * (60 - taken)
        filler.write_bytes(bytes(3 << 20))
        assert store(running.port, ledger, instances(3, "more")) == [0xA700] * 3
        assert running.leftovers() == []
        assert ledger.violations(storage) == []
        filler.unlink()
        for path in list((storage / "instances").rglob("*.dcm"))[:8]:
            path.write_bytes(b"")
        assert store(running.port, Ledger(), instances(2, "again")) == [0, 0]


def test_a_disk_without_any_room_at_all(small_disk: Path) -> None:
    """Others filled it beyond the reserve: the listener starts, refuses honestly, and recovers."""
    storage = make_storage(small_disk / "storage")
    filler, ledger = small_disk / "filler", Ledger()
    fill(filler)
    with receiver(Given(storage, settings(), reserve_bytes=1)) as running:
        assert store(running.port, ledger, instances(3, "none")) == [0xA700] * 3
        assert running.leftovers() == []
        filler.unlink()
        assert store(running.port, ledger, instances(3, "none")) == [0] * 3
    assert ledger.violations(storage) == []


def fill(filler: Path) -> None:
    """Take the last byte."""
    with filler.open("ab", buffering=0) as file:
        with suppress(OSError):
            while file.write(bytes(1 << 16)):
                pass
        with suppress(OSError):
            while file.write(b"x" * 64):
                pass


def note(database: Database) -> None:
    """What a delivery, a job and every other step writes."""
    with database.write() as session:
        audit.record(session, audit.Event.NODE_STARTED, at=utc_now(), actor="test", text="x" * 20_000)


def test_the_ballast_lets_the_rest_of_the_node_go_on(small_disk: Path) -> None:
    """At 0 bytes free: rows can't be written, with the ballast given up they can, also from a new start."""
    storage = make_storage(small_disk / "storage")
    ballast, filler = Ballast(storage, 4 << 20), small_disk / "filler"
    ballast.look()
    assert (storage / "ballast").stat().st_size == 4 << 20
    fill(filler)
    database = Database(sqlite_url(storage))
    with pytest.raises(OperationalError) as caught:
        note(database)
    assert is_full(caught.value)
    ballast.look()
    for _ in range(20):
        note(database)
    database.dispose()
    again = Database(sqlite_url(storage))
    again.upgrade()
    note(again)
    with receiver(Given(storage, settings(), reserve_bytes=8 << 20)) as running:
        assert store(running.port, Ledger(), instances(1, "none")) == [0xA700]
    # with room all is as before, by itself
    filler.unlink()
    ballast.look()
    assert (storage / "ballast").exists()
    assert again.check() == "ok"
    again.dispose()


@pytest.mark.peer("strace")
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("call", ["write", "fsync", "pwrite64", "link", "fdatasync"])
def test_a_call_that_fails_is_never_success(tmp_path: Path, call: str, error: str) -> None:
    """Each call of the receive path fails once; after an error of the disk the listener is another one."""
    storage, ledger = make_storage(tmp_path / "storage"), Ledger()
    ended = 0
    points = iter(range(1, 40) if LONG else range(1, 8, 3))
    while (point := next(points, None)) is not None:
        with receiver(Given(storage, settings())) as running:
            while point is not None:
                batch = instances(2, f"{call}{error}{point}", matrix=8)
                with injecting(running.pid, f"{call}:error={error}:when={point}"):
                    store(running.port, ledger, batch)
                    # a listener that lost something ends a moment later
                    running.process.join(0.3)
                # afterwards all is taken, also what was refused, or the listener has ended
                if store(running.port, ledger, batch) != [0, 0]:
                    running.process.join(60)
                    assert running.process.exitcode == 1
                    ended += 1
                    break
                assert running.leftovers() == []
                assert ledger.violations(storage) == []
                point = next(points, None)
    with receiver(Given(storage, settings())) as running:
        assert store(running.port, ledger, instances(2, "after", matrix=8)) == [0, 0]
        assert running.leftovers() == []
    assert ledger.violations(storage) == []
    # an error of the disk says that something is lost and not what, and SQLite calls any of fdatasync one
    assert (ended > 0) == (error == "EIO" or call == "fdatasync")
