"""One finding of ``pacs-node doctor``: how bad, what, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is."""

    GOOD = "ok"
    WARNING = "warning"
    PROBLEM = "PROBLEM"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found.

    Parameters
    ----------
    about
        The part of the node.
    sentence
        What is so.
    todo
        What to do about it; empty only where nothing is to be done.
    """

    level: Level
    about: str
    sentence: str
    todo: str = ""
