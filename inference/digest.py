"""The sha256 of a file. Loads no torch: the registry asks in processes that compute nothing."""

from __future__ import annotations

import hashlib
import re
from importlib.resources.abc import Traversable

_BLOCK = 1 << 20


def sha256_of(file: Traversable) -> str:
    """Hex digest of a file's content (FIPS 180-4), read in blocks.

    Raises
    ------
    OSError
        The file can't be read.
    """
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def is_sha256(text: str) -> bool:
    """Whether a text is a sha256 in hex, of either case."""
    return re.fullmatch(r"[0-9a-fA-F]{64}", text) is not None
