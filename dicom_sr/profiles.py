"""Which objects a destination gets and how they are encoded.

A `Form` is one object of a result in one encoding. Its bytes are made once; every destination that wants
the form gets the same ones. ``seg`` and ``sr`` are the forms that every result has; what differs from them
is named after the colon, as in ``seg:all-frames`` or ``sr:enhanced``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

ORDER = ("seg", "sr", "sc", "pdf")
"""Kinds of object in the order of sending: masks before the report that refers to them."""
STANDARD = ("seg", "sr")
"""Forms that are made of every result, whoever it goes to."""

_ALL_FRAMES, _LABELMAP, _ENHANCED = "all-frames", "labelmap", "enhanced"
_WORDS = {_ALL_FRAMES: "all frames", _LABELMAP: "label map", _ENHANCED: "Enhanced SR"}


@dataclass(frozen=True, slots=True)
class Profile:
    """What a kind of receiver gets.

    Parameters
    ----------
    objects
        Kinds, a part of `ORDER`.
    segmentation
        ``binary`` (Segmentation Storage) or ``labelmap`` (Label Map Segmentation Storage).
    empty_frames
        Whether the SEG has frames without a voxel too.
    report
        ``comprehensive-3d`` or ``enhanced``: the SOP class of the SR; its content is the same.
    why
        One sentence for the site.
    """

    objects: tuple[str, ...]
    segmentation: str = "binary"
    empty_frames: bool = False
    report: str = "comprehensive-3d"
    why: str = ""

    @property
    def forms(self) -> tuple[str, ...]:
        """Names of the forms, in the order of sending."""
        return tuple(self._form(kind) for kind in ORDER if kind in self.objects)

    def _form(self, kind: str) -> str:
        mask = [_LABELMAP] * (self.segmentation == "labelmap") + [_ALL_FRAMES] * self.empty_frames
        document = [_ENHANCED] * (self.report == "enhanced")
        # a report names the SEG that it refers to, so one of another SEG is another report
        return str(Form(kind, tuple({"seg": mask, "sr": document + mask}.get(kind, []))))


@dataclass(frozen=True, slots=True)
class Form:
    """One kind of object in one encoding; without options it is the standard one."""

    kind: str
    options: tuple[str, ...] = ()

    @classmethod
    def parse(cls, name: str) -> Form:
        """Read ``sr:enhanced+all-frames``.

        Raises
        ------
        ValueError
            No kind or option of this name.
        """
        kind, _, words = name.partition(":")
        options = tuple(words.split("+")) if words else ()
        if kind not in ORDER or not set(options) <= _WORDS.keys():
            raise ValueError(f"{name!r} is no form of a result; kinds are {', '.join(ORDER)}")
        return cls(kind, options)

    def __str__(self) -> str:
        return f"{self.kind}:{'+'.join(self.options)}" if self.options else self.kind

    @property
    def labelmap(self) -> bool:
        """SEG as a label map, or a report that refers to such a one."""
        return _LABELMAP in self.options

    @property
    def all_frames(self) -> bool:
        """SEG with empty frames, or a report that refers to such a one."""
        return _ALL_FRAMES in self.options

    @property
    def enhanced(self) -> bool:
        """SR as Enhanced SR."""
        return _ENHANCED in self.options

    @property
    def mask(self) -> Form:
        """The form of the SEG that this form is or refers to."""
        return Form("seg", tuple(option for option in self.options if option != _ENHANCED))

    @property
    def without_mask(self) -> Form:
        """The form of a report that refers to no SEG, where this is a report; otherwise itself."""
        options = tuple(option for option in self.options if option == _ENHANCED)
        return Form("sr", options) if self.kind == "sr" else self

    @property
    def words(self) -> str:
        """For people: ``SEG (all frames)``."""
        options = ", ".join(_WORDS[option] for option in self.options)
        return f"{self.kind.upper()} ({options})" if options else self.kind.upper()


PROFILES: dict[str, Profile] = {
    "standard": Profile(("seg", "sr"), why="Binary SEG without empty frames, Comprehensive 3D SR."),
    "ohif": Profile(("seg", "sr"), why="As standard, which is what is tested with OHIF."),
    "slicer": Profile(
        ("seg", "sr"),
        empty_frames=True,
        why="With all frames dcmqi, which Slicer reads SEG with, makes a volume of the size of the CT.",
    ),
    "weasis": Profile(
        ("seg", "sr"),
        report="enhanced",
        why="Enhanced SR: it is in Weasis's default list of storage classes, the Comprehensive ones are not.",
    ),
    "legacy": Profile(
        ("seg", "sr", "sc", "pdf"),
        report="enhanced",
        why="For a PACS that shows no SR: pictures as Secondary Capture and the report as PDF, too.",
    ),
}
"""What the profiles of a destination mean."""


def form_name(kind: str, encoding: str) -> str:
    """Name of the form of an object of this kind, whose options are joined by ``+`` or empty."""
    return f"{kind}:{encoding}" if encoding else kind


def union(forms: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """All forms that must be made: the standard ones and what anybody wants, each once, in sending order."""
    return in_order((*STANDARD, *(name for names in forms for name in names)))


def in_order(forms: Iterable[str]) -> tuple[str, ...]:
    """Each form once and in the order of sending, with the SEG that a report among them refers to."""
    wanted = dict.fromkeys(forms)
    wanted |= dict.fromkeys(str(Form.parse(name).mask) for name in wanted if Form.parse(name).kind == "sr")
    return tuple(sorted(wanted, key=lambda name: ORDER.index(Form.parse(name).kind)))


def chosen(wanted: Iterable[str], made: Collection[str]) -> tuple[str, ...]:
    """Which of the forms that were made a receiver gets.

    Parameters
    ----------
    wanted
        The forms of its profile.
    made
        The forms of one result. Without findings there is no SEG, and its report refers to none: then
        there is only one report for all forms of the SEG.
    """
    without_mask = not any(name.partition(":")[0] == "seg" for name in made)
    names = [str(Form.parse(name).without_mask) if without_mask else name for name in wanted]
    return tuple(name for name in names if name in made)
