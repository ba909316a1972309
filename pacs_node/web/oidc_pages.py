"""Single sign-on: off to the provider, back with an answer, and out again."""

from __future__ import annotations

import secrets
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from pacs_node.config import Settings
from pacs_node.db import Database
from pacs_node.db_accounts import Role
from pacs_node.errors import ConfigurationError
from pacs_node.oidc import LOGIN_TIME, Attempt, Identity, Provider
from pacs_node.oidc_metadata import OidcError, ProviderAwayError
from pacs_node.sessions import LoginRefusedError, count_external, log_in_external, refuse_external
from pacs_node.web.account_pages import AccountPages, local
from pacs_node.web.guard import Cookies, Rule, address_of
from pacs_node.web.render import Renderer

_LONGEST_CODE = 4096


class OidcPages:
    """Views around the provider of the settings.

    Parameters
    ----------
    database
        Accounts, sessions and the audit record.
    people
        Has the login page, where every failure ends.
    renderer, cookies
        Shared with the other pages.
    """

    def __init__(
        self,
        database: Database,
        settings: Settings,
        people: AccountPages,
        renderer: Renderer,
        cookies: Cookies,
    ) -> None:
        self._database, self._people = database, people
        self._renderer, self._cookies = renderer, cookies
        self._page = urlsplit(settings.oidc.page_url).netloc.lower()
        self._provider = Provider(settings.oidc, renderer.clock) if settings.oidc.issuer else None

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The routes; without a provider there is nothing behind them."""
        return (
            Rule("GET", "/oidc/start", None, self.start),
            Rule("GET", "/oidc/callback", None, self.callback),
            Rule("GET", "/oidc/logout", None, self.leave),
        )

    def _known(self) -> Provider:
        if self._provider is None:
            raise HTTPException(404, "There is no single sign-on here.")
        return self._provider

    def start(self, request: Request) -> Response:
        """Send the browser to the provider."""
        provider, following = self._known(), local(request.query_params.get("next"))
        if request.headers.get("host", "").lower() != self._page:
            # the cookie must be set where the provider sends the browser back to
            problem = f"Single sign-on works at {self._page} only."
            return self._people.login_page(request, following, problem, 400)
        attempt = Attempt.begin(following, self._renderer.clock())
        try:
            response = RedirectResponse(provider.authorization_url(attempt), 303)
        except OidcError as error:
            return self._people.login_page(request, following, str(error), 503)
        self._cookies.set_for_return(response, attempt.cookie, round(LOGIN_TIME.total_seconds()))
        return response

    def callback(self, request: Request) -> Response:
        """Take the provider's answer and begin a session."""
        provider = self._known()
        following, status, problem = "/", 401, ""
        try:
            attempt = self._attempt(request)
            following = local(attempt.following)
            response = self._enter(request, provider, attempt, following)
        except (OidcError, LoginRefusedError, ConfigurationError) as error:
            status = 503 if isinstance(error, ProviderAwayError | ConfigurationError) else 401
            problem = "Single sign-on is not set up rightly." if status == 503 else str(error)
            problem = str(error) if isinstance(error, ProviderAwayError) else problem
            response = self._people.login_page(request, following, problem, status)
        self._cookies.drop(response, self._cookies.oidc)
        return response

    def _attempt(self, request: Request) -> Attempt:
        """What this browser has begun; an answer that belongs to something else is not looked at."""
        cookie = request.cookies.get(self._cookies.oidc, "")
        attempt = Attempt.of_cookie(cookie, self._renderer.clock())
        state = request.query_params.get("state", "")
        if not secrets.compare_digest(state.encode("utf-8", "surrogatepass"), attempt.state.encode()):
            raise OidcError("This answer belongs to another login. Begin again.", "state")
        return attempt

    def _enter(self, request: Request, provider: Provider, attempt: Attempt, following: str) -> Response:
        address, at = address_of(request), self._renderer.clock()
        counts = count_external(self._database, address, at)
        try:
            identity = self._identity(request, provider, attempt)
            token = log_in_external(
                self._database,
                identity.issuer,
                identity.subject,
                identity.name,
                None if identity.role is None else Role(identity.role),
                address=address,
                at=at,
            )
        except (OidcError, LoginRefusedError) as error:
            reason = error.reason if isinstance(error, OidcError) else "no role, or disabled"
            refuse_external(self._database, reason, counts, address=address, at=at)
            raise
        # a redirect would still count as coming from the provider, and the cookie would not be sent
        response = self._renderer.page(request, "entered.html", following=following)
        self._cookies.set(response, self._cookies.session, token)
        return response

    def _identity(self, request: Request, provider: Provider, attempt: Attempt) -> Identity:
        query = request.query_params
        code = query.get("code", "")
        if "error" in query or not code or len(code) > _LONGEST_CODE:
            raise OidcError("The provider did not log you in.", "error of the provider")
        return provider.identity(attempt, code, query.get("iss"))

    def leave(self, request: Request) -> Response:
        """Send the browser to where the provider's own session ends."""
        try:
            address = self._known().logout_url()
        except OidcError as error:
            return self._people.login_page(request, "/", str(error), 503)
        return RedirectResponse(address or "/login", 303)
