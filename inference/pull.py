"""Fetch a published checkpoint into a models folder: by HTTP, or from a folder without a network.

A file gets its name only when its sha256 is the expected one. Where the catalogue knows none, the operator
gives it, or says that the first file seen is to be trusted; then that file's hash is recorded and binds from
there on. Nothing is unpacked, parsed or executed here. Loads no torch.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from inference.catalogue import Checkpoint
from inference.digest import is_sha256, sha256_of
from inference.download import (
    BLOCK,
    Fault,
    Progress,
    PullError,
    append,
    download,
    forget,
    need_space,
    only_one,
    refuse,
)
from inference.durable import replace_file, sync_folder

logger = logging.getLogger(__name__)

RECORD = "pulled.json"
"""In the models folder: what was fetched, from where, with which hash, and who vouched for it."""


class Trust(StrEnum):
    """Who says that this sha256 is the right one."""

    CATALOGUE = "catalogue"
    OPERATOR = "operator"
    FIRST_SEEN = "first seen"


@dataclass(frozen=True, slots=True)
class Pulled:
    """A file that is there.

    Parameters
    ----------
    file
        Its name in the models folder.
    sha256, size
        What it has.
    source
        URL or path it came from.
    trust
        Who says that the hash is the right one.
    """

    file: str
    sha256: str
    size: int
    source: str
    trust: Trust


def pull(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    sha256: str | None = None,
    trust_first: bool = False,
    url: str | None = None,
    progress: Progress | None = None,
    wait_seconds: float = 1.0,
) -> Pulled:
    """Fetch a checkpoint by HTTP.

    Parameters
    ----------
    checkpoint
        What to fetch.
    folder
        The models folder; made where it is missing. An unfinished download stays in it as ``FILE.part``.
    sha256
        From the operator, where the catalogue knows none.
    trust_first
        Take whatever comes where nobody knows the hash, and record its hash.
    url
        A mirror instead of the publisher.
    progress
        Told about arriving bytes.
    wait_seconds
        Before the second attempt; doubled for each further one without progress.

    Raises
    ------
    PullError
        With the fault: the hash is unknown, the file is another one, the network or the disk failed, or
        another process fetches the same file.
    """
    expected, trust = _expectation(checkpoint, folder, sha256, trust_first=trust_first)
    target, address = folder / checkpoint.file, url or checkpoint.url
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = _part(target)
        with only_one(part):
            download(
                address,
                part,
                size=checkpoint.size,
                hash_known=expected is not None,
                progress=progress,
                wait_seconds=wait_seconds,
            )
            _finish(part, target, expected)
    return _note(checkpoint, folder, expected, trust, address)


def take(
    checkpoint: Checkpoint,
    source: Path,
    folder: Path,
    *,
    sha256: str | None = None,
    trust_first: bool = False,
    progress: Progress | None = None,
) -> Pulled:
    """Copy a checkpoint from a folder, such as a stick, without any network.

    Parameters
    ----------
    source
        A folder with the file under its published name, or the file itself.
    checkpoint, folder, sha256, trust_first, progress
        See `pull`.

    Raises
    ------
    PullError
        The file is not there, is another one, or can't be copied.
    """
    expected, trust = _expectation(checkpoint, folder, sha256, trust_first=trust_first)
    file = source / checkpoint.file if source.is_dir() else source
    if not file.is_file():
        raise PullError(Fault.MISSING, f"there is no file {file}")
    target = folder / checkpoint.file
    if not target.exists():
        total = file.stat().st_size
        if checkpoint.size is not None and total != checkpoint.size:
            raise PullError(
                Fault.WRONG_FILE, f"{file} has {total} bytes, the file has {checkpoint.size}: not taken"
            )
        folder.mkdir(parents=True, exist_ok=True)
        need_space(folder, total)
        part = _part(target)
        with only_one(part), file.open("rb") as stream:
            part.write_bytes(b"")
            forget(part)
            append(iter(lambda: stream.read(BLOCK), b""), part, total, progress)
            _finish(part, target, expected)
    return _note(checkpoint, folder, expected, trust, str(file))


def read_record(folder: Path) -> dict[str, Pulled]:
    """What was fetched into a folder, by name in the catalogue; empty where nothing was.

    Raises
    ------
    PullError
        The record can't be read.
    """
    file = folder / RECORD
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        return {
            str(name): Pulled(
                file=str(row["file"]),
                sha256=str(row["sha256"]),
                size=int(row["size"]),
                source=str(row["source"]),
                trust=Trust(row["trust"]),
            )
            for name, row in rows.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PullError(Fault.WRONG_FILE, f"{file} can't be read: {error}") from error


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _expectation(
    checkpoint: Checkpoint, folder: Path, given: str | None, *, trust_first: bool
) -> tuple[str | None, Trust]:
    """The sha256 that the file must have, None for whatever comes first; and who says so."""
    if given is not None and not is_sha256(given):
        raise PullError(Fault.HASH_UNKNOWN, f"{given!r} is not a sha256 (64 hexadecimal digits)")
    given = given.lower() if given else None
    seen = read_record(folder).get(checkpoint.name)
    known = checkpoint.sha256 or (seen.sha256 if seen else None)
    if given and known and given != known:
        whose = "the catalogue" if checkpoint.sha256 else f"the record of what was fetched ({RECORD})"
        raise PullError(Fault.WRONG_FILE, f"{checkpoint.name}: {whose} says sha256 {known}, you say {given}")
    if checkpoint.sha256:
        return checkpoint.sha256, Trust.CATALOGUE
    if given:
        return given, Trust.OPERATOR
    if seen:
        return seen.sha256, seen.trust
    if trust_first:
        return None, Trust.FIRST_SEEN
    raise PullError(
        Fault.HASH_UNKNOWN,
        f"{checkpoint.name}: {checkpoint.hash_source}. Give --sha256 from a source you trust, or say "
        "--trust-on-first-use: then the first file is taken and its hash binds from there on",
    )


def _finish(part: Path, target: Path, expected: str | None) -> None:
    """Give the whole file its name, if it is the right one."""
    found = sha256_of(part)
    if expected is not None and found != expected:
        refuse(part, found)
        raise PullError(
            Fault.WRONG_FILE,
            f"the sha256 is {found}, not {expected}. The file is kept as {part} for you to look at; "
            "it is not used, and the next pull starts over",
        )
    part.replace(target)
    forget(part)
    sync_folder(target.parent)


def _note(checkpoint: Checkpoint, folder: Path, expected: str | None, trust: Trust, source: str) -> Pulled:
    """Hold the file in its place against the hash, and record it."""
    target = folder / checkpoint.file
    found = sha256_of(target)
    if expected is not None and found != expected:
        raise PullError(
            Fault.WRONG_FILE,
            f"{target} is there already and has sha256 {found}, not {expected}: move it away and pull again",
        )
    record = read_record(folder)
    before = record.get(checkpoint.name)
    if before is not None and before.sha256 == found and before.trust == trust:
        return before
    if expected is None:
        logger.warning(
            "%s: nobody vouches for sha256 %s, it is trusted as first seen", checkpoint.name, found
        )
    pulled = Pulled(checkpoint.file, found, target.stat().st_size, source, trust)
    rows = {name: asdict(item) for name, item in sorted({**record, checkpoint.name: pulled}.items())}
    replace_file(folder / RECORD, [json.dumps(rows, indent=2).encode(), b"\n"])
    return pulled
