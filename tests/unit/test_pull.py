"""Checkpoints come over a real connection from a loopback server, or from a folder."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from inference import download
from inference.catalogue import Checkpoint, find
from inference.download import BLOCK, Fault, PullError
from inference.pull import RECORD, Pulled, Trust, pull, read_record, take
from tests.model_server import ModelServer, Offer
from tests.serving import serving

CONTENT = bytes(range(256)) * (12 * 1024)  # 3 MiB: many blocks
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with serving(ModelServer()) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def checkpoint(server: ModelServer) -> Checkpoint:
    server.offers["/w.pt"] = Offer(CONTENT)
    return replace(
        find("sam2.1-hiera-tiny"), file="w.pt", url=f"{server.url}/w.pt", size=len(CONTENT), sha256=SHA256
    )


@pytest.fixture
def unknown(checkpoint: Checkpoint) -> Checkpoint:
    return replace(checkpoint, sha256=None, size=None, hash_source="no sha256 is known")


def get(checkpoint: Checkpoint, folder: Path, **more: Any) -> Pulled:
    return pull(checkpoint, folder, wait_seconds=0, **more)


def refused(checkpoint: Checkpoint, folder: Path, fault: Fault, **more: Any) -> str:
    with pytest.raises(PullError) as caught:
        get(checkpoint, folder, **more)
    assert caught.value.fault == fault
    assert not (folder / checkpoint.file).exists() or "is there already" in str(caught.value)
    return str(caught.value)


def names(folder: Path) -> set[str]:
    return {item.name for item in folder.iterdir()}


def part(folder: Path) -> int:
    return (folder / "w.pt.part").stat().st_size


def test_a_file_arrives_under_its_name_with_a_record(checkpoint: Checkpoint, folder: Path) -> None:
    told: list[tuple[int, int | None]] = []
    done = get(checkpoint, folder, progress=lambda so_far, total: told.append((so_far, total)))
    assert (folder / "w.pt").read_bytes() == CONTENT
    assert names(folder) == {"w.pt", RECORD}
    assert done == Pulled("w.pt", SHA256, len(CONTENT), checkpoint.url, Trust.CATALOGUE)
    assert read_record(folder) == {checkpoint.name: done}
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert len(told) > 1


def test_what_is_there_is_not_fetched_again(
    checkpoint: Checkpoint, folder: Path, server: ModelServer
) -> None:
    first = get(checkpoint, folder)
    assert get(checkpoint, folder) == first
    assert len(server.asked) == 1


def test_a_file_in_the_way_is_named_and_left_alone(
    checkpoint: Checkpoint, folder: Path, server: ModelServer
) -> None:
    folder.mkdir()
    (folder / "w.pt").write_bytes(b"precious")
    assert "is there already" in refused(checkpoint, folder, Fault.WRONG_FILE)
    assert (folder / "w.pt").read_bytes() == b"precious"
    assert server.asked == []


@pytest.mark.parametrize(
    "offer", [Offer(CONTENT), Offer(CONTENT, etag="", modified="Sat, 01 Jan 2000 00:00:00 GMT")]
)
def test_a_broken_download_goes_on_where_it_stopped(
    checkpoint: Checkpoint, folder: Path, server: ModelServer, offer: Offer
) -> None:
    server.offers["/w.pt"] = replace(offer, cuts=[HALF, BLOCK])
    get(checkpoint, folder)
    assert (folder / "w.pt").read_bytes() == CONTENT
    assert server.ranges == ["", f"bytes={HALF}-", f"bytes={HALF + BLOCK}-"]
    assert {condition for _, wanted, condition in server.asked if wanted} == {offer.etag or offer.modified}


def test_a_later_call_goes_on_too(checkpoint: Checkpoint, folder: Path, server: ModelServer) -> None:
    offer = server.offers["/w.pt"]
    offer.cuts = [HALF, 0, 0, 0, 0, 0]
    said = refused(checkpoint, folder, Fault.NETWORK)
    assert f"{HALF} bytes are kept" in said
    assert "goes on there" in said
    assert part(folder) == HALF
    offer.cuts = []
    get(checkpoint, folder)
    assert server.ranges[-1] == f"bytes={HALF}-"
    assert (folder / "w.pt").read_bytes() == CONTENT
    assert names(folder) == {"w.pt", RECORD}


def test_progress_resets_the_patience(checkpoint: Checkpoint, folder: Path, server: ModelServer) -> None:
    server.offers["/w.pt"].cuts = [4 * BLOCK] * 12
    get(checkpoint, folder)
    assert len(server.asked) == 12


def test_a_server_without_ranges_starts_over(
    checkpoint: Checkpoint, folder: Path, server: ModelServer
) -> None:
    server.offers["/w.pt"].ranges = False
    server.offers["/w.pt"].cuts = [HALF]
    get(checkpoint, folder)
    assert (folder / "w.pt").read_bytes() == CONTENT
    assert server.ranges == ["", f"bytes={HALF}-"]


def test_changed_content_is_not_put_behind_the_old_half(
    checkpoint: Checkpoint, folder: Path, server: ModelServer
) -> None:
    """The first half is of another file: If-Range makes the server send all of the new one."""
    server.offers["/w.pt"] = Offer(b"\xff" * len(CONTENT), etag='"old"', cuts=[HALF, 0, 0, 0, 0, 0])
    refused(checkpoint, folder, Fault.NETWORK)
    assert part(folder) == HALF
    server.offers["/w.pt"] = Offer(CONTENT, etag='"new"')
    get(checkpoint, folder)
    assert server.asked[-1][1:] == (f"bytes={HALF}-", '"old"')
    assert (folder / "w.pt").read_bytes() == CONTENT


@pytest.mark.parametrize("manner", ["another etag", "another range", "shorter file"])
def test_a_server_that_ignores_if_range_is_caught(
    checkpoint: Checkpoint, folder: Path, server: ModelServer, manner: str
) -> None:
    checkpoint = replace(checkpoint, size=None)
    server.offers["/w.pt"] = Offer(b"\xff" * len(CONTENT), etag='"old"', cuts=[HALF, 0, 0, 0, 0, 0])
    refused(checkpoint, folder, Fault.NETWORK)
    new = CONTENT[: HALF - 5] if manner == "shorter file" else CONTENT
    # answers ranges whatever the condition says
    server.offers["/w.pt"] = Offer(new, etag='"new"', modified='"old"', wrong_range=manner == "another range")
    if manner == "another etag":
        server.offers["/w.pt"].wrong_range = False
    get(replace(checkpoint, sha256=hashlib.sha256(new).hexdigest()), folder)
    assert (folder / "w.pt").read_bytes() == new
    assert server.ranges[-1] == ""


def test_a_wrong_file_is_kept_but_not_used(checkpoint: Checkpoint, folder: Path, server: ModelServer) -> None:
    other = CONTENT[::-1]
    server.offers["/w.pt"] = Offer(other)
    said = refused(checkpoint, folder, Fault.WRONG_FILE)
    assert hashlib.sha256(other).hexdigest() in said
    assert SHA256 in said
    assert "w.pt.part" in said
    assert (folder / "w.pt.part").read_bytes() == other
    assert read_record(folder) == {}
    server.offers["/w.pt"] = Offer(CONTENT)
    get(checkpoint, folder)
    assert server.ranges == ["", ""], "the next pull starts over"
    assert names(folder) == {"w.pt", RECORD}


def test_a_file_of_another_size_is_not_fetched_and_costs_nothing(
    checkpoint: Checkpoint, folder: Path, server: ModelServer
) -> None:
    server.offers["/w.pt"].cuts = [HALF, 0, 0, 0, 0, 0]
    refused(checkpoint, folder, Fault.NETWORK)
    server.offers["/w.pt"] = Offer(b"<html>please log in</html>", etag="")
    assert "offers 26 bytes" in refused(checkpoint, folder, Fault.WRONG_FILE)
    assert part(folder) == HALF


def test_a_whole_part_needs_no_server(checkpoint: Checkpoint, folder: Path, server: ModelServer) -> None:
    """The process ended between the last byte and the name."""
    server.offers["/w.pt"].cuts = [HALF, 0, 0, 0, 0, 0]
    refused(checkpoint, folder, Fault.NETWORK)
    (folder / "w.pt.part").write_bytes(CONTENT)
    count = len(server.asked)
    get(checkpoint, folder)
    assert len(server.asked) == count


def test_no_length_no_range_no_size(unknown: Checkpoint, folder: Path, server: ModelServer) -> None:
    server.offers["/w.pt"] = Offer(CONTENT, etag="", ranges=False, length=False)
    get(unknown, folder, sha256=SHA256)
    assert (folder / "w.pt").read_bytes() == CONTENT


def test_a_cut_without_length_is_noticed_by_size_or_hash(
    checkpoint: Checkpoint, folder: Path, server: ModelServer
) -> None:
    server.offers["/w.pt"] = Offer(CONTENT, length=False, cuts=[HALF])
    get(checkpoint, folder)
    assert server.ranges == ["", f"bytes={HALF}-"]
    (folder / "w.pt").unlink()
    server.offers["/w.pt"] = Offer(CONTENT, length=False, cuts=[HALF])
    assert "sha256" in refused(replace(checkpoint, size=None), folder, Fault.WRONG_FILE)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_refusals_are_told_at_once(
    checkpoint: Checkpoint, folder: Path, server: ModelServer, status: int
) -> None:
    server.offers["/w.pt"].statuses = [status]
    assert f"HTTP {status}" in refused(checkpoint, folder, Fault.NETWORK)
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again(checkpoint: Checkpoint, folder: Path, server: ModelServer) -> None:
    server.offers["/w.pt"].statuses = [503, 429, 500]
    get(checkpoint, folder)
    assert len(server.asked) == 4
    (folder / "w.pt").unlink()
    server.offers["/w.pt"].statuses = [503] * 9
    assert "HTTP 503" in refused(checkpoint, folder, Fault.NETWORK)
    assert len(server.asked) == 9


def test_nobody_listens(checkpoint: Checkpoint, folder: Path, free_port: int) -> None:
    said = refused(checkpoint, folder, Fault.NETWORK, url=f"http://127.0.0.1:{free_port}/w.pt")
    assert "not reached" in said


def test_redirects_are_followed_and_asked_anew_after_a_break(
    checkpoint: Checkpoint, folder: Path, server: ModelServer
) -> None:
    server.redirects["/first"] = f"{server.url}/w.pt"
    server.offers["/w.pt"].cuts = [HALF]
    get(checkpoint, folder, url=f"{server.url}/first")
    assert [item[0] for item in server.asked] == ["/first", "/w.pt"] * 2
    assert (folder / "w.pt").read_bytes() == CONTENT


def test_a_changed_encoding_is_refused(checkpoint: Checkpoint, folder: Path, server: ModelServer) -> None:
    server.offers["/w.pt"].encoding = "gzip"
    assert "changes the file" in refused(checkpoint, folder, Fault.NETWORK)


def test_away_from_https_is_not_followed(tmp_path: Path) -> None:
    hops = [SimpleNamespace(url=url, history=[], headers={}) for url in ("https://a", "http://b")]
    hops[1].history = hops[:1]
    (tmp_path / "p").touch()
    with requests.Session() as session:
        one: Any = download._Download(
            session, "https://a", tmp_path / "p", size=None, hash_known=True, progress=None
        )
    with pytest.raises(PullError, match="leads away from https"):
        one._check_way(hops[1])
    one._check_way(hops[0])


def test_the_proxy_of_the_environment_is_used(
    checkpoint: Checkpoint, folder: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.url)
    get(checkpoint, folder, url="http://models.invalid/w.pt")
    assert server.asked[0][0] == "http://models.invalid/w.pt"


def test_too_little_space_is_told_before(
    checkpoint: Checkpoint, folder: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(folder.parent)._replace(free=len(CONTENT))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert "MiB free" in refused(checkpoint, folder, Fault.DISK)
    with pytest.raises(PullError) as caught:
        take(checkpoint, _stick(folder.parent), folder)
    assert caught.value.fault == Fault.DISK


def test_too_little_space_is_noticed_on_the_way_where_nobody_told_the_size(
    unknown: Checkpoint, folder: Path, server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.offers["/w.pt"].length = False
    usage = shutil.disk_usage(folder.parent)
    free = iter(range(download.RESERVE_BYTES + 4 * BLOCK, 0, -BLOCK))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=next(free)))
    assert "MiB free" in refused(unknown, folder, Fault.DISK, sha256=SHA256)
    assert part(folder) == 4 * BLOCK


_FULL = """
import resource, sys
from pathlib import Path
from dataclasses import replace
from inference.catalogue import find
from inference.pull import pull
resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, resource.RLIM_INFINITY))
url, folder, size, sha256 = sys.argv[1:]
item = replace(find("medsam2"), file="w.pt", url=url, size=int(size), sha256=sha256)
try:
    pull(item, Path(folder))
except Exception as error:
    print(type(error).__name__, error.fault.value, error)
"""


def test_a_disk_that_fills_up_keeps_what_is_written(
    checkpoint: Checkpoint, folder: Path, server: ModelServer
) -> None:
    """The kernel refuses to write on, here by a limit of file size."""
    done = subprocess.run(
        [sys.executable, "-c", _FULL, checkpoint.url, str(folder), str(checkpoint.size), SHA256],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("PullError disk writing failed")
    assert "1500000 bytes are kept" in done.stdout
    get(checkpoint, folder)
    assert server.ranges == ["", "bytes=1500000-"]


def test_only_one_process_at_a_time(checkpoint: Checkpoint, folder: Path) -> None:
    folder.mkdir()
    with (folder / "w.pt.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another process" in refused(checkpoint, folder, Fault.BUSY)
    get(checkpoint, folder)


def test_a_folder_that_cant_be_written(checkpoint: Checkpoint, folder: Path) -> None:
    folder.mkdir()
    (folder / "w.pt.part").mkdir()
    assert "can't be written" in refused(checkpoint, folder, Fault.DISK)


# a hash that nobody published


def test_an_unknown_hash_is_asked_for(unknown: Checkpoint, folder: Path, server: ModelServer) -> None:
    said = refused(unknown, folder, Fault.HASH_UNKNOWN)
    assert "--sha256" in said
    assert "--trust-on-first-use" in said
    assert server.asked == []


def test_the_operators_hash(unknown: Checkpoint, folder: Path) -> None:
    assert "not a sha256" in refused(unknown, folder, Fault.HASH_UNKNOWN, sha256="abc")
    assert "sha256 is" in refused(unknown, folder, Fault.WRONG_FILE, sha256="0" * 64)
    assert get(unknown, folder, sha256=SHA256.upper()).trust == Trust.OPERATOR


def test_the_first_file_seen_binds_and_is_told(
    unknown: Checkpoint, folder: Path, server: ModelServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        done = get(unknown, folder, trust_first=True)
    assert done.trust == Trust.FIRST_SEEN
    assert SHA256 in caplog.text
    assert json.loads((folder / RECORD).read_text())[unknown.name]["trust"] == "first seen"
    (folder / "w.pt").unlink()
    server.offers["/w.pt"] = Offer(CONTENT[::-1], etag='"two"')
    assert SHA256 in refused(unknown, folder, Fault.WRONG_FILE, trust_first=True)
    assert "you say" in refused(unknown, folder, Fault.WRONG_FILE, sha256="0" * 64)
    assert get_again(unknown, folder, server).trust == Trust.FIRST_SEEN


def get_again(unknown: Checkpoint, folder: Path, server: ModelServer) -> Pulled:
    server.offers["/w.pt"] = Offer(CONTENT)
    return get(unknown, folder)


def test_halves_without_hash_and_validator_are_not_put_together(
    unknown: Checkpoint, folder: Path, server: ModelServer
) -> None:
    server.offers["/w.pt"] = Offer(CONTENT, etag='W/"weak"', cuts=[HALF, 0, 0, 0, 0, 0])
    refused(unknown, folder, Fault.NETWORK, trust_first=True)
    assert set(server.ranges) == {""}
    server.offers["/w.pt"].cuts = []
    get(unknown, folder, trust_first=True)
    assert set(server.ranges) == {""}


def test_the_catalogues_hash_is_not_overruled(
    checkpoint: Checkpoint, folder: Path, server: ModelServer
) -> None:
    assert "the catalogue says" in refused(checkpoint, folder, Fault.WRONG_FILE, sha256="0" * 64)
    server.offers["/w.pt"] = Offer(CONTENT[::-1])
    refused(checkpoint, folder, Fault.WRONG_FILE, trust_first=True)


def test_a_damaged_record_is_told(checkpoint: Checkpoint, folder: Path) -> None:
    folder.mkdir()
    (folder / RECORD).write_text('{"a": 1}')
    assert RECORD in refused(checkpoint, folder, Fault.WRONG_FILE)


# from a folder


def _stick(folder: Path, content: bytes = CONTENT) -> Path:
    stick = folder / "stick"
    stick.mkdir(exist_ok=True)
    (stick / "w.pt").write_bytes(content)
    return stick


@pytest.mark.parametrize("named", ["folder", "file"])
def test_from_a_folder(checkpoint: Checkpoint, folder: Path, server: ModelServer, named: str) -> None:
    stick = _stick(folder.parent)
    done = take(checkpoint, stick if named == "folder" else stick / "w.pt", folder)
    assert (folder / "w.pt").read_bytes() == CONTENT
    assert names(folder) == {"w.pt", RECORD}
    assert done.source == str(stick / "w.pt")
    assert server.asked == []


@pytest.mark.parametrize(
    ("content", "fault", "says"),
    [
        (CONTENT[:-1], Fault.WRONG_FILE, "bytes"),
        (CONTENT[::-1], Fault.WRONG_FILE, "the sha256 is"),
        (None, Fault.MISSING, "no file"),
    ],
)
def test_from_a_folder_with_something_else(
    checkpoint: Checkpoint, folder: Path, content: bytes | None, fault: Fault, says: str
) -> None:
    stick = _stick(folder.parent, content or b"")
    if content is None:
        (stick / "w.pt").unlink()
    with pytest.raises(PullError, match=says) as caught:
        take(checkpoint, stick, folder)
    assert caught.value.fault == fault
    assert not (folder / "w.pt").exists()


def test_from_a_folder_after_a_broken_download(
    checkpoint: Checkpoint, folder: Path, server: ModelServer
) -> None:
    server.offers["/w.pt"].cuts = [HALF, 0, 0, 0, 0, 0]
    refused(checkpoint, folder, Fault.NETWORK)
    take(checkpoint, _stick(folder.parent), folder)
    assert names(folder) == {"w.pt", RECORD}


def test_fetching_loads_no_torch() -> None:
    script = "import sys, inference.pull; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
