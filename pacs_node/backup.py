"""A copy of the whole node while it works, and the way back from it.

First a snapshot of the database, then the files that its rows name: a file is durable before its row, so none
is missing that wasn't missing in the node. Retention waits meanwhile. Another backup into the same folder
copies what is new, and holds a part of what is there against its rows, all of it in turn: what has rotted is
copied again. The folder is a backup only when its ``backup.json`` says so, which is written last.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pacs_node.backup_rows import Moment, Named, PostgresqlRows, SqliteRows, saved_files
from pacs_node.errors import BackupError
from pacs_node.spool import Spool, sync_directory
from pacs_node.storage import undisturbed

logger = logging.getLogger(__name__)

MANIFEST = "backup.json"
PARTS = 30
"""After so many backups each file of it was held against its row again."""
_FORMAT = 1
_BLOCK = 1 << 20

Rows = SqliteRows | PostgresqlRows


@dataclass(slots=True)
class Report:
    """What a backup or a restore did.

    Parameters
    ----------
    files, copied
        That the rows name, and of these that were copied now.
    missing, altered
        Paths that rows name: no such file, and another content. The database says which study they belong to.
    mended
        Of those that were copied now: which had another content in the backup, or could not be read there.
    """

    files: int = 0
    copied: int = 0
    missing: list[str] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    mended: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether everything is there and as its row says."""
        return not self.missing and not self.altered


def back_up(rows: Rows, storage: Path, target: Path, now: datetime, *, verify: bool = False) -> Report:
    """Copy a node that may be at work.

    Parameters
    ----------
    rows
        Its database.
    storage
        Its storage directory.
    target
        A folder of its own; an earlier backup of this node in it is brought up to date.
    verify
        Hold each file that is there against its row, not only this time's part of them.

    Raises
    ------
    BackupError
        The target is no place for it, or the rows can't be saved.
    """
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    before = _manifest(target) if (target / MANIFEST).exists() else None
    turn = 0 if before is None else (int(before.get("turn", 0)) + 1) % PARTS
    begun = target / "incomplete"
    if before is None and not begun.exists() and any(target.iterdir()):
        raise BackupError(f"{target} is not empty, and no backup: take a folder of its own")
    begun.touch()
    with undisturbed(storage, wait=True):
        saved = target / f"{now:%Y%m%dT%H%M%S%f}{rows.suffix}"
        moment = rows.save(saved)
        report = _copy(moment.named, storage, target, lambda item: verify or _part(item) == turn)
    _write_manifest(target, saved, moment, now, turn)
    begun.unlink()
    _prune(target, {*(path.name for path in saved_files(saved)), *(item.path for item in moment.named)})
    logger.info("backup", extra={"files": report.files, "copied": report.copied})
    if report.mended:
        logger.warning("files of the backup were altered", extra={"count": len(report.mended)})
    return report


def restore(source: Path, rows: Rows, storage: Path) -> Report:
    """Put a backup where a node is to be, and hold every file against its row.

    Parameters
    ----------
    source
        Folder of the backup.
    rows, storage
        Where the configuration says that they are; neither may hold anything yet.

    Raises
    ------
    BackupError
        The source is no whole backup, or there is something in its way; nothing was changed.
    """
    manifest = _manifest(source)
    saved = source / str(manifest["database"])
    if saved.suffix != rows.suffix:
        raise BackupError(
            f"{saved} is of another kind of database than storage.database_url: restore it into that kind"
        )
    if not all(path.is_file() for path in saved_files(saved)) or _digest(saved) != manifest["sha256"]:
        raise BackupError(f"{saved} is missing or isn't what {MANIFEST} says: take another backup")
    rows.refuse_if_used()
    for folder in ("instances", "results"):
        if any(path.is_file() for path in (storage / folder).rglob("*")):
            raise BackupError(
                f"{storage / folder} has files: a restore overwrites nothing; move it away first"
            )
    storage.mkdir(parents=True, exist_ok=True, mode=0o700)
    Spool(storage, 1)
    with rows.bring_back(saved) as named:
        return _copy(named, source, storage, lambda _item: True)


def _part(item: Named) -> int:
    return int(item.sha256[:8], 16) % PARTS


def _copy(named: Iterable[Named], source: Path, target: Path, verify: Callable[[Named], bool]) -> Report:
    """Copy what isn't there as its row says; what is altered at the source is named and not copied."""
    report = Report()
    for item in named:
        report.files += 1
        origin, place = source / item.path, target / item.path
        rotten = False
        if place.exists() and origin.exists() and place.stat().st_size == origin.stat().st_size:
            rotten = verify(item) and not _is_sound(item, place)
            if not rotten:
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
        if rotten:
            report.mended.append(item.path)
    return report


def _is_sound(item: Named, place: Path) -> bool:
    try:
        return item.is_in(place)
    except OSError:
        # a bad block: the copy takes another place
        return False


def _digest(saved: Path) -> str:
    """SHA-256 of saved rows: of their file, and of the list beside it where there is one."""
    digest = hashlib.sha256()
    for path in saved_files(saved):
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _write_manifest(target: Path, saved: Path, moment: Moment, now: datetime, turn: int) -> None:
    content = {
        "format": _FORMAT,
        "made_at": now.astimezone(UTC).isoformat(timespec="seconds"),
        "database": saved.name,
        "sha256": _digest(saved),
        "files": len(moment.named),
        "turn": turn,
        "audit_events": moment.audit_events,
        "audit_head": moment.audit_head,
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
    rows = [*folder.glob("*.db"), *folder.glob("*.dump"), *folder.glob("*.dump.files")]
    for path in [*rows, *(folder / "instances").rglob("*"), *(folder / "results").rglob("*")]:
        if path.is_file():
            yield str(path.relative_to(folder))
