"""Acknowledgements of HL7 v2 messages (chapter 2, 2.14; original mode)."""

from __future__ import annotations

import re
import uuid
from datetime import datetime

_NODE = "CTNODE"


def acknowledgement(
    code: str, control_id: str, at: datetime, condition: int = 0, sentence: str = ""
) -> bytes:
    """Return an ACK message.

    Parameters
    ----------
    code
        ``AA``, ``AE`` or ``AR``.
    control_id
        MSH-10 of the message; "" where it could not be read.
    condition, sentence
        Of table HL70357, and for people; 0 and "" for none.
    """
    own = uuid.uuid4().hex[:20]
    now = f"{at:%Y%m%d%H%M%S}+0000"
    lines = [f"MSH|^~\\&|{_NODE}||||{now}||ACK|{own}|P|2.5.1", f"MSA|{code}|{_plain(control_id)}"]
    if condition:
        lines.append(f"ERR|||{condition}^^HL70357|E||||{_plain(sentence)}")
    return ("\r".join(lines) + "\r").encode("ascii")


def _plain(text: str) -> str:
    """Text without any character that separates, or that isn't ASCII."""
    return re.sub(r"[^ -~]|[|^~\\&]", " ", text)
