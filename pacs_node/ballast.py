"""Room for the worst hour: a file that holds nothing and is given up when the disk is full.

The listener stops at its reserve, but others fill disks too. A database without room can't even write down
that something was delivered; with what the ballast gives back, deliveries, audit and page go on, and a node
starts on a disk that is full.
"""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)


class Ballast:
    """The file ``ballast`` of a storage directory.

    Parameters
    ----------
    directory
        The storage directory.
    size
        Bytes; 0 for none. It is given up when less than a quarter of that is free, and made again when twice
        as much is.
    """

    def __init__(self, directory: Path, size: int) -> None:
        self._directory = directory
        self._path = directory / "ballast"
        self._size = size

    def look(self) -> None:
        """Give it up, or make it, as the free space asks for; call it often."""
        free = self._free()
        if self._path.exists():
            if free < self._size // 4:
                self._path.unlink(missing_ok=True)
                logger.critical("the disk is full: the ballast is given up", extra={"free_mib": free >> 20})
            elif self._path.stat().st_size != self._size:
                # another size was set; the next look makes it anew
                self._path.unlink(missing_ok=True)
        elif self._size and free >= 2 * self._size:
            self._make()

    @property
    def is_given_up(self) -> bool:
        """Whether what is free is kept for rows: it was given up, or there is no room to make it."""
        return bool(self._size) and not self._path.exists() and self._free() < 2 * self._size

    def _free(self) -> int:
        return shutil.disk_usage(self._directory).free

    def _make(self) -> None:
        half_made = self._path.with_suffix(".part")
        try:
            descriptor = os.open(half_made, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self._size)
            finally:
                os.close(descriptor)
            half_made.rename(self._path)
        except OSError:
            # there is less room than was said; the next look tries again
            with suppress(OSError):
                half_made.unlink(missing_ok=True)
