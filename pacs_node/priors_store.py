"""Where fetched examinations lie until the result is made: a folder for each attempt, with a limit.

They are no studies of this node: no row names them, and nothing but their own request reads them.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Collection
from pathlib import Path

from pacs_node.errors import OutOfSpaceError

logger = logging.getLogger(__name__)

FOLDER = "priors"
"""Below the storage directory."""


class PriorFolder:
    """The files that are fetched for one attempt at a job.

    Parameters
    ----------
    path
        Made at the first file, with mode 0700; its name is nobody else's.
    max_bytes
        Of all files.
    reserve_bytes
        Free space that must remain.
    """

    def __init__(self, path: Path, *, max_bytes: int, reserve_bytes: int) -> None:
        self.path = path
        self._max_bytes, self._reserve_bytes = max_bytes, reserve_bytes
        self._lock = threading.Lock()
        self._files = 0
        self._closed = False
        self.size = 0
        """Bytes so far."""

    @property
    def left(self) -> int:
        """Bytes that may still come."""
        return self._max_bytes - self.size

    def write(self, *parts: bytes) -> Path:
        """Write the parts of one file, one after the other; its name is a number of ours.

        Raises
        ------
        OutOfSpaceError
            It would be too much.
        OSError
            The disk failed, or the folder has been removed.
        """
        size = sum(map(len, parts))
        with self._lock:
            if self._closed:
                raise FileNotFoundError("the folder has been removed")
            if size > self.left:
                raise OutOfSpaceError(f"an earlier examination is larger than {self._max_bytes >> 20} MB")
            if not self._files:
                self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            free = shutil.disk_usage(self.path).free
            if free - size < self._reserve_bytes:
                raise OutOfSpaceError(
                    f"{free >> 20} MB are free, and {self._reserve_bytes >> 20} MB must stay so"
                )
            self.size += size
            self._files += 1
            path = self.path / f"{self._files:06d}.dcm"
            with path.open("xb") as file:
                for part in parts:
                    file.write(part)
        return path

    def discard(self, paths: Collection[Path]) -> None:
        """Remove files that turned out to be of no use, and give their space back."""
        with self._lock:
            for path in paths:
                if path.parent == self.path and path.exists():
                    self.size -= path.stat().st_size
                    path.unlink()

    def remove(self) -> None:
        """Remove all of it; nothing can be written any more."""
        with self._lock:
            self._closed = True
        shutil.rmtree(self.path, ignore_errors=True)


def sweep(directory: Path, in_work: Collection[str]) -> int:
    """Remove what workers that were killed left behind; return how many folders.

    Parameters
    ----------
    directory
        The storage directory.
    in_work
        Names of the folders of attempts whose lease is held.
    """
    left = [path for path in (directory / FOLDER).glob("*") if path.name not in in_work]
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    if left:
        logger.info("removed fetched examinations of interrupted attempts", extra={"folders": len(left)})
    return len(left)
