"""Asks the archive how many images it has of the series that are being received.

It writes down what comes; whoever closes series reads it there. So a slow archive holds up nobody.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from pacs_node import audit
from pacs_node.archive import Archive, ArchiveError
from pacs_node.archive_dimse import DimseArchive
from pacs_node.archive_web import DicomWebArchive
from pacs_node.clock import Clock, utc_now
from pacs_node.completeness import ASKED_MODALITIES
from pacs_node.config import Settings
from pacs_node.db import Database, Series
from pacs_node.delivery import make_destination
from pacs_node.destinations import OutcomeKind
from pacs_node.dicomweb import DicomWebDestination
from pacs_node.dimse import DimseDestination
from pacs_node.states import SeriesState

logger = logging.getLogger(__name__)

_ACTOR = "schedule"
_AGAIN = timedelta(seconds=20)
NOT_SAID = "it knows no image of this series, or doesn't say how many"


def open_archive(settings: Settings, seconds: float) -> Archive | None:
    """Build the client of the archive that the settings name; None where they name none.

    Parameters
    ----------
    seconds
        For one question of C-FIND; one of QIDO-RS has the limits of the destination.

    Raises
    ------
    ConfigurationError
        A file of the destination can't be used.
    """
    for item in settings.destinations:
        if item.name == settings.archive.destination:
            destination = make_destination(item, settings)
            if isinstance(destination, DimseDestination):
                return DimseArchive(item.name, destination.peer, seconds)
            if isinstance(destination, DicomWebDestination):
                return DicomWebArchive(destination)
    return None


class Reconciler:
    """Keeps the archive's counts of open series up to date.

    Parameters
    ----------
    database
        Holds the series.
    archive
        Is asked.
    settle
        Silence after which a series is asked about.
    clock
        Source of time.
    """

    def __init__(
        self, database: Database, archive: Archive, settle: timedelta, clock: Clock = utc_now
    ) -> None:
        self._database = database
        self._archive = archive
        self._settle = settle
        self._clock = clock

    def tick(self) -> None:
        """Ask about what is due; ends early where the archive is away."""
        due = (
            select(Series)
            .where(Series.state == SeriesState.RECEIVING, Series.modality.in_(ASKED_MODALITIES))
            .order_by(Series.archive_asked_at, Series.id)
        )
        with self._database.read() as session:
            rows = [
                (row.id, row.study.study_uid, row.series_uid)
                for row in session.execute(due).scalars()
                if self._is_due(row)
            ]
        for series_id, study_uid, series_uid in rows:
            count, answer = None, NOT_SAID
            away = False
            asked_at = self._clock()
            try:
                if said := self._archive.count(study_uid, series_uid):
                    count, answer = said, f"it has {said}"
            except ArchiveError as error:
                answer, away = str(error), error.kind is OutcomeKind.TRANSIENT
                logger.warning("%s can't say how many images a series has: %s", self._archive.name, answer)
            with self._database.write() as session:
                # the time of the question: what arrives while it is answered must be asked about again
                row = session.get_one(Series, series_id)
                self._note(session, row, count, answer)
                row.archive_asked_at = asked_at
            if away:
                return

    def _is_due(self, row: Series) -> bool:
        now, asked = self._clock(), row.archive_asked_at
        if now - row.last_received_at < self._settle:
            return False
        if asked is None or asked < row.last_received_at:
            return True
        satisfied = row.archive_instances is not None and row.archive_instances <= row.n_instances
        return not satisfied and now - asked >= _AGAIN

    def _note(self, session: Session, row: Series, count: int | None, answer: str) -> None:
        news = answer != row.archive_answer or count != row.archive_instances
        row.archive_instances, row.archive_answer = count, answer
        if not news or count is None or count <= row.n_instances or row.state is not SeriesState.RECEIVING:
            return
        audit.record(
            session,
            audit.Event.SERIES_WAITS,
            at=self._clock(),
            actor=_ACTOR,
            study_uid=row.study.study_uid,
            series_uid=row.series_uid,
            n_instances=row.n_instances,
            archive_instances=count,
            archive=self._archive.name,
            reason_code="INCOMPLETE",
            reason=f"the archive has {count} images of this series, {row.n_instances} have come",
        )
