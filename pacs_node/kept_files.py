"""Files that jobs made, for those who may see them: found by number, never outside the storage directory."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from pacs_node.db import Artifact, Database
from pacs_node.errors import NodeError
from pacs_node.queries import LARGEST_ID

logger = logging.getLogger(__name__)

#: of the kinds that a browser may show or a viewer open; all others are only downloaded
MEDIA_TYPES = {
    "seg": "application/dicom",
    "sr": "application/dicom",
    "sc": "application/dicom",
    "pdf": "application/dicom",
    "json": "application/json",
    "html": "text/html; charset=utf-8",
    "png": "image/png",
    "stack": "image/webp",
}
OTHER = "application/octet-stream"


class NoFileError(NodeError):
    """There is no such file, or no longer."""


class ChangedFileError(NodeError):
    """The file differs from its record."""


@dataclass(frozen=True, slots=True)
class KeptFile:
    """A file that may be handed out.

    Parameters
    ----------
    id
        Of its row.
    path
        Where it is.
    sop_instance_uid
        None where it is no DICOM object.
    """

    id: int
    kind: str
    path: Path
    study_uid: str
    sop_instance_uid: str | None

    @property
    def media_type(self) -> str:
        """What to call its content."""
        return MEDIA_TYPES.get(self.kind, OTHER)

    @property
    def disposition(self) -> str | None:
        """``Content-Disposition``, None where a browser may show it."""
        if self.sop_instance_uid is not None:
            return f'attachment; filename="{self.kind}-{self.id}.dcm"'
        return None if self.kind in MEDIA_TYPES else "attachment"


def kept_file(database: Database, directory: Path, number: int) -> KeptFile:
    """Find a file; a DICOM object is held against its record.

    Parameters
    ----------
    directory
        The storage directory.
    number
        Of the row.

    Raises
    ------
    NoFileError
        Unknown, removed or missing.
    ChangedFileError
        Its bytes are other ones than the node has recorded.
    """
    with database.read() as session:
        row = session.get(Artifact, number) if 0 <= number <= LARGEST_ID else None
        study_uid = "" if row is None else row.job.series.study.study_uid
    if row is None:
        raise NoFileError("There is no such file.")
    if row.path is None:
        raise NoFileError("This file was removed, as the retention settings say.")
    path = path_inside(directory, row.path)
    if path is None:
        logger.error("artifact is missing", extra={"artifact": row.id})
        raise NoFileError("This file is missing on disk.")
    is_object = row.sop_instance_uid is not None
    if is_object and hashlib.sha256(path.read_bytes()).hexdigest() != row.sha256:
        logger.error("artifact differs from its record", extra={"artifact": row.id})
        raise ChangedFileError("This file on disk differs from what the node has recorded.")
    return KeptFile(row.id, row.kind, path, study_uid, row.sop_instance_uid)


def path_inside(directory: Path, relative: str) -> Path | None:
    """Where an existing file of a directory is; None for any other path."""
    root = directory.resolve()
    path = (root / relative).resolve()
    return path if path.is_relative_to(root) and path.is_file() else None
