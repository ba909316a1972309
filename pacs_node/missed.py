"""Studies that the archive has and that never came here: asked for each night, and kept.

When it is due stands in a row, so a restart, a late tick or a second scheduler changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.engine import CursorResult
from sqlalchemy.orm import Session

from inference.uids import is_uid
from pacs_node import audit
from pacs_node.archive import Archive, ArchiveError, FoundStudy, StudyFilter
from pacs_node.clock import Clock, utc_now
from pacs_node.config import ArchiveSettings
from pacs_node.db import Database, Errand, MissedStudy, Study

logger = logging.getLogger(__name__)

_ACTOR = "schedule"
_LEASE = timedelta(minutes=30)
_AFTER_FAILURE = timedelta(hours=1)
_MOST_DAYS = 60
_MOST_MODALITY_QUESTIONS = 200
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Search:
    """What came of one question.

    Parameters
    ----------
    first, last
        Study dates that it covered.
    found
        Studies of the kind that was asked for.
    missed
        Of those, how many never came here.
    new
        Of those, how many were not known to be missed.
    """

    first: date
    last: date
    found: int
    missed: int
    new: int

    @property
    def sentence(self) -> str:
        """For a person."""
        span = f"{self.first:%Y-%m-%d} to {self.last:%Y-%m-%d}"
        return f"{span}: {self.found} studies, {self.missed} of them never came here ({self.new} new)"


class MissedStudies:
    """Asks and writes down.

    Parameters
    ----------
    database
        Holds what came, and what is due.
    archive, settings
        Who is asked for what.
    clock
        Source of time.
    """

    def __init__(
        self, database: Database, archive: Archive, settings: ArchiveSettings, clock: Clock = utc_now
    ) -> None:
        self._database = database
        self._archive = archive
        self._settings = settings
        self._clock = clock
        self._name = _errand_name(archive.name)

    def tick(self) -> Search | None:
        """Ask if it is due and nobody else does; None otherwise, or where no answer came."""
        if not self._claim():
            return None
        try:
            return self.search()
        except ArchiveError as error:
            self._fail(str(error))
            return None

    def _claim(self) -> bool:
        """Take the errand for half an hour: one that dies meanwhile is followed by another."""
        now = self._clock()
        with self._database.read() as session:
            errand = session.get(Errand, self._name)
            if errand is not None and errand.due_at > now:
                return False
        with self._database.write() as session:
            errand = session.get(Errand, self._name)
            if errand is None:
                session.add(Errand(name=self._name, due_at=self._next(now)))
                return False
            taken = session.execute(
                update(Errand)
                .where(Errand.name == self._name, Errand.due_at == errand.due_at, Errand.due_at <= now)
                .values(due_at=now + _LEASE, started_at=now)
                .execution_options(synchronize_session=False)
            )
            return isinstance(taken, CursorResult) and taken.rowcount == 1

    def _next(self, now: datetime) -> datetime:
        today = now.astimezone(UTC).replace(
            hour=self._settings.missed_hour, minute=0, second=0, microsecond=0
        )
        return today if today > now else today + timedelta(days=1)

    def _fail(self, trouble: str) -> None:
        now = self._clock()
        with self._database.write() as session:
            errand = session.get_one(Errand, self._name)
            errand.due_at, errand.status = min(now + _AFTER_FAILURE, self._next(now)), trouble
            audit.record(
                session,
                audit.Event.ARCHIVE_SEARCHED,
                at=now,
                actor=_ACTOR,
                outcome=audit.Outcome.SERIOUS_FAILURE,
                archive=self._archive.name,
                reason=trouble,
            )
        logger.error("the archive can't say which studies never came: %s", trouble)

    def search(self) -> Search:
        """Ask now, and write down what is missed.

        Raises
        ------
        ArchiveError
            No usable answer came.
        """
        wanted = self._wanted()
        found = {
            study.study_uid: study
            for study in self._archive.studies(wanted)
            if wanted.takes(study) and is_uid(study.study_uid)
        }
        with self._database.read() as session:
            received = _received(session, list(found))
        unknown = [study for uid, study in found.items() if uid not in received]
        missed = self._of_the_modality(unknown)
        with self._database.write() as session:
            # once more: a study may have come while the archive answered
            received = _received(session, list(found))
            missed = [study for study in missed if study.study_uid not in received]
            new = self._keep(session, missed)
            count = len(found) - len(unknown) + len(missed)
            search = Search(wanted.first, wanted.last, count, len(missed), new)
            self._finish(session, search)
        logger.info("archive searched: %s", search.sentence)
        return search

    def _wanted(self) -> StudyFilter:
        """The days of the settings, and those since the last answer."""
        last = self._clock().astimezone(UTC).date() - timedelta(days=1)
        first = last - timedelta(days=self._settings.missed_days - 1)
        with self._database.read() as session:
            errand = session.get(Errand, self._name)
        if errand is not None and errand.finished_at is not None:
            first = min(first, errand.finished_at.date() - timedelta(days=1))
        return StudyFilter(
            first=max(first, last - timedelta(days=_MOST_DAYS - 1)),
            last=last,
            modality=self._settings.missed_modality,
            description=self._settings.missed_description,
            ae_title=self._settings.missed_ae_title,
        )

    def _of_the_modality(self, studies: Sequence[FoundStudy]) -> list[FoundStudy]:
        """Leave out what has no series of the modality, where the archive says it only by series.

        Beyond a number of questions a study stays in: a name too many is better than one too few.
        """
        kept, questions = [], 0
        for study in studies:
            if not study.modalities and questions < _MOST_MODALITY_QUESTIONS:
                questions += 1
                if self._settings.missed_modality not in self._archive.modalities(study.study_uid):
                    continue
            kept.append(study)
        return kept

    def _keep(self, session: Session, studies: Sequence[FoundStudy]) -> int:
        now, new = self._clock(), 0
        for study in studies:
            known = select(MissedStudy).where(
                MissedStudy.archive == self._archive.name, MissedStudy.study_uid == study.study_uid
            )
            row = session.execute(known).scalar_one_or_none()
            fresh = row is None
            if row is None:
                row = MissedStudy(archive=self._archive.name, study_uid=study.study_uid, noticed_at=now)
            row.accession_number, row.study_date = study.accession_number, study.study_date
            row.description, row.modalities = study.description, "\\".join(study.modalities)
            row.n_instances, row.seen_at = study.n_instances, now
            session.add(row)
            if fresh:
                new += 1
                self._alarm(session, study, now)
        return new

    def _alarm(self, session: Session, study: FoundStudy, now: datetime) -> None:
        audit.record(
            session,
            audit.Event.STUDY_MISSED,
            at=now,
            actor=_ACTOR,
            outcome=audit.Outcome.MINOR_FAILURE,
            study_uid=study.study_uid,
            archive=self._archive.name,
            study_date=study.study_date,
            n_instances=study.n_instances,
            reason="the archive has this study, it never came here",
        )

    def _finish(self, session: Session, search: Search) -> None:
        now = self._clock()
        note_arrivals(session, at=now)
        errand = session.get(Errand, self._name)
        if errand is None:
            errand = Errand(name=self._name)
            session.add(errand)
        errand.due_at, errand.finished_at, errand.status = self._next(now), now, search.sentence
        audit.record(
            session,
            audit.Event.ARCHIVE_SEARCHED,
            at=now,
            actor=_ACTOR,
            outcome=audit.Outcome.MINOR_FAILURE if search.new else audit.Outcome.SUCCESS,
            archive=self._archive.name,
            first=search.first.isoformat(),
            last=search.last.isoformat(),
            found=search.found,
            missed=search.missed,
            new=search.new,
        )


def _errand_name(archive: str) -> str:
    return f"missed studies of {archive}"


def last_search(session: Session, archive: str) -> Errand | None:
    """When an archive was asked last, what came of it, and when it is due again; None before the first."""
    return session.get(Errand, _errand_name(archive))


def search_soon(session: Session, archive: str, at: datetime) -> bool:
    """Let the next question be due at once, at an operator's word; False where none is known yet."""
    errand = last_search(session, archive)
    if errand is None:
        return False
    errand.due_at = min(errand.due_at, at)
    return True


def note_arrivals(session: Session, *, at: datetime) -> None:
    """Note which studies of the list have come after all."""
    here = select(Study.study_uid).where(Study.study_uid == MissedStudy.study_uid).exists()
    session.execute(
        update(MissedStudy)
        .where(MissedStudy.arrived_at.is_(None), here)
        .values(arrived_at=at)
        .execution_options(synchronize_session=False)
    )


def missing_studies(session: Session) -> list[MissedStudy]:
    """The list: what has not come to this day, the latest study first."""
    here = select(Study.study_uid).where(Study.study_uid == MissedStudy.study_uid).exists()
    rows = select(MissedStudy).where(~here).order_by(MissedStudy.study_date.desc(), MissedStudy.id)
    return list(session.execute(rows).scalars())


def _received(session: Session, uids: Sequence[str]) -> set[str]:
    known: set[str] = set()
    for start in range(0, len(uids), _CHUNK):
        chunk = uids[start : start + _CHUNK]
        known.update(session.scalars(select(Study.study_uid).where(Study.study_uid.in_(chunk))))
    return known
