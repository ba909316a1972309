"""Received instances as durable files, named by content: no byte of a peer gets into a path."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from dicom_sr.part10 import IMPLEMENTATION_CLASS_UID as IMPLEMENTATION_CLASS_UID  # noqa: PLC0414 - asked for here too
from pacs_node.errors import NodeError, ObjectTooLargeError, OutOfSpaceError
from pacs_node.file_meta import IMPLEMENTATION_VERSION_NAME as IMPLEMENTATION_VERSION_NAME  # noqa: PLC0414
from pacs_node.file_meta import LARGEST, file_head, read_file_meta

DAMAGED = "damaged"
"""Folder for files that have other bytes than their name says."""

_CHECK_EVERY = 16 << 20
_READ_AT_ONCE = 1 << 20
_SYNC_THREADS = 8
#: another thread costs more than a sync that is faster
_SLOW_SYNC_S = 0.001


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A durable file.

    Parameters
    ----------
    path
        Relative to the storage directory.
    sha256
        Of the data set as received, without file meta information.
    size
        Of the data set, bytes.
    """

    path: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A DICOM file that was read to its end, and what its file meta information says."""

    stored: StoredFile
    transfer_syntax_uid: str
    source_ae: str
    #: first bytes of the data set
    head: bytes


class Incoming:
    """A data set on its way to the disk; made by `Spool.begin`.

    Parameters
    ----------
    head
        What stands in the file before the data set.
    """

    def __init__(
        self, spool: Spool, directory: str, head: bytes, transfer_syntax_uid: str, max_bytes: int
    ) -> None:
        self._spool = spool
        self._head = head
        self._max_bytes = max_bytes
        self._digest = hashlib.sha256(transfer_syntax_uid.encode("ascii") + b"\n")
        self._path = f"{directory}/{secrets.token_hex(16)}.part"
        self._file: int | None = None
        self._kept = False
        self._trouble: OSError | NodeError | None = None
        self._unchecked = 0
        self.size = 0
        """Of the data set so far, bytes."""
        try:
            spool.check_space(0)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            self._put(head)
        except (OSError, NodeError) as error:
            self._give_up(error)

    def write(self, data: memoryview) -> None:
        """Take some bytes; after the first trouble they are only counted."""
        self.size += len(data)
        if self._trouble is not None:
            return
        try:
            self._check(len(data))
            self._put(data)
        except (OSError, NodeError) as error:
            self._give_up(error)
        else:
            self._digest.update(data)

    def _check(self, size: int) -> None:
        if self.size > self._max_bytes:
            raise ObjectTooLargeError(f"the object is larger than {self._max_bytes >> 20} MiB")
        self._unchecked += size
        if self._unchecked > _CHECK_EVERY:
            self._spool.check_space(self._unchecked)
            self._unchecked = 0

    def _put(self, data: bytes | memoryview) -> None:
        while self._file is not None and data:
            data = memoryview(data)[os.write(self._file, data) :]

    def _give_up(self, error: OSError | NodeError) -> None:
        """Free the space at once: the peer goes on sending."""
        full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
        self._trouble = OutOfSpaceError("the disk is full") if full else error
        self.discard()

    def head(self, limit: int) -> bytes:
        """Return the first bytes of the data set.

        Raises
        ------
        OutOfSpaceError, OSError
            It could not be written; nothing is left behind.
        """
        return os.pread(self._usable(), limit, len(self._head))

    @property
    def digest(self) -> str:
        """SHA-256 that names the data set, as far as it came: of its transfer syntax and its bytes."""
        return self._digest.hexdigest()

    def keep(self) -> StoredFile:
        """Make the data set durable: file, name and folder are synced.

        File and folder are synced at the same time, so that the file system can do both in one commit of
        its journal. A file that is there already is replaced by its equal only once that is durable.

        Raises
        ------
        OutOfSpaceError
            The reserve is reached, the disk is full, or the object is too large; nothing is left behind.
        OSError
            The disk failed; nothing that was not there before is to be trusted.
        """
        file = self._usable()
        digest = self.digest
        relative = f"instances/{digest[:2]}/{digest}.dcm"
        folder = f"{self._spool.directory}/instances/{digest[:2]}"
        target = f"{folder}/{digest}.dcm"
        try:
            try:
                os.link(self._path, target)
            except FileExistsError:
                # its writer may have been killed before it was durable
                os.fsync(file)
                Path(self._path).rename(target)
                self._kept = True
                sync_directory(folder)
            else:
                self._sync_new(file, target, folder)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise OutOfSpaceError("the disk is full") from error
            raise
        return StoredFile(relative, digest, self.size)

    def _sync_new(self, file: int, target: str, folder: str) -> None:
        durable = False
        try:
            os.unlink(self._path)  # noqa: PTH108 - of each object that comes
            self._kept = True
            self._spool.sync(file, folder)
            durable = True
        finally:
            if not durable:
                Path(target).unlink(missing_ok=True)

    def _usable(self) -> int:
        if self._trouble is not None:
            raise self._trouble
        if self._file is None:
            raise ValueError("the data set was given up")
        return self._file

    def discard(self) -> None:
        """Remove what is not kept; harmless when it is, or is gone already."""
        file, self._file = self._file, None
        if file is None:
            return
        os.close(file)
        if not self._kept:
            Path(self._path).unlink(missing_ok=True)


class Spool:
    """Files of received instances.

    Parameters
    ----------
    directory
        The storage directory; made with mode 0700.
    reserve_bytes
        Free space that must remain after a write.
    max_object_bytes
        Of one data set.
    """

    def __init__(self, directory: Path, reserve_bytes: int, max_object_bytes: int = 4 << 30) -> None:
        self.directory = directory
        self._max_object_bytes = max_object_bytes
        self._reserve_bytes = reserve_bytes
        self._syncs_slowly = False
        self._syncers = ThreadPoolExecutor(_SYNC_THREADS, thread_name_prefix="sync")
        self._incoming = directory / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True, mode=0o700)
        instances = directory / "instances"
        instances.mkdir(exist_ok=True, mode=0o700)
        # made beforehand, so that no file is acknowledged in a folder whose own name isn't durable yet
        for byte in range(256):
            (instances / f"{byte:02x}").mkdir(exist_ok=True, mode=0o700)
        for made in (instances, directory, directory.parent):
            sync_directory(made)

    def check_space(self, size: int) -> None:
        """Raise `OutOfSpaceError` if `size` more bytes would touch the reserve."""
        free = shutil.disk_usage(self.directory).free
        if free - size < self._reserve_bytes:
            raise OutOfSpaceError(f"{free >> 20} MiB free, reserve is {self._reserve_bytes >> 20} MiB")

    def begin(
        self, *, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, source_ae: str = ""
    ) -> Incoming:
        """Make ready for a data set that arrives in parts; what is named goes into its file meta information.

        Never raises for the disk: what happens is told when the data set is to be kept.
        """
        head = file_head(sop_class_uid, sop_instance_uid, transfer_syntax_uid, source_ae)
        return Incoming(self, str(self._incoming), head, transfer_syntax_uid, self._max_object_bytes)

    def write(
        self, dataset: bytes, *, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str
    ) -> StoredFile:
        """Make an encoded data set durable; see `Incoming.keep`.

        Parameters
        ----------
        dataset
            Encoded in `transfer_syntax_uid`, as the peer sent it.
        """
        self.check_space(len(dataset))
        incoming = self.begin(
            sop_class_uid=sop_class_uid,
            sop_instance_uid=sop_instance_uid,
            transfer_syntax_uid=transfer_syntax_uid,
        )
        try:
            incoming.write(memoryview(dataset))
            return incoming.keep()
        finally:
            incoming.discard()

    def sweep(self) -> int:
        """Remove what an interrupted write left behind; return how many files."""
        leftovers = list(self._incoming.iterdir())
        for leftover in leftovers:
            leftover.unlink()
        return len(leftovers)

    def stored(self) -> Iterator[str]:
        """Relative paths of all files that were kept, in no order."""
        for folder in (self.directory / "instances").iterdir():
            yield from (f"instances/{folder.name}/{path.name}" for path in folder.iterdir())

    def sync(self, descriptor: int, directory: str) -> None:
        """Make a file and the names in its directory durable, at the same time where that takes long."""
        start = time.monotonic()
        if self._syncs_slowly:
            try:
                names = self._syncers.submit(sync_directory, directory)
            except RuntimeError:  # no thread to be had
                os.fsync(descriptor)
                sync_directory(directory)
                return
            try:
                os.fsync(descriptor)
            finally:
                names.result()
        else:
            os.fsync(descriptor)
            sync_directory(directory)
        self._syncs_slowly = time.monotonic() - start > _SLOW_SYNC_S

    def find(self, relative: str, head_bytes: int) -> FoundFile | None:
        """Read a stored file of which nothing is known; None where its bytes aren't what its name says.

        Raises
        ------
        OSError
            It can't be read.
        """
        found = _read(self.absolute(relative), relative, head_bytes)
        return found if found is not None and Path(relative).stem == found.stored.sha256 else None

    def absolute(self, relative: str) -> Path:
        """Path of a stored file."""
        return self.directory / relative

    def set_aside(self, relative: str) -> str:
        """Move a damaged file out of the way, into a folder where retention leaves it its time.

        Returns
        -------
        str
            Where it is now, relative.
        """
        folder = self.directory / DAMAGED
        folder.mkdir(exist_ok=True, mode=0o700)
        source = self.directory / relative
        name = f"{DAMAGED}/{source.stem}.{secrets.token_hex(4)}{source.suffix}"
        source.rename(self.directory / name)
        for changed in (folder, source.parent, self.directory):
            sync_directory(changed)
        return name

    def remove(self, relative: str) -> None:
        """Delete a stored file; one that is gone already is fine."""
        (self.directory / relative).unlink(missing_ok=True)


def sync_directory(directory: Path | str) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def data_set_digest(path: Path) -> str | None:
    """SHA-256 that names the data set of any DICOM file, as in `StoredFile`; None where it is none.

    Raises
    ------
    OSError
        It can't be read.
    """
    found = _read(path, "", 0)
    return None if found is None else found.stored.sha256


def _read(path: Path, relative: str, head_bytes: int) -> FoundFile | None:
    """Read a DICOM file to its end, whatever its name says; None where it is something else."""
    with path.open("rb") as file:
        meta = read_file_meta(file.read(LARGEST))
        if meta is None:
            return None
        syntax = meta.texts.get(0x0010, "")
        digest = hashlib.sha256(syntax.encode("ascii", "replace") + b"\n")
        size = 0
        file.seek(meta.length)
        while part := file.read(_READ_AT_ONCE):
            digest.update(part)
            size += len(part)
        file.seek(meta.length)
        head = file.read(head_bytes)
    stored = StoredFile(relative, digest.hexdigest(), size)
    return FoundFile(stored, syntax, meta.texts.get(0x0016, ""), head)
