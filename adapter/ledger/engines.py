# SPDX-License-Identifier: Apache-2.0
"""Engines: the ledger's connections, with durable commits and time-outs.

Both databases are configured for each connection, whatever the server's defaults: a committed
transaction is on disk, and a transaction whose client is gone ends by itself.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, ExceptionContext, create_engine, event, make_url
from sqlalchemy.exc import (
    DisconnectionError,
    InterfaceError,
    InternalError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as NoConnectionFree

from adapter.errors import LedgerError

#: Seconds that a statement waits for another process's transaction.
BUSY_SECONDS = 30
#: Seconds that a transaction waits for a free connection of its process.
POOL_SECONDS = 30
#: Exceptions while the ledger cannot be used: it is down, fails over, or is overloaded.
AWAY = (OperationalError, InterfaceError, InternalError, NoConnectionFree)

#: Connection parameters of PostgreSQL, with the time-outs that detect a dead peer.  A read-only
#: server, as after a failover, is not accepted.
_CONNECT = {
    "client_encoding": "utf8",  # a database without an encoding would answer in bytes
    "connect_timeout": 10,  # seconds
    "keepalives_idle": 10,  # seconds
    "keepalives_interval": 5,  # seconds
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds
    "target_session_attrs": "read-write",
}

#: Connections that a process keeps while it needs none; the server closes those that are idle, and
#: the last used is used first, so that a process whose only work is its poll has one.
_KEPT = 2
#: Milliseconds after which the server closes an idle connection (PostgreSQL 14).
_IDLE = ("15000", "idle_session_timeout")
#: Seconds to connect to one of several hosts: one that does not answer is passed over sooner.
_NEXT_HOST_SECONDS = 3

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


# Releases before 14 do not know it.
_KNOWN_IDLE = """
SELECT set_config(name, %s, false) FROM pg_settings WHERE name = %s
"""

#: What PostgreSQL says when it takes no further connection; the answer to a refused connection
#: brings no SQLSTATE (53300) to the client.
_TOO_MANY = re.compile(r"too many (clients|connections)|remaining connection slots")
_LIMITED = re.compile(r"too many connections for (role|database)")
#: Of a server that has answered: the connections that it takes, and those that it keeps from us.
_LIMITS = """
SELECT current_setting('max_connections')::int,
       CASE WHEN current_setting('is_superuser') = 'on' THEN 0
       ELSE current_setting('superuser_reserved_connections')::int
            + coalesce(current_setting('reserved_connections', true)::int, 0) END
"""
_limits: tuple[int, int] | None = None

#: The most connections of a process of each role that is no worker; others have the setting's.
CONNECTIONS_OF = {"scp": 2, "api": 5, "operator": 2}
#: Connections of a worker beyond one for each run: for its polls, and to renew leases.
SPARE_CONNECTIONS = 2

_process = ""
_most: int | None = None


def name_process(name: str, most: int | None = None) -> None:
    """Name this process, as the database's administrator sees it in ``pg_stat_activity``.

    Parameters
    ----------
    name : str
        Its role, or the command.
    most : int, optional
        The most connections that it needs; it gets no more, whatever the settings say.
    """
    global _process, _most
    _process, _most = name, most


class NoConnection(LedgerError, OperationalError):
    """The server takes no further connection; the text says how many it takes.

    Parameters
    ----------
    words : str
        What to say.
    original : BaseException
        What the driver raised.
    """

    def __init__(self, words: str, original: BaseException) -> None:
        OperationalError.__init__(self, None, None, original)
        self._words = words

    def __str__(self) -> str:
        """Return what to say, without the driver's words: those name the server's address."""
        return self._words


def _explain(context: ExceptionContext) -> NoConnection | None:
    """Return the error to raise instead of one that says in English only what is the matter.

    Its own text may name an address, so nobody would see it.
    """
    text = str(context.original_exception)
    if not _TOO_MANY.search(text):
        return None
    if _LIMITED.search(text):
        words = "as many as the database or its user may have (CONNECTION LIMIT) are in use"
    elif _limits is None:
        words = "all that the server takes (max_connections) are in use"
    else:
        most, reserved = _limits
        words = f"{most - reserved} of {most} are in use" + (
            f", and {reserved} are reserved" if reserved else ""
        )
    return NoConnection(f"too many connections: {words}", context.original_exception)


def parse_url(url: str) -> URL:
    """Return a ledger's URL; it may name several PostgreSQL hosts: ``//user@h1:5432,h2:5432/name``.

    SQLAlchemy takes them in the query only.
    """
    scheme, slashes, rest = url.partition("://")
    end = next((at for at, letter in enumerate(rest) if letter in "/?"), len(rest))
    user, at, hosts = rest[:end].rpartition("@")
    if "," not in hosts or not scheme.startswith("postgresql"):
        return make_url(url)
    pairs = [_HOST.fullmatch(host) for host in hosts.split(",")]
    names = ",".join(pair[1] if pair else "" for pair in pairs)
    ports = ",".join((pair and pair[2]) or "5432" for pair in pairs)
    path, _, query = rest[end:].partition("?")
    several = f"host={quote(names, safe=',:')}&port={ports}"
    return make_url(
        f"{scheme}{slashes}{user}{at}{path or '/'}?{several}{'&' if query else ''}{query}"
    )


_HOST = re.compile(r"\[?([^\[\]]*?)\]?(?::([0-9]+))?")


def make_engine(url: str, connections: int) -> Engine:
    """Return the engine of a ledger.

    Parameters
    ----------
    url : str
        The ledger's SQLAlchemy URL.
    connections : int
        Maximum number of connections to PostgreSQL; those to SQLite are not limited.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(parsed)
    return _postgresql(parsed, connections)


def scrub(engine: Engine, table: str) -> None:
    """Rewrite a table so that the database's files hold no earlier version of its rows.

    SQLite rewrites the whole file and empties its write-ahead log.  PostgreSQL rewrites the table
    and its statistics; its write-ahead log is recycled by the server, and archived copies of it are
    the operator's.

    Raises
    ------
    sqlalchemy.exc.SQLAlchemyError
        If the disk is full, or another process holds the database up for too long.
    """
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            # While it waits for the table, all others wait behind it.
            connection.exec_driver_sql("SET lock_timeout = 5000")
            try:
                connection.exec_driver_sql(f"VACUUM (FULL, ANALYZE) {table}")
            finally:
                connection.exec_driver_sql(f"SET lock_timeout = {_SESSION['lock_timeout']}")
        return
    with engine.connect() as connection:
        try:
            connection.exec_driver_sql("ROLLBACK")  # a connection of ours begins by itself
            connection.exec_driver_sql("VACUUM")
            busy, *_ = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()
        finally:
            connection.exec_driver_sql("BEGIN")
    if busy:
        raise OperationalError("wal_checkpoint", None, Exception("the database is in use"))


def _postgresql(url: URL, connections: int) -> Engine:
    connections = min(connections, _most or connections)
    kept = min(_KEPT, connections)
    parameters = {"application_name": f"dicom-adapter {_process}".strip()[:63], **_CONNECT}
    if "," in str(url.query.get("host", "")):
        parameters["connect_timeout"] = _NEXT_HOST_SECONDS
    engine = create_engine(
        url,
        connect_args={name: value for name, value in parameters.items() if name not in url.query},
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,
        pool_use_lifo=True,
        pool_size=kept,
        max_overflow=connections - kept,
        pool_timeout=POOL_SECONDS,
    )

    event.listen(engine, "handle_error", _explain, retval=True)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        global _limits  # noqa: PLW0603 - of the one server that this process works with
        with connection.cursor() as cursor:
            for name, value in _SESSION.items():
                cursor.execute("SELECT set_config(%s, %s, false)", (name, value))
            cursor.execute(_DURABLE)
            cursor.execute(_KNOWN_IDLE, _IDLE)
            cursor.execute(_LIMITS)
            _limits = cursor.fetchone()
        connection.commit()

    return engine


def _identity(database: str) -> tuple[int, int] | None:
    """Return device and inode of a file; None if it is not there."""
    try:
        found = Path(database).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _sqlite(url: URL) -> Engine:
    """Return the engine of a file, which has to be there: a connection never creates it.

    A connection keeps the file that it opened, also when that is moved away and another takes its
    name.  So each time that one is taken, the file behind the name is compared with it.
    """
    database = url.database or ""
    engine = create_engine(
        url, connect_args={"timeout": BUSY_SECONDS}, pool_size=5, max_overflow=50
    )

    @event.listens_for(engine, "do_connect")
    def _open(_dialect: Any, record: Any, arguments: list[Any], options: dict[str, Any]) -> None:
        record.info["file"] = _identity(database)
        arguments[0] = f"file:{quote(database)}?mode=rw"
        options["uri"] = True

    @event.listens_for(engine, "checkout")
    def _compare(_connection: Any, record: Any, _fairy: Any) -> None:
        if record.info["file"] != _identity(database):
            raise DisconnectionError("the ledger's file is another one now")

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
