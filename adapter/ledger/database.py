# SPDX-License-Identifier: Apache-2.0
"""The ledger's database: opened durably, read and written in short transactions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select

from adapter.errors import SpoolError
from adapter.ledger import locks, revisions, schema
from adapter.ledger.engines import make_engine

#: Maximum number of a process's connections to PostgreSQL.
CONNECTIONS = 10

#: The name in `meta` of the id of the spool that the ledger belongs to.
SPOOL = "spool"


class Ledger:
    """A ledger at a SQLAlchemy URL.

    Parameters
    ----------
    url : str
        ``sqlite:///...`` on a local disk, or ``postgresql+psycopg://...``.
    connections : int
        Maximum number of connections to PostgreSQL.
    """

    def __init__(self, url: str, connections: int = CONNECTIONS) -> None:
        self.url = url
        self.engine = make_engine(url, connections)
        #: whether several hosts can share it: SQLite's locks work on one host only
        self.is_shared = self.engine.dialect.name == "postgresql"
        self._reading: dict[str, Any] = {}
        if self.is_shared:
            # All queries of a transaction see one snapshot, as on SQLite.
            self._reading = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Provide a connection in a writing transaction, which commits at the end of the block."""
        connection = self.engine.connect().execution_options(adapter_writes=True)
        with connection, connection.begin():
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Provide a connection in a read-only transaction."""
        connection = self.engine.connect().execution_options(**self._reading)
        with connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Close the pooled connections."""
        self.engine.dispose()

    def exists(self) -> bool:
        """Return whether the database exists; connecting to SQLite would create it."""
        database = self.engine.url.database
        return self.is_shared or (database is not None and Path(database).is_file())

    def now(self) -> float:
        """Return the database's time: seconds since 1970, UTC."""
        with self.read() as connection:
            return float(connection.execute(select(schema.now())).scalar_one())

    # -- schema and identity -----------------------------------------------------------------

    def upgrade(self) -> None:
        """Upgrade the schema, once for all processes; a newer schema is left as it is.

        A file of SQLite that does not exist yet is made here and nowhere else.

        Raises
        ------
        LedgerError
            If a newer release has made the schema unusable for this one.
        """
        database = self.engine.url.database
        if not self.is_shared and database is not None:
            Path(database).touch(mode=0o600)
        if not self.is_usable():  # so a start takes no lock that it does not need
            with self.write() as connection:
                revisions.upgrade(connection)

    def is_usable(self) -> bool:
        """Return whether the schema is this release's, or a newer one that it can use."""
        with self.read() as connection:
            return revisions.is_usable(connection)

    @property
    def revision(self) -> str | None:
        """The schema's revision; None without a schema."""
        with self.read() as connection:
            return revisions.current(connection)

    @property
    def spool_id(self) -> str | None:
        """The id of the spool that the ledger belongs to; None before `adopt_spool`."""
        with self.read() as connection:
            return revisions.fact(connection, SPOOL)

    def adopt_spool(self, spool_id: str) -> None:
        """Tie the ledger to a spool for good.

        Raises
        ------
        SpoolError
            If the ledger belongs to another spool.
        """
        with self.write() as connection:
            locks.hold(connection, locks.Kind.MIGRATIONS)
            known = revisions.fact(connection, SPOOL)
            if known is None:
                table = schema.meta
                connection.execute(table.insert().values(name=SPOOL, value=spool_id))
                connection.execute(table.insert().values(name="housekept", value="0"))
            elif known != spool_id:
                raise SpoolError("this ledger belongs to another spool")
