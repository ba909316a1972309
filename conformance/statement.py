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

#: services with more SOP classes say how many
_FEW = 5
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
        sop=_sop, sop_name=_sop_name, syntax=_syntax, attribute=_attribute, claimed=_claimed, served=_served
    )
    storage = claims["acceptor"]["storage"]
    values = claims | {
        "service": services(claims),
        "contexts": [_context(row) for row in claims["initiator"]["context"].values()],
    }
    return environment.get_template("statement.md.j2").render(
        **values,
        version=__version__,
        analysed=storage["analysed"],
        stored=accepted_classes(claims),
    )


def accepted_classes(claims: dict[str, Any]) -> list[str]:
    """Return the storage SOP classes that the listener accepts."""
    storage = claims["acceptor"]["storage"]
    return [*storage["analysed"], *storage["other"]]


def result_classes(claims: dict[str, Any]) -> list[str]:
    """Return the SOP classes of the results."""
    return sorted({item["sop_class"] for item in claims["object"]})


def services(claims: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the services; `user`, `provider`, `neither` of each are lists of SOP classes or transactions."""
    lists = {"results": result_classes(claims), "accepted": accepted_classes(claims)}
    out = []
    for row in claims["service"]:
        named = {key: row.get(key, []) for key in ("user", "provider", "neither")}
        resolved = {
            key: lists[value] if isinstance(value, str) else list(value) for key, value in named.items()
        }
        out.append({"name": row["name"], "when": row.get("when", "")} | resolved)
    return out


def _context(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the presentation contexts proposed, in words."""
    classes, syntaxes = row["sop_classes"], row["transfer_syntaxes"]
    return {
        "of": "each SOP class of Annex A" if classes == "results" else ", ".join(map(_sop, classes)),
        "short": "" if classes == "results" else ", ".join(map(_sop_name, classes)),
        "syntaxes": "those of Annex C" if syntaxes == "accepted" else "; ".join(map(_syntax, syntaxes)),
        "apart": row.get("apart", False),
        "role": row.get("role", {"scu": True, "scp": False}),
        "when": row["when"],
    }


def _served(names: list[str]) -> str:
    return f"yes, {len(names)} SOP classes" if len(names) > _FEW else "yes" if names else "no"


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
