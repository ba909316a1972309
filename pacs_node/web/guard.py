"""Who may ask for which page: a session, a permission, and for each change a form of our own."""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Lock
from typing import Any, Protocol
from urllib.parse import parse_qsl, quote, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from pacs_node import audit
from pacs_node.accounts import Permission
from pacs_node.audit import Event, Outcome
from pacs_node.clock import Clock
from pacs_node.config import WebSettings
from pacs_node.db import Database
from pacs_node.kept_files import KeptFile
from pacs_node.sessions import Limits, Visitor, csrf_of, visitor
from pacs_node.web.render import Renderer, visitor_of

View = Callable[[Request], Response]

_LARGEST_FORM = 16384
_SAME_VIEW = timedelta(minutes=10)
_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class Rule:
    """One route.

    Parameters
    ----------
    permission
        What it takes; None: open to everybody, and shows no patient data.
    """

    method: str
    path: str
    permission: Permission | None
    view: View


def known_visitor(request: Request) -> Visitor:
    """Who asks, on a page that nobody else gets."""
    found = visitor_of(request)
    if found is None:
        raise HTTPException(401, "Log in first.")
    return found


def form_of(request: Request) -> dict[str, str]:
    """The fields of the form that was sent."""
    found: dict[str, str] = request.state.form
    return found


def address_of(request: Request) -> str:
    """Where the browser is."""
    return request.client.host if request.client else ""


class Cookies:
    """The cookie of a session, the one of the login form, and the one of a login by a provider.

    Parameters
    ----------
    https
        Whether browsers come by HTTPS: then the cookies go nowhere else, and no other host can set them.
    """

    def __init__(self, *, https: bool) -> None:
        self._https = https
        prefix = "__Host-" if https else ""
        self.session, self.login, self.oidc = f"{prefix}session", f"{prefix}login", f"{prefix}oidc"

    def set(self, response: Response, name: str, value: str) -> None:
        """Let the browser keep a value until it is closed, out of reach of scripts and other pages."""
        response.set_cookie(name, value, path="/", secure=self._https, httponly=True, samesite="strict")

    def set_for_return(self, response: Response, value: str, seconds: int) -> None:
        """Let the browser keep what a login began with until the provider, another site, sends it back."""
        response.set_cookie(
            self.oidc, value, seconds, path="/", secure=self._https, httponly=True, samesite="lax"
        )

    def drop(self, response: Response, name: str) -> None:
        """Let the browser forget a value."""
        response.delete_cookie(name, path="/", secure=self._https, httponly=True, samesite="strict")


async def _read_form(request: Request) -> dict[str, str]:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _LARGEST_FORM:
            raise HTTPException(413, "This form is too large.")
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise HTTPException(415, "Only forms of this page are taken.")
    try:
        return dict(
            parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=50, errors="strict")
        )
    except ValueError:
        raise HTTPException(400, "This form can't be read.") from None


class Guard:
    """Stands before every view.

    Parameters
    ----------
    database
        Sessions and the audit record.
    settings
        How long sessions last.
    renderer
        Of what a visitor sees instead.
    external
        How long sessions of accounts of a provider last.
    """

    def __init__(
        self, database: Database, settings: WebSettings, renderer: Renderer, external: timedelta
    ) -> None:
        self._database = database
        self._limits = Limits(
            timedelta(minutes=settings.idle_minutes), timedelta(hours=settings.session_hours), external
        )
        self._renderer = renderer
        self.cookies = Cookies(https=settings.is_https)

    def endpoint(self, rule: Rule) -> Callable[[Request], Awaitable[Response]]:
        """Return what serves a route."""

        async def answer(request: Request) -> Response:
            request.state.form = await _read_form(request) if rule.method == "POST" else {}
            return await run_in_threadpool(self._answer, rule, request)

        return answer

    def _answer(self, rule: Rule, request: Request) -> Response:
        who = None if rule.permission is None else self._visitor(request)
        request.state.visitor = who
        if rule.permission is None:
            if rule.method == "POST":
                self._check_form(request, csrf_of(request.cookies.get(self.cookies.login, "")))
            return rule.view(request)
        if who is None:
            return self._to_login(request, rule)
        if not who.may(rule.permission):
            self._note_denied(request, rule, who, "role")
            return self._renderer.error(request, 403, f"Your role ({who.role}) doesn't allow this.")
        if rule.method == "POST":
            self._check_form(request, who.csrf)
        if who.must_change and rule.permission is not Permission.SELF:
            return RedirectResponse("/password", 303)
        return rule.view(request)

    def _visitor(self, request: Request) -> Visitor | None:
        token = request.cookies.get(self.cookies.session)
        if not token:
            return None
        return visitor(
            self._database,
            token,
            self._limits,
            address=address_of(request),
            at=self._renderer.clock(),
            clicked="auto" not in request.query_params,
        )

    def _to_login(self, request: Request, rule: Rule) -> Response:
        if rule.method == "POST":
            return self._renderer.error(request, 401, "Nobody is logged in here, or no longer.")
        query = "&".join(part for part in request.url.query.split("&") if part and part != "auto=1")
        here = request.url.path + (f"?{query}" if query else "")
        return RedirectResponse(f"/login?next={quote(here, safe='')}", 303)

    def _check_form(self, request: Request, expected: str) -> None:
        """Refuse a form that another page made (cross-site request forgery)."""
        headers = request.headers
        origin = headers.get("origin", "null")
        foreign = origin != "null" and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
        if foreign or headers.get("sec-fetch-site", "same-origin") != "same-origin":
            raise HTTPException(403, "This form came from another page.")
        if not hmac.compare_digest(form_of(request).get("csrf", "").encode(), expected.encode()):
            raise HTTPException(403, "This form is out of date. Load the page again.")

    def _note_denied(self, request: Request, rule: Rule, who: Visitor, reason: str) -> None:
        with self._database.write() as session:
            audit.record(
                session,
                Event.ACCESS_DENIED,
                at=self._renderer.clock(),
                actor=who.actor,
                study_uid=request.path_params.get("study_uid"),
                outcome=Outcome.MINOR_FAILURE,
                address=who.address,
                route=f"{rule.method} {rule.path}",
                reason=f"{reason} {who.role}",
            )


class Looker(Protocol):
    """Somebody who looks: a person at a page, or a program with a token."""

    @property
    def session_id(self) -> int | str:
        """Tells looks of one login or token from those of others."""

    @property
    def actor(self) -> str:
        """Name in the audit record."""

    @property
    def address(self) -> str:
        """Where from."""


class Looks:
    """Who looked at what, in the audit record before it is shown.

    The same view again within ten minutes of one session is the same look: pages load themselves again.

    Parameters
    ----------
    database
        Holds the audit record.
    clock
        Source of time.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._seen: OrderedDict[tuple[object, ...], datetime] = OrderedDict()
        self._lock = Lock()

    def note(
        self,
        request: Request,
        event: Event,
        *what: object,
        study_uid: str | None = None,
        every: bool = False,
        **objects: Any,
    ) -> None:
        """Record a look.

        Parameters
        ----------
        *what
            Tells this view from others of the same event.
        every
            Record it whenever it is asked for.
        """
        self.note_by(known_visitor(request), event, *what, study_uid=study_uid, every=every, **objects)

    def note_result(self, who: Looker, file: KeptFile) -> None:
        """Record that somebody got a file of a result."""
        self.note_by(
            who,
            Event.RESULT_VIEWED,
            file.id,
            study_uid=file.study_uid,
            artifact=file.id,
            kind=file.kind,
            sop_instance_uid=file.sop_instance_uid,
        )

    def note_by(
        self,
        who: Looker,
        event: Event,
        *what: object,
        study_uid: str | None = None,
        every: bool = False,
        **objects: Any,
    ) -> None:
        """Record a look of somebody; see `note`."""
        now = self._clock()
        key = (who.session_id, event, study_uid, *what)
        with self._lock:
            seen = self._seen.get(key)
        if not every and seen is not None and timedelta(0) <= now - seen < _SAME_VIEW:
            return
        with self._database.write() as session:
            audit.record(
                session, event, at=now, actor=who.actor, study_uid=study_uid, address=who.address, **objects
            )
        with self._lock:
            self._seen[key] = now
            self._seen.move_to_end(key)
            while len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
