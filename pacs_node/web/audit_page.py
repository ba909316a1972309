"""The audit record: looked through, checked and taken out. Each use of it is an event of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from pacs_node import audit_list
from pacs_node.audit import Event
from pacs_node.audit_chain import Verdict
from pacs_node.audit_export import FORMATS, Selection
from pacs_node.audit_message import Origin
from pacs_node.audit_review import MEDIA_TYPES, RecordError, check_record
from pacs_node.config import Settings
from pacs_node.db import AuditEvent, Database
from pacs_node.web.guard import Looks
from pacs_node.web.render import Renderer
from pacs_node.web.study_filter import FieldError, midnight, next_midnight

_PAGE_LENGTH = 100
_FIELDS = ("study", "actor", "event", "outcome", "since", "until")
FAILED = "failed"
_LONGEST_FIELD = 200


class AuditPages:
    """Views of the audit record.

    Parameters
    ----------
    database
        Holds it.
    settings
        How the node names itself in messages, and where noted heads are.
    renderer, looks
        Shared with the other pages.
    """

    def __init__(self, database: Database, settings: Settings, renderer: Renderer, looks: Looks) -> None:
        self._database = database
        self._heads = Path(settings.audit.heads_file)
        self._origin = Origin(settings.listener.ae_title, settings.audit.origin_name(), settings.audit.site)
        self._renderer = renderer
        self._looks = looks

    def listed(self, request: Request) -> Response:
        """Rows, the newest first."""
        return self._page(request)

    def checked(self, request: Request) -> Response:
        """The check of the whole chain, as ``pacs-node audit verify`` does it."""
        try:
            verdict = check_record(self._database, self._heads)
        except RecordError as error:
            raise HTTPException(409, str(error)) from None
        self._looks.note(
            request, Event.AUDIT_CHECKED, every=True, rows=verdict.rows, first_bad=verdict.first_bad
        )
        return self._page(request, verdict)

    def _page(self, request: Request, verdict: Verdict | None = None) -> Response:
        asked = _asked(request.query_params)
        before = _number(request.query_params.get("before"))
        rows: Sequence[AuditEvent] = ()
        trouble = ""
        try:
            selection = _selection(asked)
        except FieldError as error:
            trouble = str(error)
        self._looks.note(
            request, Event.AUDIT_READ, tuple(asked.items()), before, before=before, chosen=asked or None
        )
        with self._database.read() as session:
            if not trouble:
                rows = audit_list.newest_first(session, selection, before, _PAGE_LENGTH + 1)
            last = audit_list.last_row(session)
        shown = rows[:_PAGE_LENGTH]
        return self._renderer.page(
            request,
            "audit.html",
            status=400 if trouble else 200,
            rows=shown,
            last=last,
            trouble=trouble,
            asked={name: asked.get(name, "") for name in _FIELDS},
            query=urlencode(asked),
            older=shown[-1].seq if len(rows) > _PAGE_LENGTH else None,
            first_page=before is None,
            events=[event.value[0] for event in Event],
            forms=list(FORMATS),
            verdict=verdict,
            here="audit",
        )

    def exported(self, request: Request) -> Response:
        """The selected rows as a file."""
        form = request.query_params.get("format", "")
        if form not in FORMATS:
            raise HTTPException(400, f"There is no such format; known: {', '.join(FORMATS)}.")
        asked = _asked(request.query_params)
        try:
            selection = _selection(asked)
        except FieldError as error:
            raise HTTPException(400, str(error)) from None
        now = self._renderer.clock()
        self._looks.note(request, Event.AUDIT_EXPORTED, every=True, format=form, chosen=asked or None)
        with self._database.read() as session:
            last = audit_list.last_row(session)
        media_type, ending = MEDIA_TYPES[form]
        return StreamingResponse(
            audit_list.export(self._database, selection, form, self._origin, last.seq if last else 0),
            media_type=media_type,
            headers={"Content-Disposition": f'attachment; filename="audit-{now:%Y%m%dT%H%M%SZ}.{ending}"'},
        )


def _asked(parameters: Mapping[str, str]) -> dict[str, Any]:
    """The fields of the filter that say something."""
    found = {name: parameters.get(name, "").strip()[:_LONGEST_FIELD] for name in _FIELDS}
    return {name: value for name, value in found.items() if value}


def _selection(asked: Mapping[str, str]) -> Selection:
    """What a filter asks for; `FieldError` where that can't be."""
    if asked.get("outcome", FAILED) != FAILED:
        raise FieldError(f"{asked['outcome']} is no outcome: write {FAILED}, or nothing.")
    return Selection(
        midnight(asked["since"]) if "since" in asked else None,
        next_midnight(asked["until"]) if "until" in asked else None,
        asked.get("study"),
        asked.get("actor"),
        asked.get("event"),
        failures="outcome" in asked,
    )


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise HTTPException(400, "The number in this address is no number of a row.")
    return int(text)
