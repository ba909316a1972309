"""Which earlier examinations of a patient are taken: the latest first, each held against the patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

from inference.same_patient import Identity, contradiction
from inference.uids import is_uid
from pacs_node.archive import ArchiveError
from pacs_node.audit import Event, Outcome
from pacs_node.errors import NodeError
from pacs_node.priors_archive import (
    Fetcher,
    FoundExamination,
    PriorSource,
    RefusedError,
    check_images,
)
from pacs_node.priors_own import OwnPrior
from pacs_node.reader import Reader
from pacs_node.request import PriorFiles

OWN = "this node"
"""Whence the node's own examinations are, for a reader."""

_FIRST_DAY = date(1900, 1, 1)
_MOST_REFUSED = 5


@dataclass
class Gathered:
    """What was found so far: examinations that are ready, sentences for the result, events for the record."""

    priors: list[PriorFiles] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    events: list[tuple[Event, Outcome, Mapping[str, Any]]] = field(default_factory=list)
    no_prior: str = ""

    def refuse(self, study_uid: str, day: date, source: str, clause: str) -> None:
        """Leave an examination out: in the result and in the record."""
        self.notes.append(f"The CT of {day.isoformat()} ({source}) was not compared: {clause}.")
        told = {"prior_study_uid": study_uid, "source": source, "reason": clause}
        self.events.append((Event.PRIOR_REFUSED, Outcome.MINOR_FAILURE, told))

    def take(self, prior: PriorFiles) -> None:
        """Take an examination."""
        self.priors.append(prior)
        told = {
            "prior_study_uid": prior.study_uid,
            "prior_series_uid": prior.series_uid,
            "source": prior.source,
            "n_instances": len(prior.files),
            "earlier_result": prior.result is not None,
        }
        self.events.append((Event.PRIOR_FETCHED, Outcome.SUCCESS, told))

    def asked(self, source: str, found: int | None, reason: str | None = None) -> None:
        """Note a question to the archive and what came of it."""
        outcome = Outcome.SUCCESS if reason is None else Outcome.MINOR_FAILURE
        told = {"archive": source, "found": found, "reason": reason}
        self.events.append((Event.PRIOR_ASKED, outcome, told))
        if reason is not None:
            self.notes.append(f"The archive {source} was asked for earlier CTs of the patient: {reason}.")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Of whom, and before when."""

    identity: Identity
    study_uid: str
    day: date
    oldest: date

    def admits(self, found: FoundExamination) -> bool:
        """Whether a study of the archive is another, earlier one of this patient ID."""
        return (
            is_uid(found.study_uid)
            and found.study_uid != self.study_uid
            and found.day is not None
            and found.day < self.day
            and found.identity.patient_id in ("", self.identity.patient_id)
        )


class Search:
    """One search for the earlier examinations of one study.

    Parameters
    ----------
    reader
        Opens the images.
    wanted
        Of whom, and before when.
    own
        What the node has received itself.
    number
        How many are to be got ready.
    """

    def __init__(self, reader: Reader, wanted: Wanted, own: Sequence[OwnPrior], number: int) -> None:
        self._reader, self._wanted, self._number = reader, wanted, number
        self._own = {one.study_uid: one for one in own}

    def of_this_node(self) -> Gathered:
        """Take what the node has itself."""
        return self._among([], None)

    def ask(self, source: PriorSource, fetcher: Fetcher) -> Gathered:
        """Ask an archive what it has, and fetch from it what is later than what the node has."""
        wanted = self._wanted
        try:
            listed = source.examinations(wanted.identity.patient_id, _FIRST_DAY, wanted.day)
        except ArchiveError as error:
            gathered = self.of_this_node()
            gathered.asked(source.name, None, str(error))
            return gathered
        ct = [one for one in listed if wanted.admits(one) and (not one.modalities or "CT" in one.modalities)]
        gathered = self._among(ct, fetcher)
        gathered.asked(source.name, len(ct))
        if not ct and not self._own:
            gathered.no_prior = source.name
        return gathered

    def _among(self, listed: Sequence[FoundExamination], fetcher: Fetcher | None) -> Gathered:
        """Take the latest that can be had, the node's own images before those of the archive."""
        gathered = Gathered()
        theirs = {one.study_uid: one for one in listed}
        days = {one.study_uid: one.day for one in self._own.values()}
        days |= {one.study_uid: one.day for one in listed if one.day is not None}
        for study_uid in sorted(days, key=lambda uid: (days[uid], uid), reverse=True):
            own, found = self._own.get(study_uid), theirs.get(study_uid)
            enough = len(gathered.priors) >= self._number or len(gathered.notes) >= _MOST_REFUSED
            if enough or days[study_uid] < self._wanted.oldest:
                break
            if own is not None and own.files:
                self._take_own(gathered, own)
            elif found is not None and fetcher is not None and (own is not None or found.may_be_chest):
                self._fetch(gathered, found, own, fetcher)
        return gathered

    def _take_own(self, gathered: Gathered, own: OwnPrior) -> None:
        now, study_uid, series_uid = self._wanted.identity, own.study_uid, own.series_uid
        try:
            day = check_images(self._reader, now, own.files, study_uid=study_uid, series_uid=series_uid)
        except RefusedError as error:
            gathered.refuse(own.study_uid, own.day, OWN, str(error))
            return
        prior = PriorFiles(own.files, study_uid, series_uid, day, OWN, own.input_digest, own.result)
        gathered.take(prior)

    def _fetch(
        self, gathered: Gathered, found: FoundExamination, own: OwnPrior | None, fetcher: Fetcher
    ) -> None:
        day = found.day or self._wanted.day
        try:
            prior = self._fetched(found, fetcher)
        except (RefusedError, ArchiveError, NodeError) as error:
            gathered.refuse(found.study_uid, day, fetcher.source, str(error))
        except OSError as error:
            gathered.refuse(found.study_uid, day, fetcher.source, f"{error.strerror or 'the disk failed'}")
        else:
            if own is not None and own.series_uid == prior.series_uid:
                prior = replace(prior, input_digest=own.input_digest, result=own.result)
            gathered.take(prior)

    def _fetched(self, found: FoundExamination, fetcher: Fetcher) -> PriorFiles:
        """Fetch a study, unless what the archive says of its patient speaks against it already."""
        now, said = self._wanted.identity, found.identity
        if clause := contradiction(now, replace(said, patient_id=said.patient_id or now.patient_id)):
            raise RefusedError(f"it has {clause}", stranger=True)
        prior = fetcher.fetch(found.study_uid)
        if prior.examined_on >= self._wanted.day:
            raise RefusedError("its images are not earlier than these")
        return prior
