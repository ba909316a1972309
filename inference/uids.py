"""Deterministic UIDs: the same content always gets the same UID, so a rerun never adds a second object."""

from __future__ import annotations

import re
import uuid

_NAMESPACE = uuid.UUID("6f0f6a4e-4c0b-5d9b-9a53-5a2f0d1f7c11")


_UID = re.compile(r"[0-9.]{1,64}")


def is_uid(text: str) -> bool:
    """Whether a text may stand where a UID stands (PS3.5 9.1): digits and dots, 64 at most, so no path.

    Components with leading zeros pass: senders write them, and what they name must be found again.
    """
    return _UID.fullmatch(text) is not None


def derived_uid(*parts: str) -> str:
    """Return the ``2.25.`` UID (PS3.5 B.2) of the name-based UUID of `parts`.

    Parameters
    ----------
    *parts
        What identifies the object: source series UID, input digest, pipeline version, role ...

    Returns
    -------
    str
        A UID of at most 44 characters.
    """
    name = "\x1f".join(parts)
    return f"2.25.{uuid.uuid5(_NAMESPACE, name).int}"
