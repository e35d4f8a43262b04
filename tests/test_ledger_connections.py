# SPDX-License-Identifier: Apache-2.0
"""A process's connections to PostgreSQL: few, named, given back, and moved after a fail-over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from adapter.ledger import Ledger, engines, health, schema
from adapter.ledger.engines import AWAY, NoConnection, parse_url
from tests.support_postgresql import PostgreSQL
from tests.support_waiting import eventually


@pytest.fixture(scope="module")
def small() -> Iterator[PostgreSQL]:
    """A server that takes few connections, and one for superusers."""
    server = PostgreSQL(max_connections="10", superuser_reserved_connections="1")
    server.execute("CREATE ROLE gateway LOGIN PASSWORD 'unused'")
    server.execute("GRANT ALL ON DATABASE template_adapter TO gateway")
    yield server
    server.close()


def sessions(server: PostgreSQL, database: str) -> list[tuple[str, str]]:
    """Return the name and the user of each session in a database."""
    with server.connect() as connection:
        return connection.execute(
            "SELECT application_name, usename FROM pg_stat_activity WHERE datname = %s", [database]
        ).fetchall()


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("postgresql+psycopg://u:p%40w@h1:5433,h2/db?sslmode=require", "h1,h2", "5433,5432"),
        (
            "postgresql://u:p%40w@10.0.0.1,[fd00::2]:6432/db?sslmode=require",
            "10.0.0.1,fd00::2",
            "5432,6432",
        ),
    ],
)
def test_a_url_may_name_several_hosts(url: str, host: str, port: str) -> None:
    """As libpq's own URLs do; everything else stays as it is."""
    found = parse_url(url)

    assert dict(found.query) == {"host": host, "port": port, "sslmode": "require"}
    assert (found.host, found.port, found.database) == (None, None, "db")
    assert (found.username, found.password) == ("u", "p@w")
    assert parse_url("postgresql+psycopg://u:p@h:1/db").host == "h"


def test_a_process_keeps_few_connections_and_gives_them_back(
    postgresql_url: str, postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a burst two are kept, under the role's name; idle ones are closed, and it goes on."""
    monkeypatch.setattr(engines, "_IDLE", ("300", "idle_session_timeout"))
    monkeypatch.setattr(engines, "_process", None)
    monkeypatch.setattr(engines, "_most", None)
    engines.name_process("worker export", 7)
    database = postgresql_url.rpartition("/")[2]
    ledger = Ledger(postgresql_url)
    assert ledger.engine.pool.size() + ledger.engine.pool._max_overflow == 7
    with ExitStack() as burst:
        for _ in range(6):
            burst.enter_context(ledger.read())
        assert sessions(postgresql, database) == [("dicom-adapter worker export", "adapter")] * 6

    assert len(sessions(postgresql, database)) <= 2
    eventually(lambda: sessions(postgresql, database) == [], timeout=5)
    assert ledger.now() > 0
    assert len(sessions(postgresql, database)) == 1
    ledger.close()


def test_a_server_that_is_full_says_so(small: PostgreSQL) -> None:
    """The error has the numbers; nobody is asked to guess from "OperationalError"."""
    url = small.url("template_adapter").replace("adapter@", "gateway@")
    full = r"too many connections: 9 of 10 are in use, and 1 are reserved"
    first, second = Ledger(url), Ledger(url)
    with ExitStack() as taken:
        taken.enter_context(first.read())
        for _ in range(8):
            taken.enter_context(small.connect("template_adapter"))

        with pytest.raises(NoConnection, match=full) as refused:
            second.now()
        assert isinstance(refused.value, AWAY)
        assert full in health.examine(second).problems[0]
    assert second.now() > 0
    first.close()
    second.close()


def test_a_fail_over_to_a_standby_is_followed(small: PostgreSQL) -> None:
    """The primary dies and its standby is promoted: what was committed is there, and work goes on.

    Until then every transaction fails as one that may pass, and none is taken by the standby.
    """
    standby = PostgreSQL(small)
    small.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
    small.reload("synchronous_standby_names", "*")
    ledger = Ledger(
        f"postgresql+psycopg://adapter@127.0.0.1:{small.port},127.0.0.1:{standby.port}"
        "/template_adapter"
    )

    def write(name: str) -> None:
        with ledger.write() as connection:
            connection.execute(schema.meta.insert().values(name=name, value="1"))

    try:
        write("before")
        small.stop()
        with pytest.raises(AWAY):
            write("meanwhile")
        began = time.monotonic()
        standby.execute("SELECT pg_promote()")
        standby.execute("ALTER SYSTEM RESET synchronous_standby_names")
        standby.reload("synchronous_standby_names", "")

        eventually(lambda: _succeeds(lambda: write("after")), timeout=30)

        assert time.monotonic() - began < 30
        with ledger.read() as connection:
            names = connection.execute(text("SELECT name FROM meta ORDER BY name")).scalars().all()
        assert names == ["after", "before"]
    finally:
        ledger.close()
        standby.close()
        small.start()


def _succeeds(write: object) -> bool:
    try:
        write()
    except OperationalError:
        return False
    return True
