"""HL7 v2 messages that tell the clinical record: ORM^O01, OMI^O23 and ORU^R01, of exactly one patient.

Only PID, IPC, ORC, OBR, OBX and DG1 are looked at. Whatever is wrong ends in a `RefusedError` that says what
the sender is answered; nothing else is raised, whatever the bytes are.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import hl7

from inference.record import Sex
from inference.record_person import Person
from pacs_node.errors import NodeError
from pacs_node.record_codes import Coding, is_cancer_elsewhere, is_emphysema
from pacs_node.record_facts import CANCER, Answer, Fact, day_of, observed

KINDS = frozenset(("ORM^O01", "OMI^O23", "ORU^R01"))
ACCESSION = ("IPC-1", "OBR-18", "OBR-3", "ORC-3", "OBR-2", "ORC-2")
"""Where an accession number is, the first that is filled counts."""

_READ = frozenset(("MSH", "PID", "IPC", "ORC", "OBR", "OBX", "DG1"))
_LONGEST_SEGMENT, _MOST_SEGMENTS = 16_384, 2_000
_LONGEST_KEY = 64
#: python-hl7 makes an object of each piece between them
_MOST_SEPARATORS = 50_000
_CHARSETS = {
    "": "utf-8",
    "ASCII": "ascii",
    "UNICODE UTF-8": "utf-8",
    "UTF-8": "utf-8",
    "8859/1": "iso-8859-1",
    "8859/2": "iso-8859-2",
    "8859/5": "iso-8859-5",
    "8859/7": "iso-8859-7",
    "8859/9": "iso-8859-9",
    "8859/15": "iso-8859-15",
}
_BIRTH = re.compile(r"(\d{4}(?:\d\d(?:\d\d)?)?)(?:\d{2,6}(?:\.\d+)?)?(?:[+-]\d{4})?")
#: what python-hl7 raises for what is no message
_MALFORMED = (hl7.HL7Exception, LookupError, ValueError, AttributeError, TypeError, RecursionError)

#: conditions of table HL70357
MISSING, WRONG_TYPE, UNSUPPORTED, VERSION, NOT_NOW = 101, 102, 200, 203, 207


class RefusedError(NodeError):
    """A message isn't taken.

    Parameters
    ----------
    code
        ``AR``: never in this form; ``AE``: its content can't be used.
    condition
        Of table HL70357.
    sentence
        Names no patient.
    control_id
        MSH-10, as far as it could be read.
    """

    def __init__(self, code: str, condition: int, sentence: str, control_id: str = "") -> None:
        super().__init__(sentence)
        self.code, self.condition, self.sentence, self.control_id = code, condition, sentence, control_id


@dataclass(frozen=True, slots=True)
class OrderedFact:
    """A fact and the accession number of its order, "" where the message has none."""

    fact: Fact
    accession_number: str


@dataclass(frozen=True, slots=True)
class ClinicalMessage:
    """What one message told.

    Parameters
    ----------
    sender
        MSH-3 and MSH-4.
    kind
        Such as ``ORU^R01``.
    left_out
        How many values made no sense.
    """

    sender: str
    control_id: str
    kind: str
    person: Person
    facts: tuple[OrderedFact, ...]
    left_out: int

    @property
    def digest(self) -> str:
        """SHA-256 of what it says: the same for a repetition at another time."""
        parts = (self.person.patient_id, self.person.birth_date, self.person.sex, self.kind, self.facts)
        return hashlib.sha256(repr(parts).encode("utf-8")).hexdigest()


def read_message(
    data: bytes, site: Mapping[Coding, str], accession: Sequence[str] = ACCESSION, authority: str = ""
) -> ClinicalMessage:
    """Read one message.

    Parameters
    ----------
    data
        Without the bytes of MLLP around it.
    site
        The site's own codes -> item.
    accession
        Fields that may have the accession number, such as ``OBR-18``.
    authority
        CX.4 of the patient identifier that is the images' Patient ID; empty where there is only one.

    Raises
    ------
    RefusedError
        It can't be used.
    """
    control_id = control_id_of(data)
    try:
        return _Reader(_parsed(data), site).message(accession, authority)
    except RefusedError as error:
        raise RefusedError(error.code, error.condition, error.sentence, control_id) from None
    except _MALFORMED:
        raise RefusedError("AR", WRONG_TYPE, "The message can't be read.", control_id) from None


def control_id_of(data: bytes) -> str:
    """MSH-10, without reading the message; "" where there is none that could be repeated."""
    head = data[:1024].decode("ascii", "replace").partition("\r")[0]
    fields = head.split(head[3:4]) if head.startswith("MSH") and len(head) > 3 else []
    found = fields[9].strip() if len(fields) > 9 else ""
    return found if re.fullmatch(r"[A-Za-z0-9._:/ -]{1,64}", found) else ""


def _byte(number: int) -> bytes:
    return bytes([number])


def _parsed(data: bytes) -> Any:
    found = re.match(rb"MSH([!-/:-@\[-`{-~])([!-/:-@\[-`{-~]{4,5})\1", data)
    if found is None:
        raise RefusedError("AR", MISSING, "The message doesn't begin with MSH and its separators.")
    if len({*found[1], *found[2]}) != len(found[1] + found[2]):
        raise RefusedError("AR", WRONG_TYPE, "MSH-1 and MSH-2 name a separator twice.")
    lines = re.split(rb"\r\n|\r|\n", data)
    separator = lines[0][3:4]
    head = lines[0].split(separator)
    charset = head[17].split(head[1][1:2] or b"~")[0].decode("ascii", "replace") if len(head) > 17 else ""
    if charset.strip() not in _CHARSETS:
        raise RefusedError("AR", WRONG_TYPE, "MSH-18 names a character set that isn't read here.")
    kept = [line for line in lines if line[:3].decode("ascii", "replace") in _READ]
    if len(kept) > _MOST_SEGMENTS:
        raise RefusedError("AR", WRONG_TYPE, f"More than {_MOST_SEGMENTS} segments.")
    # a picture in an OBX is as long as it likes, but tells nothing here
    kept = [line for line in kept if len(line) <= _LONGEST_SEGMENT]
    if sum(line.count(one) for line in kept for one in (found[1], *map(_byte, found[2]))) > _MOST_SEPARATORS:
        raise RefusedError("AR", WRONG_TYPE, f"More than {_MOST_SEPARATORS} separators.")
    try:
        text = b"\r".join(kept).decode(_CHARSETS[charset.strip()])
    except UnicodeDecodeError:
        raise RefusedError("AR", WRONG_TYPE, "The message isn't in the character set of MSH-18.") from None
    return hl7.parse(text)


class _Reader:
    """Values of a parsed message."""

    def __init__(self, parsed: Any, site: Mapping[Coding, str]) -> None:
        self._parsed, self._site = parsed, site
        self._msh = self._all("MSH")[0]

    def _all(self, name: str) -> list[Any]:
        return [one for one in self._parsed if str(one[0]) == name]

    def _repeated(self, segment: Any, field: int) -> list[str]:
        raw = str(segment[field]) if len(segment) > field else ""
        return raw.split(self._parsed.separators[2]) if raw else []

    def _parts(self, text: str) -> list[str]:
        """Components, the first subcomponent of each, unescaped; HL7's "" is nothing."""
        separators = self._parsed.separators
        firsts = (part.split(separators[4])[0] for part in text.split(separators[3]))
        return ["" if one == '""' else self._parsed.unescape(one).strip() for one in firsts]

    def _value(self, segment: Any, field: int, component: int = 1) -> str:
        repetitions = self._repeated(segment, field)
        parts = self._parts(repetitions[0]) if repetitions else []
        return parts[component - 1] if len(parts) >= component else ""

    def message(self, accession: Sequence[str], authority: str) -> ClinicalMessage:
        kind = f"{self._value(self._msh, 9)}^{self._value(self._msh, 9, 2)}"
        if len(self._all("MSH")) != 1:
            raise RefusedError("AR", WRONG_TYPE, "There is more than one MSH.")
        if kind not in KINDS:
            raise RefusedError("AR", UNSUPPORTED, f"Taken are {', '.join(sorted(KINDS))}.")
        if not self._value(self._msh, 12).startswith("2."):
            raise RefusedError("AR", VERSION, "MSH-12 isn't a version 2 of HL7.")
        control_id = _key(self._value(self._msh, 10), "MSH-10")
        sender = f"{self._value(self._msh, 3)}|{self._value(self._msh, 4)}"[:200]
        if not sender.isprintable():
            raise RefusedError("AR", WRONG_TYPE, "MSH-3 or MSH-4 has characters that can't be printed.")
        person = self._person(authority)
        facts, left_out = self._facts(kind, accession)
        return ClinicalMessage(sender, control_id, kind, person, tuple(facts), left_out)

    def _person(self, authority: str) -> Person:
        found = self._all("PID")
        if len(found) != 1:
            raise RefusedError("AE", MISSING, f"There must be one PID, not {len(found)}.")
        identifiers = {
            parts[0]
            for text in self._repeated(found[0], 3)
            if (parts := self._parts(text))[0] and (not authority or [*parts, "", "", ""][3] == authority)
        }
        if len(identifiers) != 1:
            many = "more than one patient identifier" if identifiers else "no patient identifier"
            raise RefusedError("AE", MISSING, f"PID-3 has {many} that could be the images'.")
        born = _BIRTH.fullmatch(self._value(found[0], 7))
        sex = {"F": Sex.FEMALE, "M": Sex.MALE}.get(self._value(found[0], 8).upper())
        return Person(_key(identifiers.pop(), "PID-3"), born[1] if born else "", sex)

    def _facts(self, kind: str, accession: Sequence[str]) -> tuple[list[OrderedFact], int]:
        facts: list[OrderedFact] = []
        left_out = 0
        for order, segment, seen in self._orders(accession):
            name = str(segment[0])
            told = self._observation(segment, seen, kind) if name == "OBX" else self._diagnosis(segment, kind)
            left_out += told is not None and not isinstance(told, Fact)
            if isinstance(told, Fact):
                facts.append(OrderedFact(told, order))
        return facts, left_out

    def _orders(self, accession: Sequence[str]) -> Iterator[tuple[str, Any, date | None]]:
        """Each OBX and DG1 with the accession number of the order around it and the day of its OBR."""
        group: list[Any] = []
        waiting: list[Any] = []
        for segment in self._parsed:
            name = str(segment[0])
            # an order begins with ORC, or with OBR where it has none
            if name == "ORC" or (name == "OBR" and any(str(one[0]) == "OBR" for one in group)):
                yield from self._of(group, waiting, accession)
                group, waiting = [], []
            if name in {"ORC", "OBR", "IPC"}:
                group.append(segment)
            elif name in {"OBX", "DG1"}:
                waiting.append(segment)
        yield from self._of(group, waiting, accession)

    def _of(
        self, group: Sequence[Any], waiting: Sequence[Any], accession: Sequence[str]
    ) -> Iterator[tuple[str, Any, date | None]]:
        places = [(name, int(number)) for name, _, number in (one.partition("-") for one in accession)]
        found = (
            self._value(segment, number)
            for name, number in places
            for segment in group
            if str(segment[0]) == name
        )
        number = next((one for one in found if one), "")
        days = (day_of(self._value(one, 7)) for one in group if str(one[0]) == "OBR")
        seen = next((day for day in days if day is not None), None)
        for segment in waiting:
            yield _key(number, "the accession number", empty=True), segment, seen

    def _observation(self, segment: Any, seen: date | None, kind: str) -> object:
        if self._value(segment, 11).upper() not in {"", "F", "C"}:
            return None
        on = day_of(self._value(segment, 14)) or seen or day_of(self._value(self._msh, 7))
        return observed(self._codings(segment, 3), self._answer(segment), on, f"HL7 {kind}", self._site)

    def _codings(self, segment: Any, field: int) -> tuple[Coding, ...]:
        """The code of a CWE and its alternate."""
        repetitions = self._repeated(segment, field)
        parts = [*self._parts(repetitions[0]), *[""] * 6] if repetitions else [""] * 6
        pairs = ((parts[2], parts[0]), (parts[5], parts[3]))
        return tuple(Coding.of(system, code) for system, code in pairs if code)

    def _answer(self, segment: Any) -> Answer:
        kind, unit = self._value(segment, 2).upper(), self._value(segment, 6)
        if kind in {"CWE", "CE", "CF", "CNE"}:
            words = self._value(segment, 5, 2)
            return Answer(words, codings=self._codings(segment, 5))
        if kind == "SN":
            exact = self._value(segment, 5) in {"", "="} and not self._value(segment, 5, 3)
            return Answer(self._value(segment, 5, 2), unit) if exact else Answer()
        if kind in {"NM", "ST", "TX", "IS", "DT", "TS", "DTM"}:
            return Answer(self._value(segment, 5), unit)
        return Answer()

    def _diagnosis(self, segment: Any, kind: str) -> Fact | None:
        """A diagnosis that is final (DG1-6), by its code."""
        if self._value(segment, 6).upper() not in {"", "F"}:
            return None
        what, on = self._codings(segment, 3), day_of(self._value(segment, 5))
        if any(map(is_emphysema, what)):
            return Fact("emphysema", True, on, f"HL7 {kind} diagnosis")
        if any(map(is_cancer_elsewhere, what)):
            return Fact(CANCER, True, on, f"HL7 {kind} diagnosis")
        return None


def _key(value: str, field: str, *, empty: bool = False) -> str:
    if not value and empty:
        return ""
    if not value or len(value) > _LONGEST_KEY or not value.isprintable():
        raise RefusedError(
            "AR" if field == "MSH-10" else "AE", MISSING, f"{field} is missing or can't be used."
        )
    return value
