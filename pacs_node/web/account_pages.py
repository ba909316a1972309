"""Login, logout, one's own password, and the accounts."""

from __future__ import annotations

import secrets
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from pacs_node import accounts, sessions
from pacs_node.account_admin import add_account, reset_account
from pacs_node.accounts import AccountError, BusyError, Passwords, Permission
from pacs_node.db import Database
from pacs_node.db_accounts import Account, Role
from pacs_node.sessions import LoginRefusedError, Visitor, csrf_of, log_in
from pacs_node.web.guard import Cookies, address_of, form_of, known_visitor
from pacs_node.web.render import Renderer

_WORDS = {
    Permission.LOOK: "look at studies and results",
    Permission.ACT: "requeue, hold and send studies",
    Permission.AUDIT: "read, check and export the audit record",
    Permission.MANAGE: "keep accounts",
}


def _words(role: Role) -> str:
    return "; ".join(words for permission, words in _WORDS.items() if permission in accounts.ALLOWED[role])


class AccountPages:
    """Views around accounts.

    Parameters
    ----------
    database
        Accounts, sessions and the audit record.
    passwords
        Hashes them.
    renderer, cookies
        Shared with the other pages.
    provider
        What the button of single sign-on says; empty: there is none.
    """

    def __init__(
        self,
        database: Database,
        passwords: Passwords,
        renderer: Renderer,
        cookies: Cookies,
        provider: str = "",
    ) -> None:
        self._provider = provider
        self._database = database
        self._passwords = passwords
        self._renderer = renderer
        self._cookies = cookies

    def login(self, request: Request) -> Response:
        """The form to log in."""
        return self.login_page(request, local(request.query_params.get("next")))

    def login_page(self, request: Request, following: str, problem: str = "", status: int = 200) -> Response:
        """The form to log in, with what went wrong before."""
        with self._database.read() as session:
            anybody = bool(accounts.all_accounts(session))
        # the form and this cookie belong together: another page can't log a browser in
        token = secrets.token_urlsafe(32)
        response = self._renderer.page(
            request,
            "login.html",
            status=status,
            form=csrf_of(token),
            following=following,
            problem=problem,
            anybody=anybody,
            provider=self._provider,
        )
        self._cookies.set(response, self._cookies.login, token)
        return response

    def log_in(self, request: Request) -> Response:
        """Begin a session with a new token."""
        form = form_of(request)
        following = local(form.get("next"))
        try:
            token = log_in(
                self._database,
                self._passwords,
                form.get("name", ""),
                form.get("password", ""),
                address=address_of(request),
                at=self._renderer.clock(),
            )
        except LoginRefusedError as error:
            return self.login_page(request, following, str(error), 401)
        except BusyError as error:
            raise HTTPException(503, str(error)) from None
        response = RedirectResponse(following, 303)
        self._cookies.set(response, self._cookies.session, token)
        self._cookies.drop(response, self._cookies.login)
        return response

    def log_out(self, request: Request) -> Response:
        """End the session."""
        sessions.log_out(self._database, known_visitor(request), self._renderer.clock())
        response = RedirectResponse("/login", 303)
        self._cookies.drop(response, self._cookies.session)
        return response

    def password(self, request: Request) -> Response:
        """The form for one's own password."""
        return self._renderer.page(request, "password.html", problem="", here="password")

    def change_password(self, request: Request) -> Response:
        """Set one's own password; all other sessions end."""
        who, form, now = known_visitor(request), form_of(request), self._renderer.clock()
        new = form.get("new", "")
        try:
            _check_new(who, form)
            sessions.confirm(self._database, self._passwords, who, form.get("current", ""), at=now)
            hashed = accounts.hashed(self._passwords, who.name, new, one_time=False)
            with self._database.write() as session:
                account = session.get_one(Account, who.account_id)
                accounts.set_password(session, account, hashed, at=now, actor=who.actor)
            token = log_in(self._database, self._passwords, who.name, new, address=who.address, at=now)
        except BusyError as error:
            raise HTTPException(503, str(error)) from None
        except AccountError as error:
            return self._renderer.page(
                request, "password.html", status=400, problem=str(error), here="password"
            )
        response = RedirectResponse("/", 303)
        self._cookies.set(response, self._cookies.session, token)
        return response

    def users(self, request: Request) -> Response:
        """All accounts."""
        return self._users_page(request)

    def _users_page(
        self, request: Request, problem: str = "", shown: tuple[str, str] | None = None
    ) -> Response:
        with self._database.read() as session:
            rows = accounts.all_accounts(session)
        return self._renderer.page(
            request,
            "users.html",
            status=400 if problem else 200,
            accounts=rows,
            roles=[role.value for role in Role],
            allowed={role.value: _words(role) for role in Role},
            problem=problem,
            shown=shown,
            hours=round(accounts.ONE_TIME.total_seconds() / 3600),
            here="users",
        )

    def add_user(self, request: Request) -> Response:
        """Add an account with a one-time password, which is shown once."""
        form, actor = form_of(request), known_visitor(request).actor
        try:
            shown = add_account(
                self._database,
                self._passwords,
                form.get("name", ""),
                _role(form.get("role")),
                at=self._renderer.clock(),
                actor=actor,
            )
        except AccountError as error:
            return self._users_page(request, str(error))
        return self._users_page(request, shown=shown)

    def change_user(self, request: Request) -> Response:
        """Change the role of an account, disable or enable it."""
        form, actor, at = form_of(request), known_visitor(request).actor, self._renderer.clock()
        try:
            with self._database.write() as session:
                account = accounts.find(session, form.get("name", ""))
                match request.path_params["change"]:
                    case "role":
                        accounts.set_role(session, account, _role(form.get("role")), at=at, actor=actor)
                    case "disable":
                        accounts.disable(session, account, at=at, actor=actor)
                    case "enable":
                        accounts.enable(session, account, at=at, actor=actor)
                    case _:
                        raise HTTPException(404, "There is no such page.")
        except AccountError as error:
            return self._users_page(request, str(error))
        return RedirectResponse("/users", 303)

    def reset_user(self, request: Request) -> Response:
        """Give an account a one-time password, which is shown once, and unlock it."""
        name, actor = form_of(request).get("name", ""), known_visitor(request).actor
        try:
            shown = reset_account(
                self._database, self._passwords, name, at=self._renderer.clock(), actor=actor
            )
        except AccountError as error:
            return self._users_page(request, str(error))
        return self._users_page(request, shown=shown)


def _check_new(who: Visitor, form: dict[str, str]) -> None:
    new = form.get("new", "")
    if who.is_external:
        raise AccountError("Your password is kept by the provider of your logins.")
    if new != form.get("again"):
        raise AccountError("The two new passwords differ.")
    if new == form.get("current"):
        raise AccountError("The new password is the old one.")
    accounts.check_password(who.name, new)


def _role(text: str | None) -> Role:
    try:
        return Role(text or "")
    except ValueError:
        raise AccountError(f"There is no role {text!r}.") from None


def local(target: str | None) -> str:
    """Where to go after the login: a page of ours, whatever was asked."""
    target = target or "/"
    parts = urlsplit(target) if target.isprintable() and target.isascii() else None
    if (
        parts is None
        or parts.scheme
        or parts.netloc
        or not target.startswith("/")
        or target[1:2] in {"/", "\\"}
    ):
        return "/"
    return target
