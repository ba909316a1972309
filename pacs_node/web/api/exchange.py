"""Operations on destinations: how each stands, and what an operator may do with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated

from fastapi import Path as InPath
from sqlalchemy.orm import Session
from starlette.requests import Request

from pacs_node import destination_actions
from pacs_node.accounts import Permission
from pacs_node.clock import Clock
from pacs_node.config import DestinationSettings, Settings
from pacs_node.db import Database
from pacs_node.doctor_findings import Finding
from pacs_node.examination import Examinations, echo_destination, look_at_destination
from pacs_node.operator_actions import ActionError, Word
from pacs_node.partners import destination_states
from pacs_node.web.api import node_schemas as schemas
from pacs_node.web.api.acting import PROBLEMS, Key, act, problem_of, word_of
from pacs_node.web.api.operation import Operation
from pacs_node.web.api.problems import Code
from pacs_node.web.api.record_schemas import Changed, Reason
from pacs_node.web.api.values import Place

_PATIENCE_S = 5.0
"""So long a request waits for a peer; what comes later is there when it is asked for again."""

DestinationName = Annotated[Place, InPath(description="Name of the destination.")]


class Exchange:
    """The operations and what they need.

    Parameters
    ----------
    examinations
        Shared with the pages.
    """

    def __init__(
        self, database: Database, settings: Settings, clock: Clock, examinations: Examinations
    ) -> None:
        self._database, self._settings, self._clock = database, settings, clock
        self._examinations = examinations

    def operations(self) -> tuple[Operation, ...]:
        """Return all of them."""
        act, one, unknown = Permission.ACT, "/destinations/{destination}", (Code.NO_DESTINATION,)
        return (
            Operation("GET", "/destinations", Permission.LOOK, self.list_destinations),
            Operation("POST", f"{one}/echo", act, self.echo_destination, unknown),
            Operation("POST", f"{one}/doctor", act, self.examine_destination, unknown),
            Operation("POST", f"{one}/retry", act, self.retry_destination, (*PROBLEMS, *unknown)),
            Operation("POST", f"{one}/resend", act, self.resend_destination, (*PROBLEMS, *unknown)),
        )

    def list_destinations(self) -> schemas.Destinations:
        """All destinations: what waits, what failed, and who isn't reached."""
        with self._database.read() as session:
            states = destination_states(session, self._settings, self._clock())
        return schemas.Destinations(
            destinations=tuple(schemas.Destination.model_validate(state) for state in states)
        )

    def echo_destination(self, request: Request, destination: DestinationName) -> schemas.Examination:
        """Ask a destination whether it answers."""
        return self._ask(request, "echo", destination, lambda item: echo_destination(item, self._settings))

    def examine_destination(self, request: Request, destination: DestinationName) -> schemas.Examination:
        """Ask a destination what the doctor asks: its SOP classes, transfer syntaxes and services."""
        now = self._clock()
        return self._ask(
            request, "doctor", destination, lambda item: look_at_destination(item, self._settings, now)
        )

    def retry_destination(
        self, request: Request, destination: DestinationName, body: Reason, key: Key = None
    ) -> Changed:
        """Let what waits for a destination be sent at once."""
        item = self._meant(destination)

        def change(session: Session, word: Word) -> int:
            destination_actions.try_now(session, item.name, word)
            return 1

        return act(self._database, request, body, key, change, at=self._clock())

    def resend_destination(
        self, request: Request, destination: DestinationName, body: Reason, key: Key = None
    ) -> Changed:
        """Give what failed at a destination another chance."""
        item = self._meant(destination)

        def change(session: Session, word: Word) -> int:
            return destination_actions.send_failed(session, item.name, word)

        return act(self._database, request, body, key, change, at=self._clock())

    def _meant(self, name: str) -> DestinationSettings:
        try:
            return destination_actions.configured(self._settings.destinations, name)
        except ActionError as error:
            raise problem_of(error) from None

    def _ask(
        self,
        request: Request,
        kind: str,
        name: str,
        look: Callable[[DestinationSettings], Iterable[Finding]],
    ) -> schemas.Examination:
        item, subject = self._meant(name), f"{kind} {name}"
        with self._database.write() as session:
            destination_actions.note(session, kind, name, word_of(request, "", self._clock()))
        self._examinations.ask(subject, lambda: look(item), _PATIENCE_S)
        return schemas.Examination.model_validate(self._examinations.last(subject))
