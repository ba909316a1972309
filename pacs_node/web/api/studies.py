"""Operations on studies: look for them, look at them, take their files, requeue, hold and send them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from fastapi import Path as InPath
from fastapi import Query
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import FileResponse

from pacs_node.accounts import Permission
from pacs_node.audit import Event
from pacs_node.clock import Clock
from pacs_node.config import Settings
from pacs_node.db import Database
from pacs_node.feedback import study_feedback
from pacs_node.kept_files import MEDIA_TYPES, OTHER, ChangedFileError, NoFileError, kept_file, path_inside
from pacs_node.operator_actions import Word, hold, requeue, send
from pacs_node.study_detail import JobLine, study_detail
from pacs_node.study_search import list_studies
from pacs_node.web.api.acting import PROBLEMS, Key, act
from pacs_node.web.api.gate import client_of
from pacs_node.web.api.operation import Operation
from pacs_node.web.api.problems import Code, ProblemError
from pacs_node.web.api.record_schemas import Changed, Reason, SendAgain
from pacs_node.web.api.study_schemas import Feedback, Result, StudiesAsked, Study, StudyPage, StudySummary
from pacs_node.web.api.values import RowId, Uid
from pacs_node.web.guard import Looks
from pacs_node.web.results import read_result

_OF_ACTIONS = (*PROBLEMS, Code.NO_STUDY)
_FILES = tuple(sorted({kind.partition(";")[0] for kind in (*MEDIA_TYPES.values(), OTHER)}))

StudyUid = Annotated[Uid, InPath(description="Study Instance UID.")]


class Studies:
    """The operations and what they need.

    Parameters
    ----------
    looks
        Records who looked at what.
    """

    def __init__(self, database: Database, settings: Settings, clock: Clock, looks: Looks) -> None:
        self._database, self._clock, self._looks = database, clock, looks
        self._destinations = settings.destinations
        self._directory = Path(settings.storage.directory)

    def operations(self) -> tuple[Operation, ...]:
        """Return all of them."""
        look, act = Permission.LOOK, Permission.ACT
        return (
            Operation("GET", "/studies", look, self.list_studies),
            Operation("GET", "/studies/{study_uid}", look, self.get_study, (Code.NO_STUDY,)),
            Operation("POST", "/studies/{study_uid}/requeue", act, self.requeue_study, _OF_ACTIONS),
            Operation("POST", "/studies/{study_uid}/hold", act, self.hold_study, _OF_ACTIONS),
            Operation(
                "POST", "/studies/{study_uid}/send", act, self.send_study, (*_OF_ACTIONS, Code.NO_DESTINATION)
            ),
            Operation(
                "GET",
                "/artifacts/{artifact_id}",
                look,
                self.get_artifact,
                (Code.NO_FILE, Code.FILE_DIFFERS),
                files=_FILES,
            ),
        )

    def list_studies(self, request: Request, asked: Annotated[StudiesAsked, Query()]) -> StudyPage:
        """Studies, the newest first, or those that a search finds."""
        after, limit = asked.row, asked.limit
        with self._database.read() as session:
            found = list_studies(session, asked.query(), after, limit + 1)
        lines = found[:limit]
        # the words of a search may be a patient's name, which the record must not hold
        self._looks.note_by(
            client_of(request),
            Event.STUDIES_LISTED,
            asked,
            searched=bool(asked.q),
            shown=len(lines),
            newest=max((line.id for line in lines), default=None),
            oldest=min((line.id for line in lines), default=None),
        )
        return StudyPage(
            studies=tuple(StudySummary.model_validate(line) for line in lines),
            next_cursor=str(lines[-1].id) if len(found) > limit else None,
        )

    def get_study(self, request: Request, study_uid: StudyUid) -> Study:
        """Everything about one study: series, jobs, deliveries, timeline and findings."""
        with self._database.read() as session:
            detail = study_detail(session, study_uid)
            job = None if detail is None else detail.shown_job
            said = None if job is None else study_feedback(session, job.id)
        if detail is None:
            raise ProblemError(Code.NO_STUDY)
        self._looks.note_by(client_of(request), Event.STUDY_VIEWED, study_uid=study_uid)
        result = self._result(job)
        if result is not None and result.comparison is not None:
            # its sizes are shown too
            earlier = result.comparison.prior_study_uid
            self._looks.note_by(
                client_of(request), Event.STUDY_VIEWED, study_uid=earlier, shown_with=study_uid
            )
        return Study.model_validate(detail).model_copy(
            update={
                "result": result,
                "feedback": None if said is None else Feedback.model_validate(said),
            }
        )

    def _result(self, job: JobLine | None) -> Result | None:
        kept = () if job is None else job.kept("json")
        path = path_inside(self._directory, kept[-1].path or "") if kept else None
        found = None if path is None else read_result(path)
        return None if found is None else Result.model_validate(found)

    def get_artifact(self, request: Request, artifact_id: RowId) -> FileResponse:
        """A file that a job made: SEG, SR, pictures, result.json."""
        try:
            file = kept_file(self._database, self._directory, artifact_id)
        except NoFileError as error:
            raise ProblemError(Code.NO_FILE, str(error)) from None
        except ChangedFileError as error:
            raise ProblemError(Code.FILE_DIFFERS, str(error)) from None
        self._looks.note_result(client_of(request), file)
        name = f"{file.kind}-{file.id}" + (".dcm" if file.sop_instance_uid else "")
        return FileResponse(
            file.path,
            media_type=file.media_type,
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
            stat_result=file.path.stat(),
        )

    def requeue_study(self, request: Request, study_uid: StudyUid, body: Reason, key: Key = None) -> Changed:
        """Analyse again what failed or is held."""
        return self._act(request, body, key, lambda session, word: requeue(session, study_uid, word))

    def hold_study(self, request: Request, study_uid: StudyUid, body: Reason, key: Key = None) -> Changed:
        """Stop what is queued or being analysed until somebody requeues it."""
        return self._act(request, body, key, lambda session, word: hold(session, study_uid, word))

    def send_study(self, request: Request, study_uid: StudyUid, body: SendAgain, key: Key = None) -> Changed:
        """Send the results again: the same bytes."""
        name = body.destination or ""
        return self._act(
            request,
            body,
            key,
            lambda session, word: send(session, study_uid, word, self._destinations, name),
        )

    def _act(
        self, request: Request, body: Reason, key: str | None, action: Callable[[Session, Word], int]
    ) -> Changed:
        return act(self._database, request, body, key, action, at=self._clock())
