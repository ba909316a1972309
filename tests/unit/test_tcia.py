"""Download from a loopback server of the form of NBIA's REST interface."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread

from pacs_node import tcia
from pacs_node.tcia import TciaError, download_series
from tests.nbia import IMAGES, LICENCE, SIZE, Nbia, hashes, named, offer, packed, size
from tests.serving import serving
from tests.small_objects import write_ct


@pytest.fixture
def nbia() -> Iterator[Nbia]:
    with serving(Nbia()) as running:
        yield running


@pytest.fixture
def images(tmp_path: Path) -> list[bytes]:
    return [path.read_bytes() for path in write_ct(tmp_path / "source", n_slices=4)]


@pytest.fixture
def uid(images: list[bytes]) -> str:
    return str(dcmread(io.BytesIO(images[0])).SeriesInstanceUID)


def refused(nbia: Nbia, uid: str, target: Path, match: str) -> None:
    """The download fails with this sentence and leaves nothing."""
    with pytest.raises(TciaError, match=match):
        download_series(uid, target, base_url=nbia.url)
    assert not target.exists() or not list(target.iterdir())


def test_download(nbia: Nbia, images: list[bytes], uid: str, tmp_path: Path) -> None:
    offer(nbia, images)
    told: list[tuple[int, int | None]] = []
    target = tmp_path / "new" / "folder"
    paths = download_series(uid, target, base_url=nbia.url, progress=lambda *call: told.append(call))
    assert paths == [target / f"{number:05d}.dcm" for number in range(1, 5)]
    assert [path.read_bytes() for path in paths] == images
    assert (target / tcia.LICENCE_NAME).read_bytes() == LICENCE
    assert sorted(target.iterdir()) == sorted([*paths, target / tcia.LICENCE_NAME])
    assert told[-1] == (len(nbia.answers[IMAGES][1]), sum(map(len, images)))
    assert nbia.calls == [(SIZE, uid), (IMAGES, uid)]


def test_server_without_hashes_and_sizes(nbia: Nbia, images: list[bytes], uid: str, tmp_path: Path) -> None:
    nbia.answers = {"getImage": (200, packed(named(images)))}
    told: list[tuple[int, int | None]] = []
    paths = download_series(
        uid, tmp_path / "new", base_url=nbia.url, progress=lambda *call: told.append(call)
    )
    assert len(paths) == 4
    assert told[-1][1] is None
    assert [call for call, _ in nbia.calls] == [SIZE, IMAGES, "getImage"]


@pytest.mark.parametrize("answer", [b"", b"not JSON", b"{}", b"[{}]", b"[7]", b'[{"ObjectCount": "x"}]'])
def test_size_that_can_not_be_read_is_no_reason_to_stop(
    answer: bytes, nbia: Nbia, images: list[bytes], uid: str, tmp_path: Path
) -> None:
    offer(nbia, images)
    nbia.answers[SIZE] = (200, answer)
    assert len(download_series(uid, tmp_path / "new", base_url=nbia.url)) == 4


@pytest.mark.parametrize(
    "wrong", ["", "1", "1.2.x", "../1.2", "1.2\n", "1..2", "1.2&NewFileNames=Yes", "1." + "2" * 64]
)
def test_wrong_uid_asks_nobody(wrong: str, nbia: Nbia, tmp_path: Path) -> None:
    refused(nbia, wrong, tmp_path / "new", "is not a Series Instance UID")
    assert not nbia.calls


@pytest.mark.parametrize("answer", [b"[]", b'[{"TotalSizeInBytes": "0.0", "ObjectCount": 0}]'])
def test_unknown_series_by_size(answer: bytes, nbia: Nbia, tmp_path: Path) -> None:
    nbia.answers = {SIZE: (200, answer)}
    refused(nbia, "1.2.3", tmp_path / "new", "knows no public series 1.2.3")


@pytest.mark.parametrize("answer", [b"", packed({}), packed({"md5hashes.csv": b"Filename,MD5Hash\n"})])
def test_unknown_series_by_empty_archive(answer: bytes, nbia: Nbia, tmp_path: Path) -> None:
    nbia.answers = {IMAGES: (200, answer)}
    refused(nbia, "1.2.3", tmp_path / "new", "knows no public series 1.2.3")


@pytest.mark.parametrize("status", [400, 401, 403])
def test_series_that_is_not_public(status: int, nbia: Nbia, tmp_path: Path) -> None:
    nbia.answers = {IMAGES: (status, b"The user has not been granted the access")}
    refused(nbia, "1.2.3", tmp_path / "new", f"unknown or not public .HTTP {status}")


@pytest.mark.parametrize("status", [500, 502, 503])
def test_server_in_trouble(status: int, nbia: Nbia, tmp_path: Path) -> None:
    nbia.answers = {SIZE: (status, b""), IMAGES: (status, b"")}
    refused(nbia, "1.2.3", tmp_path / "new", f"HTTP {status}")


def test_server_not_reached(free_port: int, tmp_path: Path) -> None:
    with pytest.raises(TciaError, match="not reached"):
        download_series("1.2.3", tmp_path, base_url=f"http://127.0.0.1:{free_port}/v1")


def test_server_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcia, "_TIMEOUT", (1.0, 0.3))
    with Nbia() as silent, pytest.raises(TciaError, match="in time"):  # listens, but nobody serves
        download_series("1.2.3", tmp_path, base_url=silent.url)


def test_download_that_breaks_off(nbia: Nbia, images: list[bytes], uid: str, tmp_path: Path) -> None:
    offer(nbia, images)
    nbia.cut = IMAGES
    refused(nbia, uid, tmp_path / "new", "broke off")


def test_missing_image_is_noticed(nbia: Nbia, images: list[bytes], uid: str, tmp_path: Path) -> None:
    offer(nbia, images)
    nbia.answers[SIZE] = size([*images, images[0]])
    refused(nbia, uid, tmp_path / "new", "has 4 images; the server announced 5")


def test_wrong_hash(nbia: Nbia, images: list[bytes], uid: str, tmp_path: Path) -> None:
    members = named(images)
    table = hashes(members)
    members["00000003.dcm"] = members["00000003.dcm"][:-1] + b"\x01"
    nbia.answers = {IMAGES: (200, packed({**members, "md5hashes.csv": table}))}
    refused(nbia, uid, tmp_path / "new", "MD5 hash of image 00003.dcm does not match")


def test_other_series_in_the_archive(nbia: Nbia, images: list[bytes], uid: str, tmp_path: Path) -> None:
    (stranger,) = write_ct(tmp_path / "other", seed="b", n_slices=1)
    offer(nbia, [*images, stranger.read_bytes()])
    refused(nbia, uid, tmp_path / "new", "00005.dcm of the archive is of another series")


@pytest.mark.filterwarnings("ignore:End of file reached:UserWarning")  # pydicom only warns
def test_damaged_image(nbia: Nbia, uid: str, tmp_path: Path) -> None:
    nbia.answers = {IMAGES: (200, packed({"1.dcm": bytes(128) + b"DICM" + b"\xff" * 64}))}
    refused(nbia, uid, tmp_path / "new", "00001.dcm of the archive")


def broken(archive: bytes) -> bytes:
    """The same zip with a changed byte in the first member."""
    middle = len(archive) // 8
    return archive[:middle] + bytes([archive[middle] ^ 0xFF]) + archive[middle + 1 :]


def test_not_a_zip(nbia: Nbia, images: list[bytes], uid: str, tmp_path: Path) -> None:
    whole = packed(named(images))
    for body in (b"<html>maintenance</html>", b"PK\x03\x04 nonsense", whole[:-30], broken(whole)):
        nbia.answers = {IMAGES: (200, body)}
        refused(nbia, uid, tmp_path / "new", "is not a readable zip")


def test_names_of_the_archive_are_not_used(nbia: Nbia, images: list[bytes], uid: str, tmp_path: Path) -> None:
    names = ["../../evil.dcm", "/etc/evil.dcm", "a/b/c.dcm", "..\\evil.dcm"]
    members = dict(zip(names, images, strict=True))
    extra = {"../LICENSE": LICENCE, "evil.sh": b"#!/bin/sh", "folder/": b""}
    nbia.answers = {IMAGES: (200, packed({**members, **extra, "md5hashes.csv": hashes(members)}))}
    target = tmp_path / "deep" / "new"
    paths = download_series(uid, target, base_url=nbia.url)
    assert [path.read_bytes() for path in paths] == images
    assert sorted(path.name for path in target.iterdir()) == sorted(
        [*(path.name for path in paths), tcia.LICENCE_NAME]
    )
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["new"]


def test_zip_bomb_is_not_unpacked(
    nbia: Nbia, uid: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcia, "MAX_UNPACKED_BYTES", 1_000_000)
    nbia.answers = {IMAGES: (200, packed({f"{n}.dcm": bytes(400_000) for n in range(3)}))}
    assert len(nbia.answers[IMAGES][1]) < 5_000
    refused(nbia, uid, tmp_path / "new", "unpacks to 3 files of 1200000 bytes: too large")


def test_member_that_lies_about_its_size(nbia: Nbia, images: list[bytes], uid: str, tmp_path: Path) -> None:
    whole = packed({"1.dcm": images[0] + bytes(3_000_000)})
    true = (len(images[0]) + 3_000_000).to_bytes(4, "little")
    assert whole.count(true) == 2  # local header and central directory
    nbia.answers = {IMAGES: (200, whole.replace(true, len(images[0]).to_bytes(4, "little")))}
    refused(nbia, uid, tmp_path / "new", "is not a readable zip")


def test_limits(
    nbia: Nbia, images: list[bytes], uid: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(nbia, images)
    with monkeypatch.context() as changed:
        changed.setattr(tcia, "MAX_DOWNLOAD_BYTES", 1000)
        refused(nbia, uid, tmp_path / "new", "more than 1000 bytes")
    with monkeypatch.context() as changed:
        changed.setattr(tcia, "MAX_FILES", 3)
        refused(nbia, uid, tmp_path / "new", "4 images .* too large")
        nbia.answers.pop(SIZE)
        refused(nbia, uid, tmp_path / "new", "6 files .* too large")
