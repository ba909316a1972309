"""Tokens of client programs, and what the JSON API offers them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from pacs_node import tokens
from pacs_node.accounts import AccountError, Permission
from pacs_node.db import Database
from pacs_node.db_accounts import Role
from pacs_node.web.api.operation import Operation
from pacs_node.web.api.problems import Code
from pacs_node.web.guard import Rule, form_of, known_visitor
from pacs_node.web.render import Renderer


class TokenPages:
    """Views around the API.

    Parameters
    ----------
    database
        Tokens and the audit record.
    renderer
        Shared with the other pages.
    operations
        Of the API.
    """

    def __init__(self, database: Database, renderer: Renderer, operations: Sequence[Operation]) -> None:
        self._database, self._renderer, self._operations = database, renderer, operations

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The routes."""
        return (
            Rule("GET", "/api", Permission.SELF, self.operations),
            Rule("GET", "/tokens", Permission.MANAGE, self.tokens),
            Rule("POST", "/tokens", Permission.MANAGE, self.add_token),
            Rule("POST", "/tokens/revoke", Permission.MANAGE, self.revoke_token),
        )

    def operations(self, request: Request) -> Response:
        """What the API offers, and the codes of its problems."""
        return self._renderer.page(
            request, "api.html", operations=self._operations, codes=list(Code), here="api"
        )

    def tokens(self, request: Request) -> Response:
        """All tokens."""
        return self._page(request)

    def _page(self, request: Request, problem: str = "", shown: tuple[str, str] | None = None) -> Response:
        now = self._renderer.clock()
        with self._database.read() as session:
            rows = tokens.all_tokens(session)
        return self._renderer.page(
            request,
            "tokens.html",
            status=400 if problem else 200,
            tokens=[(row, tokens.is_valid(row, now)) for row in rows],
            roles=[role.value for role in Role],
            problem=problem,
            shown=shown,
            here="users",
        )

    def add_token(self, request: Request) -> Response:
        """Make a token, which is shown once."""
        form, actor = form_of(request), known_visitor(request).actor
        try:
            with self._database.write() as session:
                made = tokens.add(
                    session,
                    form.get("client", ""),
                    _role(form.get("role", "")),
                    at=self._renderer.clock(),
                    actor=actor,
                    expires_at=_end_of(form.get("last_day", "").strip()),
                )
        except AccountError as error:
            return self._page(request, str(error))
        return self._page(request, shown=(form["client"], made.secret))

    def revoke_token(self, request: Request) -> Response:
        """Let nobody in by a token any more."""
        number = form_of(request).get("token", "")
        try:
            with self._database.write() as session:
                row = tokens.find(session, int(number) if number.isdecimal() and len(number) < 10 else 0)
                tokens.revoke(session, row, at=self._renderer.clock(), actor=known_visitor(request).actor)
        except AccountError as error:
            return self._page(request, str(error))
        return RedirectResponse("/tokens", 303)


def _role(text: str) -> Role:
    try:
        return Role(text)
    except ValueError:
        raise AccountError(f"There is no role {text!r}.") from None


def _end_of(day: str) -> datetime | None:
    """The end of a day where the node stands, in UTC; None where none is named."""
    if not day:
        return None
    try:
        return (
            datetime.combine(date.fromisoformat(day), time()).astimezone() + timedelta(days=1)
        ).astimezone(UTC)
    except (ValueError, OverflowError):
        raise AccountError(f"{day} is no day: write 2026-03-02.") from None
