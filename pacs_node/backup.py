"""A copy of the whole node while it works, and the way back from it.

First a snapshot of the database, then the files that its rows name: a file is durable before its row, so none
is missing that wasn't missing in the node. Retention waits meanwhile. Another backup into the same folder
copies what is new. The folder is a backup only when its ``backup.json`` says so, which is written last.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select

from pacs_node.audit_chain import first_bad_row
from pacs_node.db import Artifact, AuditEvent, Conflict, Database, Instance
from pacs_node.errors import BackupError
from pacs_node.spool import Spool, sync_directory
from pacs_node.storage import undisturbed

logger = logging.getLogger(__name__)

MANIFEST = "backup.json"
DATABASE = "node.db"

_FORMAT = 1
_BLOCK = 1 << 20
_META_AT = 128 + 4
_GROUP_LENGTH = 12


@dataclass(frozen=True, slots=True)
class Named:
    """A file that a row names, and the SHA-256 that the row has of it.

    Parameters
    ----------
    path
        Relative to the storage directory.
    sha256
        Of the whole file; for a received object of its transfer syntax and data set.
    transfer_syntax_uid
        Of a received object, None for a result.
    """

    path: str
    sha256: str
    transfer_syntax_uid: str | None

    def is_in(self, file: Path) -> bool:
        """Whether a file has this content."""
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            if self.transfer_syntax_uid is not None:
                head = stream.read(_META_AT + _GROUP_LENGTH)
                stream.seek(_META_AT + _GROUP_LENGTH + int.from_bytes(head[-4:], "little"))
                digest.update(self.transfer_syntax_uid.encode("ascii") + b"\n")
            while block := stream.read(_BLOCK):
                digest.update(block)
        return digest.hexdigest() == self.sha256


@dataclass(slots=True)
class Report:
    """What a backup or a restore did.

    Parameters
    ----------
    files, copied
        That the rows name, and of these that were copied now.
    missing, altered
        Paths that rows name: no such file, and another content. The database says which study they belong to.
    """

    files: int = 0
    copied: int = 0
    missing: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether everything is there and as its row says."""
        return not self.missing and not self.altered


def named_files(database: Database) -> list[Named]:
    """Every file that a row names."""
    found: dict[str, Named] = {}
    with database.read() as session:
        for table in (Instance, Conflict):
            columns = select(table.path, table.sha256, table.transfer_syntax_uid)
            for path, sha256, syntax in session.execute(columns).tuples():
                if path is not None:
                    found[path] = Named(path, sha256, syntax)
        for path, sha256 in session.execute(select(Artifact.path, Artifact.sha256)).tuples():
            if path is not None:
                found[path] = Named(path, sha256, None)
    return list(found.values())


def back_up(database: Path, storage: Path, target: Path, now: datetime) -> Report:
    """Copy a node that may be at work.

    Parameters
    ----------
    database
        Its SQLite file.
    storage
        Its storage directory.
    target
        A folder of its own; an earlier backup of this node in it is brought up to date.

    Raises
    ------
    BackupError
        The target is no place for it.
    """
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    before = _manifest(target) if (target / MANIFEST).exists() else None
    begun = target / "incomplete"
    if before is None and not begun.exists() and any(target.iterdir()):
        raise BackupError(f"{target} is not empty, and no backup: take a folder of its own")
    begun.touch()
    with undisturbed(storage, wait=True):
        snapshot = target / f"{now:%Y%m%dT%H%M%S%f}.db"
        _snapshot(database, snapshot)
        copy = Database(f"sqlite:///{snapshot}")
        try:
            named, head = named_files(copy), _audit_head(copy)
        finally:
            copy.dispose()
        report = _copy(named, storage, target, again=False)
    _write_manifest(target, snapshot, named, head, now)
    begun.unlink()
    _prune(target, {snapshot.name, *(item.path for item in named)})
    logger.info("backup", extra={"files": report.files, "copied": report.copied})
    return report


def restore(source: Path, database: Path, storage: Path) -> Report:
    """Put a backup where a node is to be, and hold every file against its row.

    Parameters
    ----------
    source
        Folder of the backup.
    database, storage
        Where the configuration says that they are; neither may hold anything yet.

    Raises
    ------
    BackupError
        The source is no whole backup, or there is something in its way; nothing was changed.
    """
    manifest = _manifest(source)
    snapshot = source / str(manifest["database"])
    if not snapshot.is_file() or _file_sha256(snapshot) != manifest["sha256"]:
        raise BackupError(f"{snapshot} is missing or isn't what {MANIFEST} says: take another backup")
    if database.exists():
        raise BackupError(f"{database} exists: a restore overwrites nothing; move it away first")
    for folder in ("instances", "results"):
        if any(path.is_file() for path in (storage / folder).rglob("*")):
            raise BackupError(
                f"{storage / folder} has files: a restore overwrites nothing; move it away first"
            )
    storage.mkdir(parents=True, exist_ok=True, mode=0o700)
    Spool(storage, 1)
    # under another name until all files are there: one that is killed leaves nothing that looks like a node
    unfinished = database.with_name(f"{database.name}.restoring")
    database.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    shutil.copyfile(snapshot, unfinished)
    opened = Database(f"sqlite:///{unfinished}")
    try:
        if (answer := opened.check()) != "ok":
            raise BackupError(f"the database of the backup is damaged: {answer[:200]}")
        with opened.read() as session:
            if (bad := first_bad_row(session)) is not None:
                raise BackupError(f"the audit record of the backup is broken from row {bad}")
        report = _copy(named_files(opened), source, storage, again=True)
    finally:
        opened.dispose()
    os.sync()
    unfinished.rename(database)
    sync_directory(database.parent)
    return report


def _snapshot(database: Path, target: Path) -> None:
    """One consistent state, by SQLite's online backup; writers wait while its pages are read."""
    with (
        closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=60)) as source,
        closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)


def _audit_head(database: Database) -> tuple[int, str]:
    with database.read() as session:
        row = session.execute(
            select(AuditEvent).order_by(AuditEvent.seq.desc()).limit(1)
        ).scalar_one_or_none()
        return (0, "") if row is None else (row.seq, row.hash)


def _copy(named: Iterable[Named], source: Path, target: Path, *, again: bool) -> Report:
    """Copy what isn't there; what is altered at the source is named and not copied."""
    report = Report()
    for item in named:
        report.files += 1
        origin, place = source / item.path, target / item.path
        if not again and place.exists() and origin.exists() and place.stat().st_size == origin.stat().st_size:
            continue
        try:
            sound = item.is_in(origin)
        except FileNotFoundError:
            report.missing.append(item.path)
            continue
        if not sound:
            report.altered.append(item.path)
            continue
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.copyfile(origin, place.with_name(f"{place.name}.part"))
        place.with_name(f"{place.name}.part").rename(place)
        report.copied += 1
    return report


def _file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_manifest(
    target: Path, snapshot: Path, named: list[Named], head: tuple[int, str], now: datetime
) -> None:
    content = {
        "format": _FORMAT,
        "made_at": now.astimezone(UTC).isoformat(timespec="seconds"),
        "database": snapshot.name,
        "sha256": _file_sha256(snapshot),
        "files": len(named),
        "audit_events": head[0],
        "audit_head": head[1],
        "notice": "Patient data. Research use only, not for primary diagnosis.",
    }
    part = target / f"{MANIFEST}.part"
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    # all of it is on the disk before the manifest says that it is a backup
    os.sync()
    part.rename(target / MANIFEST)
    sync_directory(target)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise BackupError(f"{folder} is no backup: {MANIFEST} is missing or can't be read") from None
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise BackupError(f"{folder / MANIFEST} is of a format that this version doesn't know")
    return content


def _prune(target: Path, named: set[str]) -> None:
    """Remove from an earlier backup what the node has no more."""
    for path in _stored(target):
        if path not in named:
            (target / path).unlink()


def _stored(folder: Path) -> Iterator[str]:
    for path in [*folder.glob("*.db"), *(folder / "instances").rglob("*"), *(folder / "results").rglob("*")]:
        if path.is_file():
            yield str(path.relative_to(folder))
