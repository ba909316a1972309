"""The page of destinations and callers: how each stands, and what an operator may do with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from pacs_node import destination_actions
from pacs_node.accounts import Permission
from pacs_node.config import DestinationSettings, Settings
from pacs_node.db import Database
from pacs_node.doctor_findings import Finding
from pacs_node.examination import Examinations, echo_destination, look_at_destination
from pacs_node.operator_actions import LONGEST_REASON, ActionError, BadReasonError, Word
from pacs_node.partners import caller_states, destination_states
from pacs_node.refusals import REFUSALS_OF, advice, refusals
from pacs_node.web.guard import Rule, form_of, known_visitor
from pacs_node.web.render import Renderer

_PATIENCE_S = 5.0
"""So long a person waits for a peer; what comes later stands on the page when it is loaded again."""

_REFRESH_SECONDS = 10
_MOST_REFUSED = 20


class DestinationPages:
    """The views and what they need.

    Parameters
    ----------
    database
        Outbox and audit record.
    settings
        Destinations and callers as they run.
    examinations
        Shared with the page of settings.
    """

    def __init__(
        self, database: Database, settings: Settings, renderer: Renderer, examinations: Examinations
    ) -> None:
        self._database = database
        self._settings = settings
        self._renderer = renderer
        self._examinations = examinations

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The routes."""
        one = "/destinations/{destination}"
        return (
            Rule("GET", "/destinations", Permission.LOOK, self.listed),
            Rule("POST", f"{one}/echo", Permission.ACT, self.echo),
            Rule("POST", f"{one}/doctor", Permission.ACT, self.doctor),
            Rule("POST", f"{one}/retry", Permission.ACT, self.retry),
            Rule("POST", f"{one}/resend", Permission.ACT, self.resend),
        )

    def listed(self, request: Request) -> Response:
        """All of them; names no patient, so it is no look at one."""
        settings, now = self._settings, self._renderer.clock()
        with self._database.read() as session:
            states = destination_states(session, settings, now)
            callers = caller_states(session, settings.callers)
        refused = [
            (item, what.partition("\n"))
            for item in refusals(self._database, now - REFUSALS_OF)
            if (what := advice(item, settings)) is not None
        ]
        return self._renderer.page(
            request,
            "destinations.html",
            here="destinations",
            states=states,
            asked={
                item.name: [self._examinations.last(f"{kind} {item.name}") for kind in ("echo", "doctor")]
                for item in states
            },
            callers=callers,
            speaks_tls=settings.listener.tls_files() is not None,
            refused=refused[:_MOST_REFUSED],
            longest_reason=LONGEST_REASON,
            refresh=_REFRESH_SECONDS,
        )

    def echo(self, request: Request) -> Response:
        """Ask whether it answers."""
        return self._ask(request, "echo", lambda item: echo_destination(item, self._settings))

    def doctor(self, request: Request) -> Response:
        """Ask what the doctor asks."""
        now = self._renderer.clock()
        return self._ask(request, "doctor", lambda item: look_at_destination(item, self._settings, now))

    def retry(self, request: Request) -> Response:
        """Let what waits be sent at once."""
        item, word = self._meant(request), self._word(request)
        with self._database.write() as session:
            destination_actions.try_now(session, item.name, word)
        return _back(item)

    def resend(self, request: Request) -> Response:
        """Give what failed another chance."""
        item, word = self._meant(request), self._word(request)
        try:
            with self._database.write() as session:
                destination_actions.send_failed(session, item.name, word)
        except ActionError as error:
            status = 400 if isinstance(error, BadReasonError) else 409
            raise HTTPException(status, str(error)) from None
        return _back(item)

    def _ask(
        self, request: Request, kind: str, look: Callable[[DestinationSettings], Iterable[Finding]]
    ) -> Response:
        item = self._meant(request)
        with self._database.write() as session:
            destination_actions.note(session, kind, item.name, self._word(request))
        self._examinations.ask(f"{kind} {item.name}", lambda: look(item), _PATIENCE_S)
        return _back(item)

    def _meant(self, request: Request) -> DestinationSettings:
        try:
            return destination_actions.configured(
                self._settings.destinations, request.path_params["destination"]
            )
        except ActionError as error:
            raise HTTPException(404, str(error)) from None

    def _word(self, request: Request) -> Word:
        who = known_visitor(request)
        reason = form_of(request).get("reason", "").strip()
        return Word(who.actor, who.address, reason, self._renderer.clock())


def _back(item: DestinationSettings) -> Response:
    return RedirectResponse(f"/destinations#at-{quote(item.name, safe='')}", 303)
