"""Operations on the audit record. Each use of it is an event of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from fastapi import Query
from starlette.requests import Request
from starlette.responses import StreamingResponse

from pacs_node import audit_list
from pacs_node.accounts import Permission
from pacs_node.audit import Event
from pacs_node.audit_export import Selection
from pacs_node.audit_message import Origin
from pacs_node.audit_review import MEDIA_TYPES, RecordError, check_record
from pacs_node.clock import Clock
from pacs_node.config import Settings
from pacs_node.db import Database
from pacs_node.web.api import record_schemas as schemas
from pacs_node.web.api.gate import client_of
from pacs_node.web.api.operation import Operation
from pacs_node.web.api.problems import Code, ProblemError
from pacs_node.web.guard import Looks

_FILES = tuple(sorted({kind.partition(";")[0] for kind, _ in MEDIA_TYPES.values()}))


class Record:
    """The operations and what they need.

    Parameters
    ----------
    looks
        Records who looked at what.
    """

    def __init__(self, database: Database, settings: Settings, clock: Clock, looks: Looks) -> None:
        self._database, self._clock, self._looks = database, clock, looks
        self._heads = Path(settings.audit.heads_file)
        self._origin = Origin(settings.listener.ae_title, settings.audit.origin_name(), settings.audit.site)

    def operations(self) -> tuple[Operation, ...]:
        """Return all of them."""
        audit = Permission.AUDIT
        return (
            Operation("GET", "/audit-events", audit, self.list_audit_events),
            Operation("GET", "/audit-events/export", audit, self.export_audit_events, files=_FILES),
            Operation("POST", "/audit-events/check", audit, self.check_audit_events, (Code.RECORD,)),
        )

    def list_audit_events(
        self,
        request: Request,
        asked: Annotated[schemas.AuditQuery, Query()],
    ) -> schemas.AuditPage:
        """Rows of the audit record, the newest first."""
        before, limit = asked.row, asked.limit
        selection = _selection(asked)
        chosen = _said(selection)
        self._looks.note_by(
            client_of(request),
            Event.AUDIT_READ,
            tuple(chosen.items()),
            before,
            before=before,
            chosen=chosen or None,
        )
        with self._database.read() as session:
            rows = audit_list.newest_first(session, selection, before, limit + 1)
            last = audit_list.last_row(session)
        shown = rows[:limit]
        return schemas.AuditPage(
            events=tuple(schemas.AuditEvent.model_validate(row) for row in shown),
            next_cursor=str(shown[-1].seq) if len(rows) > limit else None,
            last_seq=last.seq if last else None,
            last_hash=last.hash if last else None,
        )

    def export_audit_events(
        self,
        request: Request,
        asked: Annotated[schemas.AuditExport, Query()],
    ) -> StreamingResponse:
        """The selected rows as a file: JSON Lines, CSV, DICOM audit messages or FHIR AuditEvents."""
        selection, now, form = _selection(asked), self._clock(), asked.format
        self._looks.note_by(
            client_of(request),
            Event.AUDIT_EXPORTED,
            every=True,
            format=form,
            chosen=_said(selection) or None,
        )
        with self._database.read() as session:
            last = audit_list.last_row(session)
        lines: Iterator[str] = audit_list.export(
            self._database, selection, form, self._origin, last.seq if last else 0
        )
        media_type, ending = MEDIA_TYPES[form]
        name = f"audit-{now:%Y%m%dT%H%M%SZ}.{ending}"
        return StreamingResponse(
            lines, media_type=media_type, headers={"Content-Disposition": f'attachment; filename="{name}"'}
        )

    def check_audit_events(self, request: Request) -> schemas.ChainCheck:
        """Check rows of the record by their hashes, and its end by the heads noted earlier."""
        try:
            verdict = check_record(self._database, self._heads)
        except RecordError as error:
            raise ProblemError(Code.RECORD, str(error)) from None
        self._looks.note_by(
            client_of(request),
            Event.AUDIT_CHECKED,
            every=True,
            rows=verdict.rows,
            first_bad=verdict.first_bad,
        )
        return schemas.ChainCheck(
            whole=verdict.first_bad is None,
            first=verdict.first,
            rows=verdict.rows,
            heads=verdict.heads,
            first_bad=verdict.first_bad,
            why=verdict.why,
        )


def _selection(asked: schemas.AuditFilter) -> Selection:
    return Selection(
        asked.since, asked.until, asked.study_uid, asked.actor, asked.event, failures=asked.failures
    )


def _said(selection: Selection) -> dict[str, str]:
    """The parts of a selection that say something, under the names that the page uses too."""
    found = {
        "study": selection.study_uid,
        "actor": selection.actor,
        "event": selection.event,
        "since": selection.since.isoformat() if selection.since else None,
        "until": selection.until.isoformat() if selection.until else None,
        "failures": "only" if selection.failures else None,
    }
    return {name: value for name, value in found.items() if value}
