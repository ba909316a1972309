"""What the listener answers to storage commitment: N-ACTION of senders, N-EVENT-REPORT of destinations."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from pacs_node import db
from pacs_node.clock import Clock
from pacs_node.commitment import (
    ALL_COMMITTED,
    REQUEST_COMMITMENT,
    SOME_FAILED,
    WELL_KNOWN,
    MalformedNoticeError,
    Report,
    encoded,
    read_report,
    read_request,
)
from pacs_node.commitment_scp import judge, note_taken, record_request
from pacs_node.commitment_scu import take_report
from pacs_node.gate_association import Answer, Event, Notice
from pacs_node.gate_visitor import Visitor

logger = logging.getLogger(__name__)

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
NO_SUCH_INSTANCE = 0x0112
NO_SUCH_EVENT = 0x0113
INVALID_ARGUMENT = 0x0115
NO_SUCH_ACTION = 0x0123
RESOURCE_LIMITATION = 0x0213
"""Statuses of PS3.7 annex C."""

MAX_REPORTS = 8
"""That one association may owe its sender: each waits for the answer to the one before."""

_SAME_ASSOCIATION = timedelta(seconds=60)


class Notices:
    """Answers the notices of one association.

    Parameters
    ----------
    visitor
        Who sends them.
    directory
        The storage directory.
    calls_back
        Whether the sender takes reports where it listens; otherwise they go over this association.
    reporters
        By the name of a destination that is asked for storage commitment, the AE title that reports for it.
    """

    def __init__(
        self,
        visitor: Visitor,
        database: db.Database,
        directory: Path,
        clock: Clock,
        *,
        calls_back: bool,
        reporters: Mapping[str, str],
    ) -> None:
        self._reporters = reporters
        self._visitor = visitor
        self._database = database
        self._directory = directory
        self._clock = clock
        self._calls_back = calls_back
        #: reports for this association that the sender hasn't taken yet, the oldest first
        self._owed: deque[tuple[int, Report]] = deque()

    def answer(self, notice: Notice) -> Answer:
        """Answer one notice; success only for what is written down."""
        try:
            return self._report_of_destination(notice) if notice.is_event else self._request(notice)
        except MalformedNoticeError as error:
            return self._refuse(INVALID_ARGUMENT, str(error))
        except SQLAlchemyError as error:
            if db.is_full(error):
                return self._refuse(RESOURCE_LIMITATION, "no room for the database to grow")
            logger.exception("a notice could not be recorded")
            return self._refuse(PROCESSING_FAILURE, type(error).__name__)

    def _request(self, notice: Notice) -> Answer:
        if notice.sop_instance_uid != WELL_KNOWN:
            return self._refuse(NO_SUCH_INSTANCE, "not the well-known instance")
        if notice.type_id != REQUEST_COMMITMENT:
            return self._refuse(NO_SUCH_ACTION, "no such action")
        if len(self._owed) >= MAX_REPORTS:
            return self._refuse(RESOURCE_LIMITATION, "take the reports that wait first")
        request = read_request(notice.data, notice.transfer_syntax)
        now = self._clock()
        with self._database.write() as session:
            row = record_request(
                session,
                request,
                calling_ae=self._visitor.calling_ae,
                called_ae=self._visitor.called_ae,
                address=self._visitor.address,
                at=now,
            )
            if not self._calls_back:
                row.next_attempt_at = now + _SAME_ASSOCIATION
            row_id = row.id
        if self._calls_back:
            return Answer(SUCCESS)
        with self._database.read() as session:
            report = judge(session, self._directory, request)
        self._owed.append((row_id, report))
        data = encoded(report.dataset(), notice.transfer_syntax)
        return Answer(SUCCESS, event=Event(report.event_type, WELL_KNOWN, data))

    def event_taken(self, status: int) -> None:
        """Hear how the sender answered the oldest report that went over this association."""
        row_id, report = self._owed.popleft()
        if status != SUCCESS:
            return
        try:
            with self._database.write() as session:
                row = session.get_one(db.CommitmentRequest, row_id)
                row.attempts += 1
                note_taken(session, row, report, at=self._clock())
        except SQLAlchemyError:
            # it will count as not reported: the sender may ask again
            logger.exception("a report that was taken could not be recorded")

    def _report_of_destination(self, notice: Notice) -> Answer:
        if notice.type_id not in {ALL_COMMITTED, SOME_FAILED}:
            return self._refuse(NO_SUCH_EVENT, "no such event")
        report = read_report(notice.data, notice.transfer_syntax)
        with self._database.write() as session:
            known = take_report(
                session,
                report,
                calling_ae=self._visitor.calling_ae,
                reporters=self._reporters,
                at=self._clock(),
            )
        return Answer(SUCCESS) if known else self._refuse(INVALID_ARGUMENT, "no transaction of this sender")

    def _refuse(self, status: int, reason: str) -> Answer:
        logger.warning(
            "notice refused",
            extra={"calling_ae": self._visitor.calling_ae, "status": f"{status:04X}", "reason": reason},
        )
        return Answer(status, reason)
