"""Download one public series from TCIA over its NBIA REST interface.

Used calls (NBIA Search REST API): ``getSeriesSize`` and ``getImageWithMD5Hash``, whose answer is a zip with
the images, ``md5hashes.csv`` (columns Filename, MD5Hash) and often a ``LICENSE`` text; ``getImage``, the
same without hashes, where a server has only that. An unknown series is an empty body or a zip without
images, not an HTTP error.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import re
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import requests
from pydicom import dcmread
from pydicom.errors import InvalidDicomError

logger = logging.getLogger(__name__)

BASE_URL = "https://services.cancerimagingarchive.net/nbia-api/services/v1"

MAX_DOWNLOAD_BYTES = 2 * 2**30
MAX_UNPACKED_BYTES = 4 * 2**30
MAX_FILES = 5000
LICENCE_NAME = "LICENSE.txt"
"""What the archive says about the licence is kept beside the images: attribution is owed."""

Progress = Callable[[int, int | None], None]
"""Called with (bytes so far, bytes expected or None); expected is of the images, the zip may be smaller."""

_BLOCK = 256 * 1024
_TIMEOUT = (10.0, 60.0)
_SMALL = 1024 * 1024
_MD5_NAME = "md5hashes.csv"


class TciaError(Exception):
    """A series could not be downloaded; the text is a sentence for the user."""


def download_series(
    series_uid: str,
    directory: Path,
    *,
    base_url: str = BASE_URL,
    progress: Progress | None = None,
) -> list[Path]:
    """Download a public series.

    Parameters
    ----------
    series_uid
        Series Instance UID.
    directory
        Where the images go, as ``00001.dcm`` ...; made where it is missing. Nothing is left in it after an
        error.
    base_url
        The NBIA REST interface; another server of the same form in tests.
    progress
        Told about arriving bytes.

    Returns
    -------
    list of Path
        The images, in the order of the archive. Each belongs to the series, and matches its MD5 hash where
        the server gave one.

    Raises
    ------
    TciaError
        The UID is not one or the server does not know it; the server is not reached, refuses or breaks off;
        the answer is not a zip, is too large, or a hash or a series does not match.
    """
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)+", series_uid) or len(series_uid) > 64:
        raise TciaError(f"{series_uid[:80]!r} is not a Series Instance UID")
    directory.mkdir(parents=True, exist_ok=True)
    # Beside its final place: the move at the end can't fail half way for want of space.
    with tempfile.TemporaryDirectory(dir=directory, prefix=".download-") as temporary:
        work = Path(temporary)

        def tell(received: int) -> None:
            if progress is not None:
                progress(received, expected[0] if expected is not None else None)

        with requests.Session() as session:
            expected = _ask_size(session, base_url, series_uid)
            _fetch(session, base_url, series_uid, tell, work / "series.zip")
        names = _unpack(work / "series.zip", work, series_uid)
        if expected is not None and len(names) != expected[1]:
            raise TciaError(f"the archive has {len(names)} images; the server announced {expected[1]}")
        for name in names:
            (work / name).replace(directory / name)
        if (work / LICENCE_NAME).exists():
            (work / LICENCE_NAME).replace(directory / LICENCE_NAME)
    return [directory / name for name in names]


def _ask_size(session: requests.Session, base_url: str, series_uid: str) -> tuple[int, int] | None:
    """Return (bytes, images) of the series, None where the server does not say."""
    with _get(session, f"{base_url}/getSeriesSize", series_uid) as response:
        if response.status_code != HTTPStatus.OK:
            logger.info("the server does not tell the size of a series (HTTP %d)", response.status_code)
            return None
        text = b"".join(_blocks(response, _SMALL))
    if not text.strip():
        return None
    try:
        rows: Any = json.loads(text)
        row = {"TotalSizeInBytes": 0, "ObjectCount": 0} if rows == [] else rows[0]
        size = int(float(row["TotalSizeInBytes"])), int(row["ObjectCount"])
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    if size[1] == 0:
        raise TciaError(f"the server knows no public series {series_uid}")
    if size[0] > MAX_UNPACKED_BYTES or size[1] > MAX_FILES:
        raise TciaError(f"the series has {size[1]} images of {size[0] / 2**20:.0f} MiB: too large")
    return size


def _get(session: requests.Session, url: str, series_uid: str) -> requests.Response:
    """Open a streamed GET.

    Raises
    ------
    TciaError
        The server is not reached.
    """
    try:
        return session.get(url, params={"SeriesInstanceUID": series_uid}, timeout=_TIMEOUT, stream=True)
    except requests.Timeout:
        raise TciaError(f"the server does not answer in time: {url}") from None
    except requests.RequestException as error:
        raise TciaError(f"the server is not reached ({type(error).__name__}): {url}") from error


def _blocks(response: requests.Response, limit: int) -> Iterator[bytes]:
    """Yield the body as it arrives.

    Raises
    ------
    TciaError
        It breaks off, or has more than `limit` bytes.
    """
    total = 0
    try:
        for block in response.iter_content(_BLOCK):
            total += len(block)
            if total > limit:
                raise TciaError(f"the answer has more than {limit} bytes")
            yield block
    except requests.RequestException as error:
        raise TciaError(f"the download broke off after {total} bytes ({type(error).__name__})") from error


def _fetch(
    session: requests.Session, base_url: str, series_uid: str, progress: Callable[[int], None], path: Path
) -> None:
    """Stream the zip to `path`, with hashes where the server has them."""
    response = _get(session, f"{base_url}/getImageWithMD5Hash", series_uid)
    if response.status_code in (
        HTTPStatus.NOT_FOUND,
        HTTPStatus.METHOD_NOT_ALLOWED,
        HTTPStatus.NOT_IMPLEMENTED,
    ):
        response.close()
        response = _get(session, f"{base_url}/getImage", series_uid)
    with response, path.open("wb") as out:
        if response.status_code in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise TciaError(
                f"the series is unknown or not public (HTTP {response.status_code}): {series_uid}"
            )
        if response.status_code != HTTPStatus.OK:
            raise TciaError(f"the server answered with HTTP {response.status_code}; try again later")
        for block in _blocks(response, MAX_DOWNLOAD_BYTES):
            out.write(block)
            progress(out.tell())
    if path.stat().st_size == 0:
        raise TciaError(f"the server knows no public series {series_uid}")


def _unpack(archive_path: Path, directory: Path, series_uid: str) -> list[str]:
    """Write the images of the zip under names of our own; return the names.

    No name, path, link or mode of the archive is used. Files that are not DICOM are left out, but for
    the licence.
    """
    try:
        with zipfile.ZipFile(archive_path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            total = sum(member.file_size for member in members)
            if len(members) > MAX_FILES or total > MAX_UNPACKED_BYTES:
                raise TciaError(f"the archive unpacks to {len(members)} files of {total} bytes: too large")
            hashes = _read_hashes(archive)
            names: list[str] = []
            for member in members:
                name = f"{len(names) + 1:05d}.dcm"
                if member.filename == _MD5_NAME:
                    continue
                if _is_licence(member.filename):
                    _copy(archive, member, directory / LICENCE_NAME)
                elif _is_image(archive, member):
                    digest = _copy(archive, member, directory / name)
                    _check(digest, hashes, member.filename, directory / name, series_uid)
                    names.append(name)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError) as error:
        raise TciaError(f"the answer is not a readable zip ({type(error).__name__})") from error
    if not names:
        raise TciaError(f"the server knows no public series {series_uid}")
    return names


def _is_licence(name: str) -> bool:
    return name.rpartition("/")[2].upper().startswith(("LICENSE", "LICENCE"))


def _is_image(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    with archive.open(member) as file:
        return file.read(132)[128:] == b"DICM"


def _copy(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> str:
    """Unpack one member to `path`; return its MD5. A member longer than it says is a BadZipFile."""
    digest = hashlib.md5(usedforsecurity=False)
    with archive.open(member) as source, path.open("wb") as target:
        while block := source.read(_BLOCK):
            digest.update(block)
            target.write(block)
    return digest.hexdigest()


def _read_hashes(archive: zipfile.ZipFile) -> dict[str, str]:
    """Return the MD5 hex digests that the server gave, by member name; empty where it gave none."""
    if _MD5_NAME not in archive.namelist():
        return {}
    with archive.open(_MD5_NAME) as file:
        text = file.read(_SMALL).decode("utf-8-sig", errors="replace")
    rows = csv.DictReader(io.StringIO(text))
    return {
        str(row.get("Filename")): digest.lower()
        for row in rows
        if (digest := str(row.get("MD5Hash") or "").strip()) and re.fullmatch(r"[0-9a-fA-F]{32}", digest)
    }


def _check(digest: str, hashes: dict[str, str], member: str, path: Path, series_uid: str) -> None:
    """Refuse an image that is not what the server announced, or not of the series."""
    if digest != hashes.get(member, digest):
        raise TciaError(f"the MD5 hash of image {path.name} does not match: the download is damaged")
    try:
        found = dcmread(path, specific_tags=["SeriesInstanceUID"], stop_before_pixels=True)
    except (InvalidDicomError, ValueError, EOFError) as error:
        raise TciaError(f"image {path.name} of the archive can't be read as DICOM") from error
    if found.get("SeriesInstanceUID") != series_uid:
        raise TciaError(f"image {path.name} of the archive is of another series")
