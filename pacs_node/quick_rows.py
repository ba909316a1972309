"""The row of a new instance of a series that is open: what nearly every object that comes is.

Two statements for each, and none of the machinery of objects, which took more of the processor than all the
rest of a reception. Whatever isn't that stays for `pacs_node.reception`, which looks closer.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from sqlalchemy import (
    Connection,
    Insert,
    String,
    Table,
    Update,
    and_,
    bindparam,
    exists,
    insert,
    literal_column,
    select,
    update,
)
from sqlalchemy.engine import Compiled, Dialect
from sqlalchemy.exc import DBAPIError

from pacs_node.db import Artifact, Base, Instance, Series, Study
from pacs_node.states import SeriesState

Values = Mapping[str, str | int]


class _Statement:
    """Compiled once for each kind of database."""

    def __init__(self, statement: Insert | Update) -> None:
        self._statement = statement
        self._compiled: dict[str, Compiled] = {}

    def compiled(self, dialect: Dialect) -> Compiled:
        """Return it as that kind of database says it."""
        if (compiled := self._compiled.get(dialect.name)) is None:
            compiled = self._compiled[dialect.name] = self._statement.compile(dialect=dialect)
        return compiled

    def changed(self, connection: Connection, values: Values) -> int:
        """Run it; how many rows it has written."""
        compiled = self.compiled(connection.dialect)
        names = getattr(compiled, "positiontup", None)
        if names is None:
            return connection.exec_driver_sql(compiled.string, values).rowcount
        return _run(connection, compiled.string, tuple([values[name] for name in names]))


def _run(connection: Connection, statement: str, given: tuple[str | int, ...]) -> int:
    """Run a statement of SQLite by its own driver: SQLAlchemy's way to it takes longer than SQLite itself."""
    driver = connection.connection.driver_connection
    if driver is None:
        raise ValueError("a connection that was closed")
    dialect = connection.dialect
    try:
        return int(driver.execute(statement, given).rowcount)
    except dialect.loaded_dbapi.Error as error:
        base = dialect.loaded_dbapi.Error
        raise DBAPIError.instance(statement, given, error, base, hide_parameters=True) from error


_INSTANCE: Table = Base.metadata.tables[Instance.__tablename__]
_SERIES: Table = Base.metadata.tables[Series.__tablename__]
_GIVEN = [
    _INSTANCE.c[name]
    for name in (
        *("association_id", "sop_instance_uid", "sop_class_uid", "transfer_syntax_uid"),
        *("sha256", "size", "path", "received_at"),
    )
]
_UID = bindparam("sop_instance_uid", type_=String)
_OPEN_SERIES = and_(
    _SERIES.c.study_id
    == select(Study.id).where(Study.study_uid == bindparam("study_uid", type_=String)).scalar_subquery(),
    _SERIES.c.series_uid == bindparam("in_series", type_=String),
    _SERIES.c.state == literal_column(f"'{SeriesState.RECEIVING}'", String),
)
_ADD = _Statement(
    insert(_INSTANCE).from_select(
        ["series_id", *(column.name for column in _GIVEN)],
        select(_SERIES.c.id, *(bindparam(column.name, type_=column.type) for column in _GIVEN)).where(
            _OPEN_SERIES,
            ~exists().where(Instance.sop_instance_uid == _UID),
            ~exists().where(Artifact.sop_instance_uid == _UID),
        ),
    )
)
_COUNT = _Statement(
    update(_SERIES)
    .where(_OPEN_SERIES)
    .values(
        n_instances=_SERIES.c.n_instances + literal_column("1"),
        last_received_at=bindparam("received_at", type_=_SERIES.c.last_received_at.type),
    )
)


def prepare(dialect: Dialect) -> None:
    """Compile the statements now, so that no object has to wait for it."""
    for statement in (_ADD, _COUNT):
        statement.compiled(dialect)


def add_to_open_series(connection: Connection, values: Values, at: datetime) -> bool:
    """Write the row and count it; False, and nothing is written, where it is anything else.

    Parameters
    ----------
    connection
        In a transaction that has the write lock.
    values
        Of the instance, and ``study_uid`` and ``in_series``: where it belongs.
    at
        When it came.
    """
    # as `UtcDateTime` has it in a row
    when = at.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
    given = {**values, "received_at": when}
    return _ADD.changed(connection, given) == 1 and _COUNT.changed(connection, given) == 1
