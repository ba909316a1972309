"""Operations on the node itself: its state, destinations, models, and what the archive has besides."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request

from pacs_node import __version__
from pacs_node.accounts import ALLOWED, Permission
from pacs_node.alarms import alarms, further
from pacs_node.clock import Clock
from pacs_node.config import Settings
from pacs_node.config_sources import setting_tables
from pacs_node.db import Database
from pacs_node.latency import latency
from pacs_node.overview import Overview, disk_space, overview
from pacs_node.readiness import readiness
from pacs_node.web.api import node_schemas as schemas
from pacs_node.web.api.gate import client_of
from pacs_node.web.api.operation import Operation


class Node:
    """The operations and what they need."""

    def __init__(self, database: Database, settings: Settings, clock: Clock) -> None:
        self._database, self._settings, self._clock = database, settings, clock

    def operations(self) -> tuple[Operation, ...]:
        """Return all of them."""
        look = Permission.LOOK
        return (
            Operation("GET", "/me", Permission.SELF, self.get_me),
            Operation("GET", "/health", Permission.SELF, self.get_health),
            Operation("GET", "/overview", look, self.get_overview),
            Operation("GET", "/settings", Permission.MANAGE, self.show_settings),
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

    def get_health(self) -> schemas.Health:
        """Whether the node can take images and analyse them, and what keeps it from that."""
        checks = readiness(self._database, self._settings, self._clock())
        return schemas.Health(
            ready=all(check.ok for check in checks),
            checks=tuple(schemas.Check.model_validate(check) for check in checks),
        )

    def get_overview(self) -> schemas.Overview:
        """What the node is doing and what needs a person."""
        with self._database.read() as session:
            more, took = further(session, self._settings, self._clock()), latency(session)
        seen = self._seen()
        storage = self._settings.storage
        disk = disk_space(Path(storage.directory), storage.reserve_mb << 20)
        return schemas.Overview(
            work=schemas.Work.model_validate(seen),
            latency=schemas.Latency.model_validate(took),
            disk=schemas.Disk.model_validate(disk),
            alarms=tuple(schemas.Alarm.model_validate(alarm) for alarm in alarms(seen, disk, more)),
            version=__version__,
        )

    def _seen(self) -> Overview:
        now = self._clock()
        midnight = now.astimezone().replace(hour=0, minute=0, second=0, microsecond=0)
        with self._database.read() as session:
            return overview(session, now, midnight, [item.name for item in self._settings.destinations])

    def show_settings(self) -> schemas.Settings:
        """The configuration in force, without secrets."""
        tables = setting_tables(self._settings)
        return schemas.Settings(tables=tuple(schemas.SettingTable.model_validate(table) for table in tables))
