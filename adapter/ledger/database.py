# SPDX-License-Identifier: Apache-2.0
"""The ledger's database: opened durably, read and written in short transactions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, make_url, select

from adapter.errors import SpoolError
from adapter.ledger import schema

#: Seconds that a statement waits for another process's transaction.
BUSY_SECONDS = 30


class Ledger:
    """A ledger at a SQLAlchemy URL.

    Parameters
    ----------
    url : str
        ``sqlite:///...`` on a local disk, or ``postgresql+psycopg://...``.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = _engine(url)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Give a connection in a transaction that writes: committed at the end, or not at all."""
        connection = self.engine.connect().execution_options(adapter_writes=True)
        with connection, connection.begin():
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Give a connection in a transaction that only reads."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Close the pooled connections."""
        self.engine.dispose()

    def now(self) -> float:
        """Return the database's time: seconds since 1970, UTC."""
        with self.read() as connection:
            return float(connection.execute(select(schema.now())).scalar_one())

    # -- schema and identity -----------------------------------------------------------------

    def upgrade(self) -> None:
        """Bring the schema up to date; done twice it is done once."""
        with self.engine.connect() as connection:
            config = _alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

    def is_current(self) -> bool:
        """Tell whether the schema is the one that this code was written for."""
        head = ScriptDirectory.from_config(_alembic_config()).get_current_head()
        with self.read() as connection:
            return MigrationContext.configure(connection).get_current_revision() == head

    @property
    def spool_id(self) -> str | None:
        """The id of the spool that the ledger belongs to; None while it belongs to none."""
        with self.read() as connection:
            row = connection.execute(
                select(schema.meta.c.value).where(schema.meta.c.name == "spool")
            ).first()
        return None if row is None else str(row[0])

    def adopt_spool(self, spool_id: str) -> None:
        """Tie the ledger to a spool for good.

        Raises
        ------
        SpoolError
            If it is tied to another one.
        """
        with self.write() as connection:
            table = schema.meta
            row = connection.execute(select(table.c.value).where(table.c.name == "spool")).first()
            if row is None:
                connection.execute(table.insert().values(name="spool", value=spool_id))
                connection.execute(table.insert().values(name="housekept", value="0"))
            elif row[0] != spool_id:
                raise SpoolError("this ledger belongs to another spool")


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _engine(url: str) -> Engine:
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True, pool_size=5, max_overflow=20)
    engine = create_engine(
        url, connect_args={"timeout": BUSY_SECONDS}, pool_size=5, max_overflow=50
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # sqlite3 must not open transactions of its own: BEGIN is emitted below.
        connection.isolation_level = None
        for pragma in (
            f"busy_timeout = {BUSY_SECONDS * 1000}",
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("adapter_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
