# SPDX-License-Identifier: Apache-2.0
"""Engines: the ledger's connections, with durable commits and time-outs.

Both databases are configured for each connection, whatever the server's defaults: a committed
transaction is on disk, and a transaction whose client is gone ends by itself.
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
#: Exceptions while the ledger cannot be used: it is down, fails over, or is overloaded.
AWAY = (OperationalError, InterfaceError, InternalError, NoConnectionFree)

#: Connection parameters of PostgreSQL, with the time-outs that detect a dead peer.  A read-only
#: server, as after a failover, is not accepted.
_CONNECT = {
    "application_name": "dicom-adapter",
    "client_encoding": "utf8",  # a database without an encoding would answer in bytes
    "connect_timeout": 10,  # seconds
    "keepalives_idle": 10,  # seconds
    "keepalives_interval": 5,  # seconds
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds
    "target_session_attrs": "read-write",
}

#: Settings of each PostgreSQL session (milliseconds).
_SESSION = {
    "statement_timeout": "300000",
    "lock_timeout": str(BUSY_SECONDS * 1000),
    "idle_in_transaction_session_timeout": "60000",
}

# `remote_apply` is stronger than `on`.
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
        Maximum number of connections to PostgreSQL; those to SQLite are not limited.
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
        # sqlite3 must not open transactions itself: BEGIN is sent below.
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
