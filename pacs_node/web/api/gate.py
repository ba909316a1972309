"""Who may use which operation: a bearer token and a permission, before anything of the request is read.

Cookies mean nothing here, so no other page in somebody's browser can use their login.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from pacs_node import audit, tokens
from pacs_node.accounts import Permission
from pacs_node.audit import Event, Outcome
from pacs_node.clock import Clock
from pacs_node.config import WebSettings
from pacs_node.db import Database
from pacs_node.tokens import Client
from pacs_node.web.api.limits import Rates, WrongTokens
from pacs_node.web.api.problems import Code, ProblemError
from pacs_node.web.guard import address_of

_LARGEST_BODY = 16384
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="pacs-node"'}
_WRONG = {"WWW-Authenticate": 'Bearer realm="pacs-node", error="invalid_token"'}

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def client_of(request: Request) -> Client:
    """Who asks."""
    found = request.state.client
    if not isinstance(found, Client):
        raise ProblemError(Code.NO_TOKEN, headers=_CHALLENGE)
    return found


class Gate:
    """Stands before every operation.

    Parameters
    ----------
    database
        Tokens and the audit record.
    settings
        How many requests a token may make.
    clock
        Source of time.
    """

    def __init__(self, database: Database, settings: WebSettings, clock: Clock) -> None:
        self._database, self._clock = database, clock
        self._wrong, self._rates = WrongTokens(), Rates(settings.api_requests_per_minute)

    def route_class(self, permission: Permission) -> type[APIRoute]:
        """Return the class of the routes that take a permission."""
        gate = self

        class GuardedRoute(APIRoute):
            """Lets somebody in before the framework looks at the request."""

            def get_route_handler(self) -> Handler:
                inner = super().get_route_handler()
                name = f"{'/'.join(sorted(self.methods or ()))} /api/v1{self.path}"

                async def handle(request: Request) -> Response:
                    request.state.client = await run_in_threadpool(gate.let_in, request, permission, name)
                    _check_names(request)
                    return await inner(Request(request.scope, _limited(request)))

                return handle

        return GuardedRoute

    def let_in(self, request: Request, permission: Permission, route: str) -> Client:
        """Return who asks.

        Raises
        ------
        ProblemError
            Nobody, or one who may not.
        """
        kind, _, secret = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not secret.strip():
            raise ProblemError(Code.NO_TOKEN, headers=_CHALLENGE)
        address, now = address_of(request), self._clock()
        client = tokens.client_of(self._database, secret.strip(), address=address, at=now)
        if client is None:
            self._refuse(address)
            raise ProblemError(Code.WRONG_TOKEN, headers=_WRONG)
        wait = self._rates.take(client.token_id, now)
        if wait is not None:
            raise ProblemError.wait("This token asks too often.", wait.total_seconds())
        if not client.may(permission):
            self._note_denied(request, client, route)
            raise ProblemError(Code.ROLE, f"The role of this token ({client.role}) doesn't allow it.")
        return client

    def _refuse(self, address: str) -> None:
        now, unknown = self._clock(), tokens.actor_of("unknown")
        locked = self._wrong.locked_for(address, now)
        if locked is not None:
            raise ProblemError.wait("Too many wrong tokens came from this address.", locked.total_seconds())
        is_locked = self._wrong.count(address, now)
        with self._database.write() as session:
            audit.record(
                session, Event.LOGIN_REFUSED, at=now, actor=unknown, outcome=Outcome.MINOR_FAILURE,
                address=address, reason="wrong token",
            )  # fmt: skip
            if is_locked:
                audit.record(
                    session, Event.LOGIN_LOCKED, at=now, actor=unknown, outcome=Outcome.SERIOUS_FAILURE,
                    address=address, reason="too many wrong tokens of this address",
                )  # fmt: skip

    def _note_denied(self, request: Request, who: Client, route: str) -> None:
        with self._database.write() as session:
            audit.record(
                session,
                Event.ACCESS_DENIED,
                at=self._clock(),
                actor=who.actor,
                study_uid=_uid(request),
                outcome=Outcome.MINOR_FAILURE,
                address=who.address,
                route=route,
                reason=f"role {who.role}",
            )


def _check_names(request: Request) -> None:
    """Refuse a query that has a name twice: no operation takes several values, and one would be dropped."""
    names = [name for name, _ in request.query_params.multi_items()]
    if len(names) != len(set(names)):
        raise ProblemError(Code.INVALID, "A name stands in the query more than once.")


def _uid(request: Request) -> str | None:
    """The study of the address where it is one: nothing else of the request gets into the record."""
    found = str(request.path_params.get("study_uid", ""))
    return found if found and len(found) <= 64 and not set(found) - set("0123456789.") else None


def _limited(request: Request) -> Callable[[], Coroutine[Any, Any, Message]]:
    """Receive a request whose body ends with an error when it becomes too long."""
    size = 0

    async def receive() -> Message:
        nonlocal size
        message = await request.receive()
        size += len(message.get("body", b""))
        if size > _LARGEST_BODY:
            # only this kind of error comes through the framework unchanged
            raise HTTPException(Code.TOO_LARGE.status)
        return message

    return receive
