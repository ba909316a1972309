"""The page of settings: what is in force and where it comes from, what runs, and what the doctor found."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from pacs_node import audit
from pacs_node.accounts import Permission
from pacs_node.config import Settings
from pacs_node.config_sources import setting_tables
from pacs_node.db import Database
from pacs_node.examination import NODE, Examinations, look_at_node
from pacs_node.versions import code_versions, package_versions, pipeline_in_use
from pacs_node.web.guard import Rule, known_visitor
from pacs_node.web.render import Renderer

_PATIENCE_S = 5.0


class SettingsPages:
    """The views and what they need; nothing can be changed here.

    Parameters
    ----------
    examinations
        Shared with the page of destinations.
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
        return (
            Rule("GET", "/settings", Permission.MANAGE, self.shown),
            Rule("POST", "/settings/doctor", Permission.MANAGE, self.doctor),
        )

    def shown(self, request: Request) -> Response:
        """Everything on one page."""
        with self._database.read() as session:
            code = code_versions(session)
        pipeline = pipeline_in_use(self._settings)
        found = self._examinations.last(NODE)
        return self._renderer.page(
            request,
            "settings.html",
            here="settings",
            tables=setting_tables(self._settings),
            code=code,
            packages=package_versions(),
            pipeline=None if isinstance(pipeline, str) else pipeline,
            unavailable=pipeline if isinstance(pipeline, str) else "",
            found=found,
        )

    def doctor(self, request: Request) -> Response:
        """Have the doctor look at this machine."""
        who, now = known_visitor(request), self._renderer.clock()
        with self._database.write() as session:
            audit.record(
                session,
                audit.Event.OPERATOR_ACTED,
                at=now,
                actor=who.actor,
                action="doctor",
                address=who.address,
            )
        self._examinations.ask(NODE, lambda: look_at_node(self._settings, now), _PATIENCE_S)
        return RedirectResponse("/settings", 303)
