"""Write the DICOM Conformance Statement (PS3.2 Annex N): ``python -m conformance.statement``."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import jinja2
from pydicom.datadict import dictionary_description, tag_for_keyword
from pydicom.tag import Tag
from pydicom.uid import UID
from pynetdicom.sop_class import _STORAGE_CLASSES

from pacs_node import __version__

FOLDER = Path(__file__).parent
CLAIMS = FOLDER / "claims.toml"
STATEMENT = FOLDER / "statement.md"

_WORDS = {"source": "as in the source", "present": "always present, never empty"}
_KEYWORDS = {str(uid): keyword for keyword, uid in _STORAGE_CLASSES.items()}


def read_claims(path: Path = CLAIMS) -> dict[str, Any]:
    """Read the claims."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def render(claims: dict[str, Any]) -> str:
    """Return the statement as Markdown."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - Markdown of our own words, not a page
    )
    environment.filters.update(
        sop=_sop, sop_name=_sop_name, syntax=_syntax, attribute=_attribute, claimed=_claimed
    )
    storage = claims["acceptor"]["storage"]
    return environment.get_template("statement.md.j2").render(
        **claims,
        version=__version__,
        analysed=storage["analysed"],
        stored=[*storage["analysed"], *storage["other"]],
        sent=sorted({item["sop_class"] for item in claims["object"]}),
    )


def _sop_name(uid: str) -> str:
    """Name of a SOP class; pydicom 3.0 doesn't know the newest ones, pynetdicom has keywords for them."""
    name = UID(uid).name
    return name if name != uid else re.sub(r"(?<=[a-z])(?=[A-Z])", " ", _KEYWORDS.get(uid, uid))


def _sop(uid: str) -> str:
    return f"{_sop_name(uid)} ({uid})"


def _syntax(uid: str) -> str:
    return f"{UID(uid).name} ({uid})"


def _attribute(path: str) -> str:
    """Name and tag of an attribute; of one in a sequence, those of the sequence before it."""
    named = []
    for keyword in path.split("."):
        tag = Tag(tag_for_keyword(keyword) or 0)
        named.append(f"{dictionary_description(tag)} ({tag.group:04X},{tag.element:04X})")
    return " > ".join(named)


def _claimed(value: str) -> str:
    return _WORDS.get(value, f"`{value}`")


if __name__ == "__main__":
    STATEMENT.write_text(render(read_claims()), encoding="utf-8")
    sys.stdout.write(f"wrote {STATEMENT}\n")
