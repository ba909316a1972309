"""The page of what is amiss with studies: those that never came, what failed for good, what is held."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from pacs_node import destination_actions
from pacs_node.accounts import Permission
from pacs_node.audit import Event
from pacs_node.config import Settings
from pacs_node.db import Database
from pacs_node.dead_letters import ANALYSIS, dead_letters
from pacs_node.held import MOST, doubtful_studies, failed_groups, held_studies
from pacs_node.missed import last_search, missing_studies, search_soon
from pacs_node.operator_actions import LONGEST_REASON, ActionError, BadReasonError, Word
from pacs_node.web.guard import Looks, Rule, form_of, known_visitor
from pacs_node.web.render import Renderer

_LONGEST_CAUSE = 2000


class MissedPages:
    """The views and what they need.

    Parameters
    ----------
    database
        Read, and written to at an operator's word.
    settings
        Names the archive that is asked.
    looks
        Records who looked: the lists name studies.
    """

    def __init__(self, database: Database, settings: Settings, renderer: Renderer, looks: Looks) -> None:
        self._database = database
        self._archive = settings.archive
        self._renderer = renderer
        self._looks = looks

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The routes."""
        return (
            Rule("GET", "/missed", Permission.LOOK, self.listed),
            Rule("POST", "/missed/search", Permission.ACT, self.search),
            Rule("POST", "/missed/failed", Permission.ACT, self.again),
        )

    def listed(self, request: Request) -> Response:
        """All three lists."""
        with self._database.read() as session:
            missing = missing_studies(session)
            asked = last_search(session, self._archive.destination) if self._archive.destination else None
            groups = failed_groups(dead_letters(session))
            held, doubtful = held_studies(session), doubtful_studies(session)
        self._looks.note(
            request,
            Event.STUDIES_LISTED,
            "missed",
            list="missed",
            shown=min(len(missing), MOST) + len(held) + len(doubtful),
        )
        return self._renderer.page(
            request,
            "missed.html",
            here="missed",
            archive=self._archive,
            asked=asked,
            missing=missing[:MOST],
            n_missing=len(missing),
            groups=groups,
            analysis=ANALYSIS,
            held=held,
            doubtful=doubtful,
            longest_reason=LONGEST_REASON,
        )

    def search(self, request: Request) -> Response:
        """Have the archive asked now, by the scheduler."""
        name = self._archive.destination
        with self._database.write() as session:
            if not name or not search_soon(session, name, self._renderer.clock()):
                raise HTTPException(409, "No archive is asked for its studies: see archive.list_missed.")
            destination_actions.note(session, "search archive", name, self._word(request))
        return RedirectResponse("/missed", 303)

    def again(self, request: Request) -> Response:
        """Give what failed at one place for one cause another chance."""
        form = form_of(request)
        place, cause = form.get("place", ""), form.get("cause", "")
        if len(place) > 64 or len(cause) > _LONGEST_CAUSE:
            raise HTTPException(400, "This form can't be read.")
        try:
            with self._database.write() as session:
                destination_actions.send_failed(session, place, self._word(request), cause)
        except ActionError as error:
            status = 400 if isinstance(error, BadReasonError) else 409
            raise HTTPException(status, str(error)) from None
        return RedirectResponse("/missed#failed", 303)

    def _word(self, request: Request) -> Word:
        who = known_visitor(request)
        reason = form_of(request).get("reason", "").strip()
        return Word(who.actor, who.address, reason, self._renderer.clock())
