"""Received instances as durable files, named by content: no byte of a peer gets into a path."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID

from pacs_node import __version__
from pacs_node.errors import OutOfSpaceError

IMPLEMENTATION_CLASS_UID = UID("2.25.184562349201867712354298617237645120934")
IMPLEMENTATION_VERSION_NAME = f"PACSNODE_{__version__}"[:16]

_PREAMBLE = bytes(128) + b"DICM"


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


class Spool:
    """Files of received instances.

    Parameters
    ----------
    directory
        The storage directory; made with mode 0700.
    reserve_bytes
        Free space that must remain after a write.
    """

    def __init__(self, directory: Path, reserve_bytes: int) -> None:
        self.directory = directory
        self._reserve_bytes = reserve_bytes
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

    def write(
        self, dataset: bytes, *, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str
    ) -> StoredFile:
        """Make an encoded data set durable: file synced, renamed, directory synced.

        Parameters
        ----------
        dataset
            Encoded in `transfer_syntax_uid`, as the peer sent it.

        Raises
        ------
        OutOfSpaceError
            The reserve is reached, or the disk is full; nothing is left behind.
        OSError
            The disk failed; nothing that was not there before is to be trusted.
        """
        self.check_space(len(dataset))
        digest = hashlib.sha256(transfer_syntax_uid.encode("ascii") + b"\n" + dataset).hexdigest()
        relative = f"instances/{digest[:2]}/{digest}.dcm"
        target = self.directory / relative
        try:
            if not target.exists():
                meta = _file_meta(sop_class_uid, sop_instance_uid, transfer_syntax_uid)
                self._write_durably(target, (_PREAMBLE, meta, dataset))
            # also for a file that was there: its writer may have been killed before this
            sync_directory(target.parent)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise OutOfSpaceError("the disk is full") from error
            raise
        return StoredFile(relative, digest, len(dataset))

    def _write_durably(self, target: Path, parts: Iterable[bytes]) -> None:
        temporary = self._incoming / f"{uuid.uuid4().hex}.part"
        try:
            with temporary.open("xb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def sweep(self) -> int:
        """Remove what an interrupted write left behind; return how many files."""
        leftovers = list(self._incoming.iterdir())
        for leftover in leftovers:
            leftover.unlink()
        return len(leftovers)

    def absolute(self, relative: str) -> Path:
        """Path of a stored file."""
        return self.directory / relative

    def remove(self, relative: str) -> None:
        """Delete a stored file; one that is gone already is fine."""
        (self.directory / relative).unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _file_meta(sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """PS3.10 7.1, with nothing in it that differs from one reception to the next."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    meta.MediaStorageSOPInstanceUID = UID(sop_instance_uid)
    meta.TransferSyntaxUID = UID(transfer_syntax_uid)
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    buffer = DicomBytesIO()
    write_file_meta_info(buffer, meta, enforce_standard=True)
    return buffer.getvalue()
