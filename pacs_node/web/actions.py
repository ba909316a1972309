"""What an operator does with a study on its page."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

from sqlalchemy.orm import Session
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from pacs_node import operator_actions
from pacs_node.clock import Clock
from pacs_node.config import Settings
from pacs_node.db import Database
from pacs_node.errors import StaleStateError
from pacs_node.operator_actions import (
    ActionError,
    BadReasonError,
    UnknownDestinationError,
    UnknownStudyError,
    Word,
)
from pacs_node.web.guard import form_of, known_visitor
from pacs_node.web.views import Pages, Refused


class Actions:
    """Views that change a study.

    Parameters
    ----------
    database
        Written to.
    settings
        The destinations.
    pages
        Has the study's own page, where a refusal is said.
    clock
        Source of time.
    """

    def __init__(self, database: Database, settings: Settings, pages: Pages, clock: Clock) -> None:
        self._database = database
        self._destinations = settings.destinations
        self._pages = pages
        self._clock = clock

    def requeue(self, request: Request) -> Response:
        """Analyse again what failed or is held."""
        return self._do(request, operator_actions.requeue)

    def hold(self, request: Request) -> Response:
        """Stop what is queued or being analysed until somebody requeues it."""
        return self._do(request, operator_actions.hold)

    def send(self, request: Request) -> Response:
        """Send the results again: the same bytes."""
        name = form_of(request).get("destination", "")
        return self._do(
            request,
            lambda session, uid, word: operator_actions.send(session, uid, word, self._destinations, name),
        )

    def _do(self, request: Request, action: Callable[[Session, str, Word], int]) -> Response:
        who, uid = known_visitor(request), request.path_params["study_uid"]
        word = Word(who.actor, who.address, form_of(request).get("reason", "").strip(), self._clock())
        try:
            with self._database.write() as session:
                action(session, uid, word)
        except UnknownStudyError as error:
            raise HTTPException(404, str(error)) from None
        except (BadReasonError, UnknownDestinationError) as error:
            return self._pages.study(request, Refused(400, str(error), word.reason))
        except ActionError as error:
            # the study is not in a state for it
            return self._pages.study(request, Refused(409, str(error), word.reason))
        except StaleStateError:
            return self._pages.study(request, Refused(409, "It changed at the same moment.", word.reason))
        return RedirectResponse(f"/studies/{quote(uid, safe='')}", 303)
