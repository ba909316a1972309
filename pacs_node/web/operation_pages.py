"""The pages from which the node is operated: destinations, what is missed or failed, settings."""

from __future__ import annotations

from pacs_node.config import Settings
from pacs_node.db import Database
from pacs_node.examination import Examinations
from pacs_node.web.destinations_page import DestinationPages
from pacs_node.web.guard import Looks, Rule
from pacs_node.web.missed_page import MissedPages
from pacs_node.web.render import Renderer
from pacs_node.web.settings_page import SettingsPages


def operation_rules(
    database: Database, settings: Settings, renderer: Renderer, looks: Looks, examinations: Examinations
) -> tuple[Rule, ...]:
    """The routes of all of them."""
    return (
        *DestinationPages(database, settings, renderer, examinations).rules,
        *MissedPages(database, settings, renderer, looks).rules,
        *SettingsPages(database, settings, renderer, examinations).rules,
    )
