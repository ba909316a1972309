"""Download one large file over HTTP, with resume. What it is, and whether it is the right one, others check.

The unfinished file and what is known of it stay beside each other, as ``FILE.part`` and ``FILE.part.json``. A
broken download goes on with ``Range`` and ``If-Range`` (RFC 9110 13.1.5, 14.2). Proxies are taken from the
environment (``HTTPS_PROXY``, ``NO_PROXY``). Loads no torch.
"""

from __future__ import annotations

import fcntl
import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from http import HTTPStatus
from io import FileIO
from pathlib import Path

import requests

from inference.durable import replace_file
from inference.errors import InferenceError

logger = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]
"""Called with (bytes so far, bytes expected or None)."""

RESERVE_BYTES = 64 * 2**20
"""Left free on the disk."""

BLOCK = 2**16
"""Bytes a step; of a broken connection at most so many are lost."""

_TIMEOUT = (10.0, 60.0)
_ATTEMPTS = 5


class Fault(StrEnum):
    """Why a file was not fetched."""

    HASH_UNKNOWN = "hash unknown"
    WRONG_FILE = "wrong file"
    NETWORK = "network"
    DISK = "disk"
    MISSING = "missing"
    BUSY = "busy"


class PullError(InferenceError):
    """A file was not fetched; the text is a sentence for the operator.

    Parameters
    ----------
    fault
        What kind of failure, for the exit status.
    sentence
        What happened and what to do.
    """

    def __init__(self, fault: Fault, sentence: str) -> None:
        super().__init__(fault, sentence)
        self.fault = fault
        self.sentence = sentence

    def __str__(self) -> str:
        return self.sentence


class _BrokenError(Exception):
    """The connection failed; what arrived stays and the next attempt goes on."""


@dataclass(frozen=True, slots=True)
class _State:
    """What is known of an unfinished download.

    Parameters
    ----------
    url
        Where it came from.
    validator
        The server's strong ETag or Last-Modified.
    total
        Bytes of the whole.
    refused
        sha256 of a whole file that was not the right one.
    """

    url: str
    validator: str = ""
    total: int | None = None
    refused: str = ""


def download(
    url: str,
    part: Path,
    *,
    size: int | None,
    hash_known: bool,
    progress: Progress | None = None,
    wait_seconds: float = 1.0,
) -> None:
    """Download a file, or the rest of it.

    Parameters
    ----------
    url
        Where.
    part
        The unfinished file; holds the whole one afterwards. The caller holds `only_one`.
    size
        Bytes that it must have, None where unknown.
    hash_known
        Whether the whole will be held against a known hash. If not, two halves are only put together on the
        server's word that they are of one file.
    progress
        Told about arriving bytes.
    wait_seconds
        Before the second attempt; doubled for each further one without progress.

    Raises
    ------
    PullError
        The server is not reached, refuses, breaks off again and again or offers a file of another size; or
        the disk is full. What arrived is kept, and the next call goes on there.
    """
    with requests.Session() as session:
        _Download(session, url, part, size=size, hash_known=hash_known, progress=progress).run(wait_seconds)


def refuse(part: Path, found: str) -> None:
    """Note that a whole file is not the right one: it stays for inspection, the next download starts over."""
    _keep(part, replace(_known(part), refused=found))


def forget(part: Path) -> None:
    """Drop what is noted beside an unfinished file."""
    _notes(part).unlink(missing_ok=True)


@contextmanager
def only_one(part: Path) -> Iterator[None]:
    """Hold a lock on the unfinished file, which is made where it is missing.

    Raises
    ------
    PullError
        Another process holds it, or the file can't be written.
    """
    try:
        lock = part.open("ab")
    except OSError as error:
        raise PullError(Fault.DISK, f"{part} can't be written ({error.strerror})") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PullError(Fault.BUSY, f"another process is writing {part}") from None
        yield


def need_space(folder: Path, more: int) -> None:
    """Refuse to fill the disk.

    Raises
    ------
    PullError
        `more` bytes don't fit.
    """
    free = shutil.disk_usage(folder).free
    if free < more + RESERVE_BYTES:
        raise PullError(
            Fault.DISK,
            f"{folder} has {free / 2**20:.0f} MiB free; {more / 2**20:.0f} MiB are still to come, and "
            f"{RESERVE_BYTES / 2**20:.0f} MiB stay free",
        )


def append(blocks: Iterable[bytes], part: Path, total: int | None, progress: Progress | None) -> None:
    """Append blocks to a file.

    Raises
    ------
    PullError
        The disk is full or fails; what was written stays.
    """
    # unbuffered: a full disk shows where it happens, not when the file is closed
    with FileIO(part, "ab") as out:
        for block in blocks:
            left = memoryview(block)
            while left:
                try:
                    left = left[out.write(left) :]
                except OSError as error:
                    raise PullError(
                        Fault.DISK,
                        f"writing failed ({error.strerror}); {out.tell()} bytes are kept in {part}",
                    ) from error
            if progress is not None:
                progress(out.tell(), total)


def _notes(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _known(part: Path) -> _State:
    try:
        row = json.loads(_notes(part).read_text(encoding="utf-8"))
        total = None if row["total"] is None else int(row["total"])
        return _State(str(row["url"]), str(row["validator"]), total, str(row["refused"]))
    except (OSError, ValueError, KeyError, TypeError):
        return _State("")


def _keep(part: Path, state: _State) -> None:
    replace_file(_notes(part), [json.dumps(asdict(state)).encode()])


class _Download:
    """One file, in as many connections as it takes."""

    def __init__(
        self,
        session: requests.Session,
        url: str,
        part: Path,
        *,
        size: int | None,
        hash_known: bool,
        progress: Progress | None,
    ) -> None:
        self.session = session
        self.url = url
        self.part = part
        self.size = size
        self.hash_known = hash_known
        self.progress = progress
        self.state = _known(part)
        if self.state.url != url or self.state.refused:
            self._start_over()

    def run(self, wait_seconds: float) -> None:
        """Go on until the file is whole, or `_ATTEMPTS` connections in a row brought nothing."""
        failures = 0
        while not self._is_whole():
            before = self._have()
            try:
                self._connect()
            except _BrokenError as error:
                failures = failures + 1 if self._have() <= before else 1
                if failures >= _ATTEMPTS:
                    kept = f"{self._have()} bytes are kept in {self.part}: the same command goes on there"
                    raise PullError(Fault.NETWORK, f"{error}. {kept}") from error
                logger.info("%s; trying again", error)
                time.sleep(wait_seconds * 2 ** (failures - 1))

    def _have(self) -> int:
        return self.part.stat().st_size

    def _is_whole(self) -> bool:
        return self.state.total is not None and self._have() == self.state.total

    def _start_over(self) -> None:
        with self.part.open("wb"):
            pass
        self.state = _State(self.url)

    def _connect(self) -> None:
        """Ask for what is missing and append it."""
        if not (self.state.validator or self.hash_known):
            self._start_over()
        have = self._have()
        headers = {"Accept-Encoding": "identity", "User-Agent": "pacs-node"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if self.state.validator:
                headers["If-Range"] = self.state.validator
        try:
            response = self.session.get(self.url, headers=headers, timeout=_TIMEOUT, stream=True)
        except requests.RequestException as error:
            raise _BrokenError(f"the server is not reached ({type(error).__name__}): {self.url}") from error
        with response:
            self._check_way(response)
            if response.status_code == HTTPStatus.PARTIAL_CONTENT:
                total = self._continued(response, have)
            elif response.status_code == HTTPStatus.OK:
                # asked for all of it, or the server ignores ranges, or it has another file now
                have, total = 0, _number(response.headers.get("Content-Length"))
            elif response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise self._other_file()
            else:
                raise self._refusal(response)
            self._receive(response, have, total)

    def _check_way(self, response: requests.Response) -> None:
        hops = [item.url for item in (*response.history, response)]
        if self.url.startswith("https:") and not all(hop.startswith("https:") for hop in hops):
            raise PullError(Fault.NETWORK, f"{self.url} leads away from https: not followed")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise PullError(Fault.NETWORK, f"{self.url}: the server or a proxy changes the file on its way")

    def _refusal(self, response: requests.Response) -> Exception:
        status = response.status_code
        sentence = f"the server answered with HTTP {status}: {self.url}"
        if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return _BrokenError(sentence)
        return PullError(Fault.NETWORK, sentence)

    def _other_file(self) -> Exception:
        self._start_over()
        return _BrokenError(f"the server has another file than before: {self.url}")

    def _continued(self, response: requests.Response, have: int) -> int | None:
        """Check that the answer is the rest of what is there; return the size of the whole."""
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        total = _number(match[2]) if match else None
        pairs = ((total, self.state.total), (_validator(response), self.state.validator))
        changed = any(now and before and now != before for now, before in pairs)
        if match is None or int(match[1]) != have or changed:
            raise self._other_file()
        return total

    def _receive(self, response: requests.Response, have: int, total: int | None) -> None:
        if total is not None and self.size is not None and total != self.size:
            # what is there stays: this may be a page of a proxy
            raise PullError(
                Fault.WRONG_FILE,
                f"{self.url} offers {total} bytes, the file has {self.size}: not fetched",
            )
        if not have:
            self._start_over()
        total = total or self.size
        if total is not None:
            need_space(self.part.parent, total - have)
        self.state = _State(self.url, _validator(response), total)
        _keep(self.part, self.state)
        append(self._blocks(response), self.part, total, self.progress)
        got = self._have()
        if total is None:
            # the end of the connection is the end of the file, as far as anybody can tell
            self.state = replace(self.state, total=got)
            _keep(self.part, self.state)
        elif got < total:
            raise _BrokenError(f"the connection ended after {got} of {total} bytes")
        elif got > total:
            raise self._other_file()

    def _blocks(self, response: requests.Response) -> Iterator[bytes]:
        try:
            for block in response.iter_content(BLOCK):
                # where nobody said how much is coming, a full disk is noticed on the way
                need_space(self.part.parent, len(block))
                yield block
        except requests.RequestException as error:
            raise _BrokenError(f"the connection broke off ({type(error).__name__})") from error


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _validator(response: requests.Response) -> str:
    """A strong validator for If-Range: a weak ETag promises no equal bytes (RFC 9110 8.8.1)."""
    etag = response.headers.get("ETag") or ""
    if etag.startswith("W/"):
        return ""
    return etag or response.headers.get("Last-Modified") or ""
