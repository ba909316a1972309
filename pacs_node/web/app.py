"""The web part: routes, what protects them, and the server."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from threading import Event, Thread

import uvicorn
from sqlalchemy.exc import OperationalError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from pacs_node.clock import Clock, utc_now
from pacs_node.config import Settings, WebSettings
from pacs_node.db import Database
from pacs_node.storage import open_database
from pacs_node.web.protection import KnownHosts, ProtectiveHeaders
from pacs_node.web.views import Pages

logger = logging.getLogger(__name__)

_STATIC = Path(__file__).parent / "static"
_POLL_SECONDS = 0.5


def make_app(database: Database, settings: Settings, clock: Clock = utc_now) -> Starlette:
    """Build the page over a database.

    Parameters
    ----------
    database
        Only read; the caller disposes of it.
    settings
        Storage, destinations and callers as they run.
    clock
        Source of time.
    """
    pages = Pages(database, settings, clock)
    return Starlette(
        routes=[
            Route("/", pages.overview),
            Route("/studies", pages.studies),
            Route("/studies/{study_uid}", pages.study),
            Route("/artifacts/{artifact_id:int}", pages.artifact),
            Route("/health/live", pages.live),
            Route("/health/ready", pages.ready),
            Mount("/static", StaticFiles(directory=_STATIC)),
        ],
        middleware=[Middleware(ProtectiveHeaders), Middleware(KnownHosts, names=[settings.web.host])],
        exception_handlers={
            HTTPException: pages.refused,
            OperationalError: pages.unavailable,
            Exception: pages.failed,
        },
    )


def run(settings: Settings, stop: Event) -> None:
    """Serve the page until `stop` is set.

    Raises
    ------
    OSError
        The address can't be listened on.
    """
    database = open_database(settings)
    listening = _listen(settings.web)
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(database, settings),
            access_log=False,
            log_config=None,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            limit_concurrency=100,
            timeout_graceful_shutdown=5,
        )
    )
    # beside the main thread uvicorn leaves the signals alone
    thread = Thread(target=server.run, kwargs={"sockets": [listening]}, name="uvicorn")
    thread.start()
    logger.info("page", extra={"host": settings.web.host, "port": settings.web.port})
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
