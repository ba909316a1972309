"""What ``pacs-node doctor`` finds out about this machine: every finding says what to do."""

from __future__ import annotations

import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import DatabaseError

from inference.errors import ModelUnavailableError
from inference.registry import load_pipeline, profiles
from pacs_node import tls
from pacs_node.ballast import Ballast
from pacs_node.clock import clock_is_synchronised
from pacs_node.config import DicomDestination, Settings
from pacs_node.config_listener import out_of_reach
from pacs_node.db import CommitmentRequest
from pacs_node.doctor_database import check_database
from pacs_node.doctor_findings import Finding, Level
from pacs_node.errors import ConfigurationError
from pacs_node.refusals import REFUSALS_OF, advice, refusals
from pacs_node.storage import existing_database

EXPIRES_SOON = timedelta(days=30)
_SLOW_SYNC_S = 0.05
_SYNCS = 10
#: statfs(2): not durable, or without the locks that SQLite needs
_FILE_SYSTEMS = {
    "tmpfs": "keeps nothing after a restart of the machine",
    "ramfs": "keeps nothing after a restart of the machine",
    "nfs": "is on the network, where SQLite's locks are not safe",
    "nfs4": "is on the network, where SQLite's locks are not safe",
    "cifs": "is on the network, where SQLite's locks are not safe",
    "smb3": "is on the network, where SQLite's locks are not safe",
}


def examine(settings: Settings, now: datetime) -> Iterator[Finding]:
    """Look at everything that needs no network, one part after the other."""
    yield from check_disk(settings)
    yield from check_database(settings, now)
    yield from check_clock()
    yield from check_models(settings)
    yield from check_listener(settings, now)
    yield from check_callers(settings, now)
    yield from check_commitment(settings)
    yield from check_archive(settings)


def check_disk(settings: Settings) -> Iterator[Finding]:
    """Space above the reserve, a file system that keeps what is synced, and how fast it does."""
    directory = Path(settings.storage.directory)
    if not directory.is_dir():
        yield Finding(Level.GOOD, "disk", f"{directory} is made at the first start")
        return
    free, reserve = shutil.disk_usage(directory).free >> 20, settings.storage.reserve_mb
    room = f"{free} MiB free, reserve {reserve} MiB"
    if free <= reserve:
        todo = "free space there, or lower storage.reserve_mb; until then every object is answered A700"
        yield Finding(Level.PROBLEM, "disk", room, todo)
    elif free < 2 * reserve:
        yield Finding(Level.WARNING, "disk", room, "make room soon; see retention.images_days")
    else:
        yield Finding(Level.GOOD, "disk", room)
    yield from _ballast(settings, free)
    kind = file_system(directory)
    if kind in _FILE_SYSTEMS:
        todo = "set storage.directory to a local disk (ext4, xfs)"
        yield Finding(Level.PROBLEM, "disk", f"{directory} is {kind}, which {_FILE_SYSTEMS[kind]}", todo)
    if not os.access(directory, os.W_OK | os.X_OK):
        yield Finding(
            Level.PROBLEM, "disk", f"this user may not write to {directory}", "run as the node's user"
        )
        return
    try:
        seconds = sync_seconds(directory)
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        todo = "free space there; until then no step can be recorded" if full else "see the log of the system"
        yield Finding(Level.PROBLEM, "disk", f"nothing can be written to {directory}: {error.strerror}", todo)
        return
    speed = f"a synced write takes {seconds * 1000:.1f} ms"
    if seconds > _SLOW_SYNC_S:
        yield Finding(
            Level.WARNING,
            "disk",
            speed,
            "each instance waits for several of them: use a faster disk, or one with less other work",
        )
    else:
        yield Finding(Level.GOOD, "disk", speed)


def _ballast(settings: Settings, free_mb: int) -> Iterator[Finding]:
    storage = settings.storage
    if Ballast(Path(storage.directory), storage.ballast_mb << 20).is_given_up:
        sentence = f"the disk is full: of the ballast {free_mb} MiB are left for deliveries, record and page"
        todo = f"free {2 * storage.ballast_mb} MiB there; until then nothing is analysed"
        yield Finding(Level.PROBLEM, "disk", sentence, todo)
    elif storage.ballast_mb >= storage.reserve_mb:
        sentence = f"images would fill what a ballast of {storage.ballast_mb} MiB gives back"
        yield Finding(
            Level.WARNING, "disk", sentence, "let storage.reserve_mb be more than storage.ballast_mb"
        )


def file_system(directory: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """Type of the file system that a directory is on; empty where the system doesn't say."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    best, kind = Path(), ""
    for line in lines:
        _, place, name, *_ = line.split(" ")
        point = Path(place.replace("\\040", " "))
        if directory.absolute().is_relative_to(point) and len(point.parts) >= len(best.parts):
            best, kind = point, name
    return kind


def sync_seconds(directory: Path) -> float:
    """Middle time of some synced writes, seconds; leaves nothing behind."""
    path = directory / f"doctor-{uuid.uuid4().hex}.tmp"
    took = []
    try:
        with path.open("wb", buffering=0) as file:
            for _ in range(_SYNCS):
                started = time.perf_counter()
                file.write(bytes(4096))
                os.fsync(file.fileno())
                took.append(time.perf_counter() - started)
    finally:
        path.unlink(missing_ok=True)
    return sorted(took)[len(took) // 2]


def check_clock() -> Iterator[Finding]:
    """Whether the clock follows a time server: results, retries and the audit record carry its times."""
    synchronised = clock_is_synchronised()
    if synchronised:
        yield Finding(Level.GOOD, "clock", "follows a time server")
    elif synchronised is None:
        yield Finding(
            Level.WARNING, "clock", "the system doesn't say whether it is right", "compare it by hand"
        )
    else:
        todo = "set up chrony or systemd-timesyncd on this machine, or on the host of this container"
        yield Finding(Level.WARNING, "clock", "follows no time server", todo)


def check_models(settings: Settings) -> Iterator[Finding]:
    """The models of the profile: cards readable, weights there and with their SHA-256."""
    profile = settings.pipeline.profile
    try:
        load_pipeline(profile, models=Path(settings.pipeline.models))
    except ModelUnavailableError as error:
        todo = f"set pipeline.profile to one of {', '.join(profiles())}; see pacs-node models verify"
        yield Finding(Level.PROBLEM, "models", f"profile {profile}: {error}", todo)
        return
    yield Finding(Level.GOOD, "models", f"profile {profile}: weights there, SHA-256 as the cards say")


def check_listener(settings: Settings, now: datetime) -> Iterator[Finding]:
    """Encryption, and how long the certificates last."""
    listener = settings.listener
    place = f"{listener.ae_title} on {listener.host}:{listener.port}"
    files = listener.tls_files()
    if files is not None:
        try:
            tls.server_context(files, "listener")
        except ConfigurationError as error:
            yield Finding(Level.PROBLEM, "listener", str(error), "correct the files, then restart the node")
            return
        yield Finding(Level.GOOD, "listener", f"{place}, TLS with certificates on both sides")
        yield from _expiry("listener", files.certificate, now)
        yield from _expiry("listener", files.authorities, now)
    elif listener.allow_plaintext:
        todo = "set listener.tls_certificate_file, tls_key_file and tls_client_ca_file if the PACS speaks TLS"
        yield Finding(Level.WARNING, "listener", f"{place}: patient data cross the network unencrypted", todo)
    else:
        yield Finding(Level.GOOD, "listener", f"{place}, this machine only")
    for item in settings.destinations:
        own = settings.client_tls_files(item) if isinstance(item, DicomDestination) else None
        if own is not None:
            yield from _expiry(f"destination {item.name}", own.certificate, now)
            yield from _expiry(f"destination {item.name}", own.authorities, now)


def _expiry(about: str, path: str, now: datetime) -> Iterator[Finding]:
    try:
        validity = tls.read_validity(Path(path))
    except (OSError, ValueError) as error:
        yield Finding(Level.PROBLEM, about, f"{path}: {error}", "put the certificate there, in PEM form")
        return
    days = (validity.ends - now).days
    sentence = f"{path}: valid until {validity.ends:%Y-%m-%d}, SHA-256 {validity.sha256}"
    if now >= validity.ends or now < validity.begins:
        yield Finding(
            Level.PROBLEM, about, f"{sentence}: not valid now", "put a new certificate there, restart"
        )
    elif validity.ends - now < EXPIRES_SOON:
        yield Finding(
            Level.WARNING, about, f"{sentence}: {days} days left", "put a new certificate there, restart"
        )
    else:
        yield Finding(Level.GOOD, about, sentence)


def check_archive(settings: Settings) -> Iterator[Finding]:
    """Whether anybody can tell that a study or an image never came."""
    name = settings.archive.destination
    if name:
        yield Finding(Level.GOOD, "archive", f"{name} is asked what it has")
    elif settings.destinations:
        sentence = "nobody is asked how many images a series has, or which studies never came here"
        todo = "set archive.destination to the destination that answers C-FIND or QIDO-RS"
        yield Finding(Level.WARNING, "archive", sentence, todo)


def check_commitment(settings: Settings) -> Iterator[Finding]:
    """Who relies on this node's word that images are safe here, though they are removed in time."""
    days = settings.retention.images_days
    archives = {item.ae_title for item in settings.destinations if isinstance(item, DicomDestination)}
    senders = {caller.ae_title for caller in settings.callers} - archives
    if not days or not senders:
        return
    asked = select(CommitmentRequest.calling_ae).where(CommitmentRequest.calling_ae.in_(senders)).distinct()
    try:
        with existing_database(settings) as database:
            if database is None:
                return
            with database.read() as session:
                found = sorted(session.scalars(asked))
    except (ConfigurationError, DatabaseError):  # said by check_database
        return
    for name in found:
        sentence = (
            f"{name} asks whether its images are committed here: that holds for {days:g} days "
            "(retention.images_days), this node is no archive"
        )
        todo = "have it ask the archive before it deletes its own, or set retention.images_days = 0"
        yield Finding(Level.WARNING, "commitment", sentence, todo)


def check_callers(settings: Settings, now: datetime) -> Iterator[Finding]:
    """Who may send, who was refused, and the lines that would admit them."""
    if not settings.callers:
        todo = "let the PACS send once; it is refused, and this command shows the lines that admit it"
        yield Finding(Level.WARNING, "callers", "nobody may send", todo)
    for sentence in out_of_reach(settings.listener.host, settings.callers):
        yield Finding(Level.PROBLEM, "callers", sentence, "correct [listener], then restart the node")
    for caller in settings.callers:
        sentence = f"{caller.ae_title} from {caller.address}"
        if caller.certificate_sha256 and settings.listener.tls_files() is None:
            todo = "set up TLS for the listener, or take certificate_sha256 out"
            sentence += " can't come in: it must show a certificate, and the listener speaks no TLS"
            yield Finding(Level.PROBLEM, "callers", sentence, todo)
        else:
            yield Finding(Level.GOOD, "callers", f"{sentence} may send")
    try:
        with existing_database(settings) as database:
            refused = [] if database is None else refusals(database, now - REFUSALS_OF)
    except (ConfigurationError, DatabaseError):  # said by check_database
        return
    for item in refused:
        what = advice(item, settings)
        if what is not None:
            yield Finding(Level.WARNING, "refused", item.sentence(), what)
