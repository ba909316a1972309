"""The web part: routes, what protects them, and the server."""

from __future__ import annotations

import logging
import socket
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread

import uvicorn
from sqlalchemy.exc import OperationalError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from pacs_node.accounts import HashCost, Passwords, Permission, all_accounts
from pacs_node.clock import Clock, utc_now
from pacs_node.config import Settings, WebSettings
from pacs_node.db import Database
from pacs_node.examination import Examinations
from pacs_node.storage import open_database
from pacs_node.tls import page_context
from pacs_node.web.account_pages import AccountPages
from pacs_node.web.actions import Actions
from pacs_node.web.api.app import ADDRESS, make_api, or_problem
from pacs_node.web.audit_page import AuditPages
from pacs_node.web.deadlines import BehindProxy, Deadlines
from pacs_node.web.feedback_page import FeedbackPages
from pacs_node.web.guard import Guard, Looks, Rule
from pacs_node.web.models_page import ModelPages
from pacs_node.web.oidc_pages import OidcPages
from pacs_node.web.operation_pages import operation_rules
from pacs_node.web.protection import KnownHosts, OnlyProxy, ProtectiveHeaders
from pacs_node.web.render import Renderer
from pacs_node.web.token_pages import TokenPages
from pacs_node.web.views import Pages

logger = logging.getLogger(__name__)

_STATIC = Path(__file__).parent / "static"
_POLL_SECONDS = 0.5
_P = Permission


def _rules(pages: Pages, people: AccountPages, actions: Actions, record: AuditPages) -> tuple[Rule, ...]:
    """Every route but the fixed files, and what it takes to get there."""
    return (
        Rule("GET", "/health/live", None, pages.live),
        Rule("GET", "/health/ready", None, pages.ready),
        Rule("GET", "/metrics", None, pages.metrics),
        Rule("GET", "/login", None, people.login),
        Rule("POST", "/login", None, people.log_in),
        Rule("POST", "/logout", _P.SELF, people.log_out),
        Rule("GET", "/password", _P.SELF, people.password),
        Rule("POST", "/password", _P.SELF, people.change_password),
        Rule("GET", "/", _P.LOOK, pages.overview),
        Rule("GET", "/studies", _P.LOOK, pages.studies),
        Rule("GET", "/studies/{study_uid}", _P.LOOK, pages.study),
        Rule("GET", "/artifacts/{artifact_id:int}", _P.LOOK, pages.artifact),
        Rule("POST", "/studies/{study_uid}/requeue", _P.ACT, actions.requeue),
        Rule("POST", "/studies/{study_uid}/hold", _P.ACT, actions.hold),
        Rule("POST", "/studies/{study_uid}/send", _P.ACT, actions.send),
        Rule("GET", "/audit", _P.AUDIT, record.listed),
        Rule("POST", "/audit", _P.AUDIT, record.checked),
        Rule("GET", "/audit/export", _P.AUDIT, record.exported),
        Rule("GET", "/users", _P.MANAGE, people.users),
        Rule("POST", "/users", _P.MANAGE, people.add_user),
        Rule("POST", "/users/reset", _P.MANAGE, people.reset_user),
        Rule("POST", "/users/{change}", _P.MANAGE, people.change_user),
    )


def make_app(
    database: Database, settings: Settings, clock: Clock = utc_now, cost: HashCost | None = None
) -> Starlette:
    """Build the page over a database.

    Parameters
    ----------
    database
        The caller disposes of it.
    settings
        Storage, destinations and callers as they run.
    clock
        Source of time.
    cost
        Of new password hashes; the default of `HashCost` if None.

    Returns
    -------
    Starlette
        ``state.rules`` holds the routes with the permission of each, ``state.api`` the JSON API.
    """
    renderer, looks = Renderer(settings, clock), Looks(database, clock)
    external = timedelta(hours=settings.oidc.session_hours)
    guard = Guard(database, settings.web, renderer, external)
    pages = Pages(database, settings, renderer, looks)
    provider = settings.oidc.name if settings.oidc.issuer else ""
    passwords = Passwords(cost)
    people = AccountPages(database, passwords, renderer, guard.cookies, provider)
    single_sign_on = OidcPages(database, settings, people, renderer, guard.cookies)
    record = AuditPages(database, settings, renderer, looks)
    rules = (*_rules(pages, people, Actions(database, settings, pages, clock), record), *single_sign_on.rules)
    rules += FeedbackPages(database, clock).rules
    rules += ModelPages(database, settings, renderer, looks).rules
    examinations = Examinations(Path(settings.storage.directory), clock)
    rules += operation_rules(database, settings, renderer, looks, examinations)
    api = make_api(database, settings, clock, looks, passwords=passwords, examinations=examinations)
    rules += TokenPages(database, renderer, api.state.operations).rules
    app = Starlette(
        routes=[
            *(Route(rule.path, guard.endpoint(rule), methods=[rule.method]) for rule in rules),
            Mount("/static", StaticFiles(directory=_STATIC)),
            Mount(ADDRESS, api),
        ],
        middleware=[
            Middleware(ProtectiveHeaders, https=settings.web.is_https),
            Middleware(KnownHosts, names=[settings.web.host, *settings.web.names]),
            Middleware(OnlyProxy, address=settings.web.proxy_address),
        ],
        exception_handlers={
            HTTPException: or_problem(pages.refused),
            OperationalError: pages.unavailable,
            Exception: pages.failed,
        },
    )
    app.state.rules, app.state.api = rules, api
    return app


def run(settings: Settings, stop: Event) -> None:
    """Serve the page until `stop` is set.

    Raises
    ------
    OSError
        The address can't be listened on.
    ConfigurationError
        The certificate can't be used.
    """
    web = settings.web
    context = page_context(web.tls_certificate_file, web.tls_key_file) if web.tls_certificate_file else None
    database = open_database(settings)
    with database.read() as session:
        if not all_accounts(session):
            logger.warning("nobody can log in yet: pacs-node users add NAME --role administrator")
    listening = _listen(web)
    http = BehindProxy if web.proxy_address else Deadlines
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(database, settings),
            http=http if context is None else http.over_tls(context),
            access_log=False,
            log_config=None,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            limit_concurrency=200,
            timeout_graceful_shutdown=5,
        )
    )
    # beside the main thread uvicorn leaves the signals alone
    thread = Thread(target=server.run, kwargs={"sockets": [listening]}, name="uvicorn")
    thread.start()
    logger.info("page", extra={"host": web.host, "port": web.port})
    while thread.is_alive() and not stop.wait(_POLL_SECONDS):
        pass
    server.should_exit = True
    thread.join()
    listening.close()
    database.dispose()
    if not stop.is_set():
        raise RuntimeError("the web server ended by itself")


def _listen(settings: WebSettings) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[:2], family=family)
