# SPDX-License-Identifier: Apache-2.0
"""Engines: how the ledger's connections are opened, durably and with bounded patience.

SQLite is told what it must never forget; PostgreSQL too, whatever the server's own defaults are, so
that a transaction which is committed is on disk, and one whose client is gone ends by itself.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionFree

#: Seconds that a statement waits for another process's transaction.
BUSY_SECONDS = 30
#: Seconds that a transaction waits for a free connection of its process.
POOL_SECONDS = 30
#: What is raised while the ledger cannot be used for now: it is away, fails over, or is overloaded.
AWAY = (OperationalError, InterfaceError, InternalError, NoConnectionFree)

#: How a connection to PostgreSQL is made, and how it is noticed that nobody is at its other end.
#: A server that only reads, as after a failover, is not taken.
_CONNECT = {
    "application_name": "dicom-adapter",
    "client_encoding": "utf8",  # a database that has none would answer in bytes
    "connect_timeout": 10,  # seconds
    "keepalives_idle": 10,  # seconds
    "keepalives_interval": 5,  # seconds
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds
    "target_session_attrs": "read-write",
}

#: What holds for each of PostgreSQL's sessions (milliseconds).
_SESSION = {
    "statement_timeout": "300000",
    "lock_timeout": str(BUSY_SECONDS * 1000),
    "idle_in_transaction_session_timeout": "60000",
}

# `remote_apply` promises more than `on`.
_DURABLE = """
SELECT set_config('synchronous_commit', 'on', false)
WHERE current_setting('synchronous_commit') <> 'remote_apply'
"""


def make_engine(url: str, connections: int) -> Engine:
    """Return the engine of a ledger.

    Parameters
    ----------
    url : str
        The ledger's SQLAlchemy URL.
    connections : int
        Connections to PostgreSQL at the most; SQLite's cost nothing.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(parsed)
    return _postgresql(parsed, connections)


def _postgresql(url: URL, connections: int) -> Engine:
    kept = min(5, connections)
    engine = create_engine(
        url,
        connect_args={name: value for name, value in _CONNECT.items() if name not in url.query},
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,
        pool_size=kept,
        max_overflow=connections - kept,
        pool_timeout=POOL_SECONDS,
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            for name, value in _SESSION.items():
                cursor.execute("SELECT set_config(%s, %s, false)", (name, value))
            cursor.execute(_DURABLE)
        connection.commit()

    return engine


def _sqlite(url: URL) -> Engine:
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
