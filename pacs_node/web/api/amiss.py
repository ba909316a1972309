"""Operations on what is amiss with studies: those that never came, what failed for good, what is held."""

from __future__ import annotations

from sqlalchemy import select
from starlette.requests import Request

from pacs_node import destination_actions
from pacs_node.accounts import Permission
from pacs_node.audit import Event
from pacs_node.clock import Clock
from pacs_node.config import Settings
from pacs_node.db import Database, Errand
from pacs_node.dead_letters import dead_letters
from pacs_node.held import doubtful_studies, failed_groups, held_studies
from pacs_node.missed import last_search, missing_studies, search_soon
from pacs_node.web.api import node_schemas as schemas
from pacs_node.web.api.acting import PROBLEMS, Key, act, word_of
from pacs_node.web.api.gate import client_of
from pacs_node.web.api.operation import Operation
from pacs_node.web.api.problems import Code, ProblemError
from pacs_node.web.api.record_schemas import Changed, FailedBy
from pacs_node.web.guard import Looks

_MOST = 1000


class Amiss:
    """The operations and what they need.

    Parameters
    ----------
    looks
        Records who looked: the lists name studies.
    """

    def __init__(self, database: Database, settings: Settings, clock: Clock, looks: Looks) -> None:
        self._database, self._clock, self._looks = database, clock, looks
        self._archive = settings.archive.destination

    def operations(self) -> tuple[Operation, ...]:
        """Return all of them."""
        look, change = Permission.LOOK, Permission.ACT
        no_archive = (Code.NO_ARCHIVE,)
        return (
            Operation("GET", "/missed-studies", look, self.list_missed_studies),
            Operation("POST", "/missed-studies/search", change, self.search_missed_studies, no_archive),
            Operation("GET", "/held-studies", look, self.list_held_studies),
            Operation("GET", "/failures", look, self.list_failures),
            Operation("POST", "/failures/retry", change, self.retry_failures, PROBLEMS),
        )

    def list_missed_studies(self, request: Request) -> schemas.MissedStudies:
        """Studies that the archive has and that never came here."""
        with self._database.read() as session:
            rows = missing_studies(session)
            searches = session.execute(select(Errand).order_by(Errand.name)).scalars().all()
        shown = rows[:_MOST]
        self._note(request, "missed", len(shown))
        return schemas.MissedStudies(
            studies=tuple(schemas.MissedStudy.model_validate(row) for row in shown),
            total=len(rows),
            searches=tuple(schemas.Search.model_validate(row) for row in searches),
        )

    def search_missed_studies(self, request: Request) -> schemas.Search:
        """Have the archive asked now, by the scheduler."""
        now = self._clock()
        with self._database.write() as session:
            if not self._archive or not search_soon(session, self._archive, now):
                raise ProblemError(Code.NO_ARCHIVE)
            word = word_of(request, "", now)
            destination_actions.note(session, "search archive", self._archive, word)
            errand = last_search(session, self._archive)
        return schemas.Search.model_validate(errand)

    def list_held_studies(self, request: Request) -> schemas.HeldStudies:
        """Analyses that an operator stopped, and images that came again with another content."""
        with self._database.read() as session:
            held, doubtful = held_studies(session), doubtful_studies(session)
        self._note(request, "held", len(held) + len(doubtful))
        return schemas.HeldStudies(
            held=tuple(schemas.HeldStudy.model_validate(row) for row in held),
            doubtful=tuple(schemas.DoubtfulStudy.model_validate(row) for row in doubtful),
        )

    def list_failures(self, request: Request) -> schemas.Failures:
        """What failed for good, by place and cause."""
        with self._database.read() as session:
            groups = failed_groups(dead_letters(session))
        self._note(request, "failed", len(groups))
        return schemas.Failures(groups=tuple(schemas.FailedGroup.model_validate(group) for group in groups))

    def retry_failures(self, request: Request, body: FailedBy, key: Key = None) -> Changed:
        """Give what failed at one place for one cause another chance."""
        return act(
            self._database,
            request,
            body,
            key,
            lambda session, word: destination_actions.send_failed(session, body.place, word, body.cause),
            at=self._clock(),
        )

    def _note(self, request: Request, name: str, shown: int) -> None:
        # accession numbers and UIDs lead to patients
        self._looks.note_by(client_of(request), Event.STUDIES_LISTED, name, list=name, shown=shown)
