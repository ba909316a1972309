"""What runs: the versions of the code, its packages and the database, and the models in use."""

from __future__ import annotations

import platform
import re
import time
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from alembic.runtime.migration import MigrationContext
from sqlalchemy.orm import Session

from inference.errors import ModelUnavailableError
from inference.registry import Pipeline, load_pipeline
from pacs_node import __version__
from pacs_node.config import Settings

_KEPT_S = 60.0
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def package_versions() -> tuple[tuple[str, str], ...]:
    """Name and version of each package that the node needs and that is installed, by name."""
    try:
        needed = metadata.requires("pacs-node") or []
    except metadata.PackageNotFoundError:
        return ()
    found = {}
    for requirement in needed:
        name = _NAME.match(requirement)
        if name is None or "extra ==" in requirement:
            continue
        try:
            found[name.group()] = metadata.version(name.group())
        except metadata.PackageNotFoundError:
            found[name.group()] = "not installed"
    return tuple(sorted(found.items()))


def code_versions(session: Session) -> tuple[tuple[str, str], ...]:
    """The node, Python, the system, the database and its schema."""
    connection = session.connection()
    server = ".".join(str(part) for part in connection.dialect.server_version_info or ())
    schema = MigrationContext.configure(connection).get_current_revision()
    return (
        ("pacs-node", __version__),
        ("Python", platform.python_version()),
        ("System", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        ("Database", f"{connection.dialect.name} {server}".strip()),
        ("Schema", schema or "none"),
    )


def pipeline_in_use(settings: Settings) -> Pipeline | str:
    """The cards of the models that the settings name; why not, where they can't be used.

    All weights are hashed for that, so what is said is up to `_KEPT_S` old.
    """
    return _pipeline(settings.pipeline.profile, settings.pipeline.models, int(time.monotonic() / _KEPT_S))


@lru_cache(maxsize=1)
def _pipeline(profile: str, models: str, _period: int) -> Pipeline | str:
    try:
        return load_pipeline(profile, models=Path(models))
    except ModelUnavailableError as error:
        return str(error)
