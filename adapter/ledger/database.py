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

#: Connections that a process has to PostgreSQL, at the most.
CONNECTIONS = 10

#: The fact in `meta` that says which spool it belongs to.
SPOOL = "spool"


class Ledger:
    """A ledger at a SQLAlchemy URL.

    Parameters
    ----------
    url : str
        ``sqlite:///...`` on a local disk, or ``postgresql+psycopg://...``.
    connections : int
        Connections to PostgreSQL, at the most.
    """

    def __init__(self, url: str, connections: int = CONNECTIONS) -> None:
        self.url = url
        self.engine = make_engine(url, connections)
        #: whether hosts can share it: SQLite's locks hold on one only
        self.is_shared = self.engine.dialect.name == "postgresql"
        self._reading: dict[str, Any] = {}
        if self.is_shared:
            # All of a transaction's questions are answered as of one moment, as on SQLite.
            self._reading = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Give a connection in a transaction that writes: committed at the end, or not at all."""
        connection = self.engine.connect().execution_options(adapter_writes=True)
        with connection, connection.begin():
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a connection in a transaction that only reads."""
        connection = self.engine.connect().execution_options(**self._reading)
        with connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Close the pooled connections."""
        self.engine.dispose()

    def exists(self) -> bool:
        """Return whether there is something to connect to; SQLite would make it."""
        database = self.engine.url.database
        return self.is_shared or (database is not None and Path(database).is_file())

    def now(self) -> float:
        """Return the database's time: seconds since 1970, UTC."""
        with self.read() as connection:
            return float(connection.execute(select(schema.now())).scalar_one())

    # -- schema and identity -----------------------------------------------------------------

    def upgrade(self) -> None:
        """Bring the schema up to date, once however many do so; one beyond stays as it is.

        Raises
        ------
        LedgerError
            If a newer release has left this one behind.
        """
        if not self.is_usable():  # so that a start takes no lock that it does not need
            with self.write() as connection:
                revisions.upgrade(connection)

    def is_usable(self) -> bool:
        """Return whether the schema is the one that this code was written for, or one beyond."""
        with self.read() as connection:
            return revisions.is_usable(connection)

    @property
    def revision(self) -> str | None:
        """The schema's revision; None if there is none yet."""
        with self.read() as connection:
            return revisions.current(connection)

    @property
    def spool_id(self) -> str | None:
        """The id of the spool that the ledger belongs to; None while it belongs to none."""
        with self.read() as connection:
            return revisions.fact(connection, SPOOL)

    def adopt_spool(self, spool_id: str) -> None:
        """Tie the ledger to a spool for good.

        Raises
        ------
        SpoolError
            If it is tied to another one.
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
