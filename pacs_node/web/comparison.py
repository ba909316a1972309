"""What the page shows of the comparison with a prior examination, read from ``result.json``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from inference.uids import is_uid
from pacs_node.web.fields import mapping, mappings, number, text, texts, whole
from pacs_node.web.slices import Stack, read_stack

_UNREMARKABLE = frozenset({"stable"})


@dataclass(frozen=True, slots=True)
class Side:
    """A nodule in one of the examinations; lengths in mm, volume in mm3, None where the file doesn't say.

    Parameters
    ----------
    marked
        Whether the result has a finding for it.
    """

    name: str
    site: str
    marked: bool
    long_axis_mm: float | None
    short_axis_mm: float | None
    mean_diameter_mm: float | None
    volume_mm3: float | None


@dataclass(frozen=True, slots=True)
class PairView:
    """A nodule in two examinations, or in one of them.

    Parameters
    ----------
    words
        What became of it.
    volume_words
        What became of it by its volume alone.
    picture
        Name of the file with both dates.
    unseen
        Why one of the examinations has no nodule: it is not seen, or its place is not shown.
    """

    words: str
    reason: str
    volume_words: str
    current: Side | None
    prior: Side | None
    volume_change: float | None
    doubling_days: float | None
    picture: str
    stack: Stack | None
    prior_stack: Stack | None
    unseen: str

    @property
    def name(self) -> str:
        """What it is called now, or was then."""
        side = self.current or self.prior
        return "" if side is None else side.name

    @property
    def site(self) -> str:
        """Where it is, or was."""
        side = self.current or self.prior
        return "" if side is None else side.site

    @property
    def marked(self) -> bool:
        """Whether the result has a finding for it."""
        return self.current is not None and self.current.marked

    @property
    def notable(self) -> bool:
        """Whether it is anything but unchanged."""
        return self.words not in _UNREMARKABLE


@dataclass(frozen=True, slots=True)
class ComparisonView:
    """An examination against an earlier one; `reason` says why it could not be compared."""

    prior_study_uid: str
    prior_date: str
    date: str
    days: int | None
    reason: str
    sentences: tuple[str, ...]
    registration: str
    pairs: tuple[PairView, ...]


def read_comparison(found: dict[str, Any]) -> ComparisonView | None:
    """Read the block of a result; None where it has none, or names no study."""
    prior = mapping(found, "prior")
    # it goes into the audit record
    if not is_uid(text(prior, "study_uid")):
        return None
    return ComparisonView(
        prior_study_uid=text(prior, "study_uid"),
        prior_date=text(prior, "date"),
        date=text(found, "date"),
        days=whole(found, "days"),
        reason=text(found, "reason"),
        sentences=texts(found, "sentences"),
        registration=_registration(mapping(found, "registration")),
        pairs=tuple(_pair(item) for item in mappings(found, "pairs")),
    )


def _registration(found: dict[str, Any]) -> str:
    overlap, correlation, share = (number(found, key) for key in ("overlap", "correlation", "common_share"))
    if overlap is None or correlation is None or share is None:
        return ""
    shown = f"the prior examination shows {100 * share:.0f} % of these lungs"
    return f"overlap {overlap:.3f}, correlation {correlation:.3f}; {shown}"


def _pair(item: dict[str, Any]) -> PairView:
    stacks = mapping(item, "stacks")
    return PairView(
        words=text(item, "words"),
        reason=text(item, "reason"),
        volume_words=text(item, "volume_words"),
        current=_side(mapping(item, "current")),
        prior=_side(mapping(item, "prior")),
        volume_change=number(item, "volume_change"),
        doubling_days=number(item, "doubling_days"),
        picture=text(item, "picture"),
        stack=read_stack(mapping(stacks, "current")),
        prior_stack=read_stack(mapping(stacks, "prior")),
        unseen="not shown" if text(item, "standing").startswith("outside") else "not seen",
    )


def _side(found: dict[str, Any]) -> Side | None:
    if not text(found, "tracking_id"):
        return None
    m = mapping(found, "measurements")
    return Side(
        name=text(found, "tracking_id"),
        site=text(found, "site"),
        marked=whole(found, "number") is not None,
        long_axis_mm=number(m, "long_axis_mm"),
        short_axis_mm=number(m, "short_axis_mm"),
        mean_diameter_mm=number(m, "mean_diameter_mm"),
        volume_mm3=number(m, "volume_mm3"),
    )
