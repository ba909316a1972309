"""Operations on the node itself: its state, destinations, models, and what the archive has besides."""

from __future__ import annotations

import logging
from pathlib import Path

from sqlalchemy import select
from starlette.requests import Request

from inference.errors import ModelUnavailableError
from inference.inventory import inventory
from pacs_node import __version__
from pacs_node.accounts import ALLOWED, Permission
from pacs_node.audit import Event
from pacs_node.clock import Clock
from pacs_node.config import Settings
from pacs_node.db import Database, Errand
from pacs_node.missed import missing_studies
from pacs_node.overview import Overview, alarms, disk_space, overview
from pacs_node.web.api import node_schemas as schemas
from pacs_node.web.api.gate import client_of
from pacs_node.web.api.operation import Operation
from pacs_node.web.api.problems import Code, ProblemError
from pacs_node.web.guard import Looks

logger = logging.getLogger(__name__)

_MOST = 1000


class Node:
    """The operations and what they need.

    Parameters
    ----------
    looks
        Records who looked at what.
    """

    def __init__(self, database: Database, settings: Settings, clock: Clock, looks: Looks) -> None:
        self._database, self._settings, self._clock, self._looks = database, settings, clock, looks

    def operations(self) -> tuple[Operation, ...]:
        """Return all of them."""
        look = Permission.LOOK
        return (
            Operation("GET", "/me", Permission.SELF, self.get_me),
            Operation("GET", "/overview", look, self.get_overview),
            Operation("GET", "/destinations", look, self.list_destinations),
            Operation("GET", "/missed-studies", look, self.list_missed_studies),
            Operation("GET", "/models", look, self.list_models),
        )

    def get_me(self, request: Request) -> schemas.Asker:
        """Whose token this is, and what it may do."""
        who = client_of(request)
        return schemas.Asker.model_validate(
            {
                "name": who.name,
                "role": who.role,
                "permissions": sorted(ALLOWED[who.role]),
                "prefix": who.prefix,
                "expires_at": who.expires_at,
            }
        )

    def get_overview(self) -> schemas.Overview:
        """What the node is doing and what needs a person."""
        seen = self._seen()
        storage = self._settings.storage
        disk = disk_space(Path(storage.directory), storage.reserve_mb << 20)
        return schemas.Overview(
            work=schemas.Work.model_validate(seen),
            disk=schemas.Disk.model_validate(disk),
            alarms=tuple(schemas.Alarm.model_validate(alarm) for alarm in alarms(seen, disk)),
            version=__version__,
        )

    def _seen(self) -> Overview:
        now = self._clock()
        midnight = now.astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
        with self._database.read() as session:
            return overview(session, now, midnight, [item.name for item in self._settings.destinations])

    def list_destinations(self) -> schemas.Destinations:
        """All destinations: what waits, what failed, and who isn't reached."""
        known = {item.name: item for item in self._settings.destinations}
        lines = []
        for line in self._seen().destinations:
            item = known.get(line.name)
            state = schemas.DestinationState.model_validate(line)
            lines.append(
                schemas.ConfiguredDestination.model_validate(
                    dict(state)
                    | {"kind": item.kind if item else None, "profile": item.profile if item else None}
                )
            )
        return schemas.Destinations(destinations=tuple(lines))

    def list_missed_studies(self, request: Request) -> schemas.MissedStudies:
        """Studies that the archive has and that never came here."""
        with self._database.read() as session:
            rows = missing_studies(session)
            searches = session.execute(select(Errand).order_by(Errand.name)).scalars().all()
        shown = rows[:_MOST]
        # accession numbers lead to patients
        self._looks.note_by(client_of(request), Event.STUDIES_LISTED, "missed", missed=True, shown=len(shown))
        return schemas.MissedStudies(
            studies=tuple(schemas.MissedStudy.model_validate(row) for row in shown),
            total=len(rows),
            searches=tuple(schemas.Search.model_validate(row) for row in searches),
        )

    def list_models(self) -> schemas.Models:
        """Models that the node has or could fetch, as their cards and the catalogue say."""
        try:
            found = inventory(Path(self._settings.pipeline.models))
        except ModelUnavailableError as error:
            logger.exception("models can't be listed")
            raise ProblemError(Code.FAILED, str(error)) from None
        return schemas.Models(
            profile=self._settings.pipeline.profile,
            models=tuple(schemas.Model.model_validate(model) for model in found),
        )
