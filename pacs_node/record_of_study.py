"""Adds to a request what other systems tell of the patient, and writes down that they were asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from inference.record_person import SourcedRecord
from pacs_node import audit
from pacs_node.clinical_facts import ToldByMessages
from pacs_node.clock import Clock, utc_now
from pacs_node.config import Settings
from pacs_node.db import Database
from pacs_node.record_sources import RecordSources, Subject, salt_of
from pacs_node.request import CaseRequest


class StudyRecords:
    """The clinical records for the studies of a worker.

    Parameters
    ----------
    database
        Holds what messages told, and the audit record.
    settings
        Sections ``[record]`` and ``[mllp]``.
    """

    def __init__(self, database: Database, settings: Settings, clock: Clock = utc_now) -> None:
        messages = ToldByMessages(database) if settings.mllp.enabled else None
        self._sources = RecordSources(settings.record, messages, clock)
        self._database, self._clock = database, clock

    def added_to(self, request: CaseRequest, interrupted: Callable[[], bool]) -> CaseRequest:
        """Return the request with all that was told; with another record it makes another result.

        Parameters
        ----------
        interrupted
            Whether nobody wants the answer any more.
        """
        known = request.identity
        subject = Subject(known["PatientID"], known["AccessionNumber"], known["StudyDate"])
        told = self._sources.ask(subject, interrupted)
        if told:
            self._note(known["StudyInstanceUID"], told)
        return replace(request, told=told, uid_salt=salt_of(told))

    def _note(self, study_uid: str, told: Sequence[SourcedRecord]) -> None:
        silent = [one.source for one in told if one.person is None]
        with self._database.write() as session:
            audit.record(
                session,
                audit.Event.RECORD_ASKED,
                at=self._clock(),
                actor="worker",
                study_uid=study_uid,
                outcome=audit.Outcome.MINOR_FAILURE if silent else audit.Outcome.SUCCESS,
                sources=[one.source for one in told],
                without_use=silent or None,
            )
