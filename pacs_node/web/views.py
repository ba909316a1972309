"""The pages: ask the database in one short transaction, read files after it, render."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from hmac import compare_digest
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from dicom_sr.context import NOT_REVIEWED
from inference.certainty import SUSPICION, SUSPICIOUS
from pacs_node.alarms import alarms, further
from pacs_node.audit import Event
from pacs_node.config import Settings
from pacs_node.config_listener import is_loopback
from pacs_node.db import Database, is_full
from pacs_node.feedback import judged_counts
from pacs_node.kept_files import ChangedFileError, NoFileError, kept_file, path_inside
from pacs_node.latency import latency
from pacs_node.metrics import NodeCollector, exposition
from pacs_node.operator_actions import LONGEST_REASON, possible
from pacs_node.overview import disk_space, overview
from pacs_node.queries import StudyLine, StudyWord, study_tone
from pacs_node.readiness import readiness
from pacs_node.study_detail import JobLine, study_detail
from pacs_node.study_search import MOST_COUNTED, LungRads, NoduleKind, StudyOrder, count_studies, list_studies
from pacs_node.study_state import DeliveryWord
from pacs_node.versions import pipeline_in_use
from pacs_node.web.feedback_page import feedback_values
from pacs_node.web.guard import Looks, address_of, known_visitor
from pacs_node.web.protection import HEADERS, REPORT_POLICY
from pacs_node.web.render import Renderer
from pacs_node.web.results import ResultSummary, counted, read_result
from pacs_node.web.study_filter import read_filter

logger = logging.getLogger(__name__)

_PAGE_LENGTH = 50
_LONGEST_SEARCH = 200
_REFRESH_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Refused:
    """What was asked for a study and can't be done.

    Parameters
    ----------
    status
        Of the answer.
    sentence
        Why not.
    reason
        What the operator had written, to go on with.
    """

    status: int
    sentence: str
    reason: str


class Pages:
    """The views and what they need.

    Parameters
    ----------
    database
        Only read.
    settings
        The whole configuration; nothing secret stands in it.
    renderer
        Shared with the other pages.
    looks
        Records who looked at what.
    """

    def __init__(self, database: Database, settings: Settings, renderer: Renderer, looks: Looks) -> None:
        self._database = database
        self._settings = settings
        self._directory = Path(settings.storage.directory)
        self._renderer = renderer
        self._looks = looks
        self._destinations = settings.destinations
        names = tuple(item.name for item in settings.destinations)
        self._collector = NodeCollector(
            database, lambda: disk_space(self._directory, self._reserve), names, renderer.clock
        )

    def overview(self, request: Request) -> Response:
        """What the node is doing and what needs a person; names no patient, so it is no look at one."""
        now = self._renderer.clock()
        midnight = now.astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
        names = [item.name for item in self._settings.destinations]
        with self._database.read() as session:
            seen = overview(session, now, midnight, names)
            more, took = further(session, self._settings, now), latency(session)
        pipeline = pipeline_in_use(self._settings)
        disk = disk_space(self._directory, self._reserve)
        return self._renderer.page(
            request,
            "overview.html",
            here="overview",
            seen=seen,
            disk=disk,
            alarms=alarms(seen, disk, more),
            took=took,
            cards=() if isinstance(pipeline, str) else pipeline.cards,
            unavailable=pipeline if isinstance(pipeline, str) else "",
            settings=self._settings,
            tones={word: study_tone(word) for word in StudyWord},
            refresh=_REFRESH_SECONDS,
        )

    def studies(self, request: Request) -> Response:
        """The list of studies, those that a filter finds, in its order."""
        chosen = read_filter(request.query_params)
        after = _row_id(request.query_params.get("after"))
        found: tuple[StudyLine, ...] = ()
        count, verdicts = 0, {}
        if not chosen.troubles:
            with self._database.read() as session:
                found = list_studies(session, chosen.query, after, _PAGE_LENGTH + 1)
                whole = after is None and len(found) <= _PAGE_LENGTH
                count = len(found) if whole else count_studies(session, chosen.query)
                verdicts = judged_counts(session, [line.id for line in found])
        lines = found[:_PAGE_LENGTH]
        # the words of a search may be a patient's name, which the record must not hold
        self._looks.note(
            request,
            Event.STUDIES_LISTED,
            *chosen.asked.items(),
            after,
            searched=chosen.narrowed,
            shown=len(lines),
            newest=max((line.id for line in lines), default=None),
            oldest=min((line.id for line in lines), default=None),
        )
        return self._renderer.page(
            request,
            "studies.html",
            status=400 if chosen.troubles else 200,
            here="studies",
            lines=[(line, self._findings(line)) for line in lines],
            verdicts=verdicts,
            search=chosen.asked.get("q", ""),
            chosen=chosen,
            count=count,
            most=MOST_COUNTED,
            first_page=after is None,
            last=lines[-1].id if len(found) > _PAGE_LENGTH else None,
            states=list(StudyWord),
            deliveries=list(DeliveryWord),
            kinds=list(NoduleKind),
            categories=list(LungRads),
            orders=list(StudyOrder),
        )

    def study(self, request: Request, refused: Refused | None = None) -> Response:
        """Everything about one study; and why what was asked for it can't be done."""
        with self._database.read() as session:
            detail = study_detail(session, request.path_params["study_uid"])
            can = None if detail is None else possible(session, detail.line.study_uid, self._destinations)
            shown = None if detail is None or detail.shown_job is None else detail.shown_job.id
            verdicts = feedback_values(session, shown)
        if detail is None:
            raise HTTPException(404, "No study with this UID has arrived here.")
        self._looks.note(request, Event.STUDY_VIEWED, study_uid=detail.line.study_uid)
        job = detail.shown_job
        result = self._result(job)
        if result is not None and result.comparison is not None:
            # its pictures and sizes are shown too
            earlier = result.comparison.prior_study_uid
            self._looks.note(request, Event.STUDY_VIEWED, study_uid=earlier, shown_with=detail.line.study_uid)
        return self._renderer.page(
            request,
            "study.html",
            status=200 if refused is None else refused.status,
            here="studies",
            can=can,
            refused=refused,
            longest_reason=LONGEST_REASON,
            detail=detail,
            line=detail.line,
            findings=self._findings(detail.line),
            job=job,
            result=result,
            pictures={} if job is None else {file.name: file for file in job.kept("png")},
            stacks={} if job is None else {file.name: file for file in job.kept("stack")},
            not_reviewed=NOT_REVIEWED,
            suspicious=SUSPICIOUS,
            suspicion_words=SUSPICION,
            **verdicts,
            # the answer to a form has no address of its own
            refresh=None if detail.line.state.finished or refused is not None else _REFRESH_SECONDS,
        )

    def artifact(self, request: Request) -> Response:
        """A file that a job made."""
        try:
            file = kept_file(self._database, self._directory, request.path_params["artifact_id"])
        except NoFileError as error:
            raise HTTPException(404, str(error)) from None
        except ChangedFileError as error:
            raise HTTPException(409, str(error)) from None
        headers = {"Content-Disposition": file.disposition} if file.disposition else {}
        if file.kind == "html":
            headers["Content-Security-Policy"] = REPORT_POLICY
        if file.kind == "png":
            # the pictures of a study page belong to the look at it
            self._looks.note(request, Event.STUDY_VIEWED, study_uid=file.study_uid)
        else:
            self._looks.note_result(known_visitor(request), file)
        return FileResponse(
            file.path, media_type=file.media_type, headers=headers, stat_result=file.path.stat()
        )

    def live(self, request: Request) -> Response:  # noqa: ARG002 - a view gets it
        """Whether this process answers."""
        return JSONResponse({"status": "live"})

    def ready(self, request: Request) -> Response:  # noqa: ARG002 - a view gets it
        """Whether the node can take images and analyse them, and what keeps it from that."""
        found = readiness(self._database, self._settings, self._renderer.clock())
        checks: dict[str, dict[str, Any]] = {
            check.name: {"ok": check.ok} | ({} if check.ok else {"why": check.why}) | dict(check.numbers)
            for check in found
        }
        ready = all(check.ok for check in found)
        return JSONResponse(
            {"status": "ready" if ready else "not ready", "checks": checks}, 200 if ready else 503
        )

    def metrics(self, request: Request) -> Response:
        """The node in numbers, for Prometheus: no patient, no study."""
        if not self._may_scrape(request):
            raise HTTPException(401, "Metrics are for a bearer token, or for this machine.")
        return Response(exposition(self._collector), media_type="text/plain; version=0.0.4; charset=utf-8")

    def _may_scrape(self, request: Request) -> bool:
        web = self._settings.web
        if not web.metrics_token_file:
            return not web.proxy_address and is_loopback(address_of(request))
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        try:
            token = Path(web.metrics_token_file).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            logger.exception("the token of the metrics can't be read")
            return False
        return bool(token) and kind.lower() == "bearer" and compare_digest(given.encode(), token.encode())

    def refused(self, request: Request, error: Exception) -> Response:
        """The page for a wrong address or request."""
        if not isinstance(error, HTTPException):
            raise error
        sentence = error.detail if error.status_code != 405 else "This address only shows."
        return self._renderer.error(request, error.status_code, sentence, error.headers)

    def unavailable(self, request: Request, error: Exception) -> Response:
        """The page for a database that doesn't answer, or has no room for what must be recorded first."""
        logger.error("database doesn't answer", exc_info=error)
        if is_full(error):
            sentence = "The disk is full: this can't be recorded, so it is neither shown nor done."
            return self._renderer.error(
                request, 503, f"{sentence} Free space; pacs-node doctor says how much."
            )
        return self._renderer.error(request, 503, "The database doesn't answer. The node's log says why.")

    def failed(self, request: Request, error: Exception) -> Response:  # noqa: ARG002 - a handler gets it
        """The page for a fault of ours; it stands outside of the middleware, so it brings its headers."""
        return self._renderer.error(request, 500, "This page failed. The node's log says why.", HEADERS)

    @property
    def _reserve(self) -> int:
        return self._settings.storage.reserve_mb << 20

    def _result(self, job: JobLine | None) -> ResultSummary | None:
        kept = () if job is None else job.kept("json")
        path = path_inside(self._directory, kept[-1].path or "") if kept else None
        return None if path is None else read_result(path)

    def _findings(self, line: StudyLine) -> str:
        """How many findings, in words; empty where it isn't known."""
        if line.state.word is not StudyWord.ANALYSED:
            return ""
        if line.n_findings is not None:
            return counted(line.n_findings)
        # the columns of a result that came just now are not written yet
        if line.state.result_path is None:
            return ""
        path = path_inside(self._directory, line.state.result_path)
        result = None if path is None else read_result(path)
        return "" if result is None else result.count


def _row_id(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 19:
        raise HTTPException(400, "The number in this address is no number of a row.")
    return int(text)
