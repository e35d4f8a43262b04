# SPDX-License-Identifier: Apache-2.0
"""A real PostgreSQL server on loopback, of a test session's own, with a fresh database for a test.

It is Debian's, separate from any cluster of the machine.  Its data is deleted afterwards, so it
does not sync: a test of a power loss would need another one.
"""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from sqlalchemy import make_url

from adapter.ledger import Ledger
from tests import peers
from tests.support_stack import free_port
from tests.support_waiting import eventually

TEMPLATE = "template_adapter"
START_SECONDS = 60.0

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "log_min_messages": "fatal",
}


class PostgreSQL:
    """A running server; databases are made and dropped on it.

    Parameters
    ----------
    primary : PostgreSQL, optional
        Makes this one a standby that follows it.
    settings : str
        What differs from `_SETTINGS`.
    """

    def __init__(self, primary: PostgreSQL | None = None, **settings: str) -> None:
        peers.need("postgresql")
        self._user = _unprivileged()
        self.folder = Path(tempfile.mkdtemp(prefix="dicom-adapter-postgresql-"))
        shutil.chown(self.folder, self._user)
        self._data = self.folder / "data"
        self.port = free_port()
        if primary is not None:
            self._run(
                "pg_basebackup", "--no-sync", "--checkpoint=fast", "--write-recovery-conf",
                "--host=127.0.0.1", f"--port={primary.port}", "--username=adapter",
            )  # fmt: skip
            self.start()
            return
        self._run(
            "initdb", "--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C",
            "--username=adapter",
        )  # fmt: skip
        lines = (f"{name} = '{value}'\n" for name, value in {**_SETTINGS, **settings}.items())
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(lines)
        self.start()
        self.execute(f"CREATE DATABASE {TEMPLATE}")
        ledger = Ledger(self.url(TEMPLATE))
        ledger.upgrade()
        ledger.close()

    def _run(self, program: str, *options: str) -> None:
        """Run a program that makes the data folder."""
        subprocess.run(
            [*self._as_user(), peers.find(program), *options, "--pgdata", self._data],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.folder,
        )

    def _as_user(self) -> list[str]:
        """Return what starts a program as a user that may run it, and ends it with this process."""
        # SIGQUIT is the server's immediate shutdown: its children end with it.
        command = ["setpriv", "--pdeathsig", "QUIT"]
        if os.geteuid() == 0:
            command += [f"--reuid={self._user}", f"--regid={self._user}", "--clear-groups"]
        return command

    def start(self) -> None:
        """Start the server on what it holds, and wait until it answers."""
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(
            [*self._as_user(), peers.find("postgres"), "-D", self._data,
             f"--port={self.port}"],
            stdout=log,
            stderr=log,
            cwd=self.folder,
        )  # fmt: skip
        log.close()
        deadline = time.monotonic() + START_SECONDS
        while not self._accepts():
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"PostgreSQL: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def _accepts(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        """Return a connection outside the ledger's ways, in no transaction."""
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="adapter", dbname=database, autocommit=True
        )

    def execute(self, statement: str) -> None:
        """Run one statement for the whole server."""
        with self.connect() as connection:
            connection.execute(statement)

    def reload(self, setting: str, value: str) -> None:
        """Let the server read its configuration again, and wait until a setting has a value."""
        self.execute("SELECT pg_reload_conf()")

        def is_in_force() -> bool:
            with self.connect() as connection:
                return connection.execute(f"SHOW {setting}").fetchone()[0] == value

        eventually(is_in_force)

    def url(self, database: str) -> str:
        """Return a database's URL for the ledger."""
        return f"postgresql+psycopg://adapter@127.0.0.1:{self.port}/{database}"

    def create_database(self, *, schema: bool = True) -> str:
        """Make a database, with the ledger's schema or empty, and return its URL."""
        name = f"adapter_{uuid.uuid4().hex[:12]}"
        template = TEMPLATE if schema else "template1"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop a database, also while clients are connected to it."""
        self.execute(f"DROP DATABASE {make_url(url).database} WITH (FORCE)")

    def stop(self) -> None:
        """End the server at once, in mid-transaction; what it has committed stays."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(30)

    def close(self) -> None:
        """End the server and throw away what it holds."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def shut(url: str) -> Iterator[None]:
    """Take a database away for a while, as a server that stops does."""
    database = make_url(url).database
    with _beside(url) as other:
        other.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false")
        kill_backends(url)
        try:
            yield
        finally:
            other.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")


def kill_backends(url: str) -> int:
    """End every session of a database, in mid-transaction; return how many there were."""
    with _beside(url) as other:
        return other.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s",
            [make_url(url).database],
        ).fetchone()[0]


def _beside(url: str) -> psycopg.Connection:
    server = make_url(url).set(drivername="postgresql", database="postgres")
    return psycopg.connect(server.render_as_string(hide_password=False), autocommit=True)


def _unprivileged() -> str:
    """Return a user that may run the server: it refuses to run as root."""
    if os.geteuid() != 0:
        return getpass.getuser()
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"
