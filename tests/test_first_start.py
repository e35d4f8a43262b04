# SPDX-License-Identifier: Apache-2.0
"""The first start: roles on several hosts that make one adapter's spool and ledger at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import inspect

from adapter import heartbeat
from adapter.core import Adapter, open_adapter, open_ledger, open_spool
from adapter.errors import ConfigurationError, SpoolError
from adapter.ledger import Ledger, schema
from adapter.ledger.engines import AWAY
from adapter.settings import Settings, load
from adapter.spool import Spool
from tests.support_postgresql import PostgreSQL
from tests.support_stages import IncomingAssociation, make_instance
from tests.support_waiting import eventually

STARTS = 4

#: Opens an adapter as soon as a file exists, and prints what it found.
ROLE = """
import json, sys, time
from pathlib import Path
from adapter.core import open_adapter
from adapter.settings import load
settings = load(data=Path(sys.argv[1]))
print("waits", flush=True)
while not Path(sys.argv[2]).exists():
    time.sleep(0.001)
adapter = open_adapter(settings, create=True)
key = adapter.spool.hash_key().hex()
print(json.dumps([adapter.spool.id, key, adapter.ledger.spool_id, adapter.ledger.revision]))
adapter.close()
"""


@pytest.fixture
def empty_url(postgresql: PostgreSQL) -> Iterator[str]:
    """A PostgreSQL database without a schema."""
    url = postgresql.create_database(schema=False)
    yield url
    postgresql.drop_database(url)


def start_at_once(tmp_path: Path, folders: list[Path], **environment: str) -> list[list[str]]:
    """Open an adapter in a process for each data folder, in the same moment."""
    go = tmp_path / "go"
    roles = [
        subprocess.Popen(
            [sys.executable, "-c", ROLE, str(folder), str(go)],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        for folder in folders
    ]
    for role in roles:
        assert role.stdout is not None
        assert role.stdout.readline() == "waits\n"
    go.touch()
    found = [role.communicate(timeout=60)[0] for role in roles]
    assert [role.returncode for role in roles] == [0] * len(roles)
    return [json.loads(text) for text in found]


def test_hosts_that_start_at_once_share_one_spool_and_one_ledger(
    tmp_path: Path, empty_url: str
) -> None:
    """On an empty shared volume and an empty database, all roles end up with the same ids."""
    found = start_at_once(
        tmp_path,
        [tmp_path / f"host-{number}" for number in range(STARTS)],
        DICOMADAPTER__DATABASE__URL=empty_url,
        DICOMADAPTER__STORAGE__TEMPORARY=str(tmp_path / "spool"),
    )

    assert found == [found[0]] * STARTS
    assert found[0][0] == found[0][2]
    assert sorted(path.name for path in (tmp_path / "spool").iterdir() if path.is_file()) == [
        "id",
        "key",
    ]


def test_processes_that_start_at_once_share_one_sqlite_ledger(tmp_path: Path) -> None:
    """On one host and an empty data folder it is the same."""
    found = start_at_once(tmp_path, [tmp_path / "data"] * STARTS)

    assert found == [found[0]] * STARTS


def test_a_spool_that_another_made_meanwhile_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A role that finds no spool, and creates it after another role did, changes nothing."""
    spool = Spool(tmp_path)
    spool.create()
    before = spool.id, spool.hash_key()

    with monkeypatch.context() as patched:
        patched.setattr(Path, "exists", lambda _: False)
        Spool(tmp_path).create()

    assert (spool.id, spool.hash_key()) == before


@pytest.mark.every_ledger("postgresql")
def test_another_may_tie_and_receive_while_a_role_opens(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instances that another role received on its first start are not taken for a lost ledger."""
    holds = Spool.holds_instances

    def overtaken(spool: Spool) -> bool:
        monkeypatch.undo()
        other = open_adapter(settings, create=True)
        IncomingAssociation(other, 1).store(make_instance())
        other.close()
        return holds(spool)

    monkeypatch.setattr(Spool, "holds_instances", overtaken)

    adapter = open_adapter(settings, create=True)

    assert adapter.ledger.spool_id == adapter.spool.id
    adapter.close()


@pytest.mark.every_ledger("postgresql")
def test_an_empty_ledger_still_does_not_take_a_full_spool(settings: Settings) -> None:
    """Without another role that tied it, an empty ledger on a full spool is a lost one."""
    spool = Spool(settings.spool_path)
    spool.create()
    adapter = Adapter(settings, spool, open_ledger(settings))
    IncomingAssociation(adapter, 1).store(make_instance())

    with pytest.raises(SpoolError, match="rebuild"):
        open_adapter(settings, create=True)
    adapter.close()


def test_threads_upgrade_an_empty_database_once(empty_url: str) -> None:
    """Of any number that upgrade at once, one does; the others wait for it and find it done."""
    ledgers = [Ledger(empty_url) for _ in range(8)]
    threads = [threading.Thread(target=ledger.upgrade) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert all(ledger.is_usable() for ledger in ledgers)
    tables = set(inspect(ledgers[0].engine).get_table_names())
    assert tables == {*schema.metadata.tables, "alembic_version"}
    for ledger in ledgers:
        ledger.close()


# -- SQLite is for one host ------------------------------------------------------------------------


class OtherHost:
    """A host that works on the spool too: it writes its heartbeat again and again."""

    def __init__(self, spool: Spool, name: str = "other-host") -> None:
        self._path = spool.status / f"worker-{name}-1.json"
        self._name = name
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat)
        self.write()

    def write(self, ago: float = 0.0) -> None:
        beat = {"role": "worker", "host": self._name, "pid": 1, "at": time.time() - ago}
        temporary = self._path.with_suffix(".part")
        temporary.write_text(json.dumps(beat))
        temporary.replace(self._path)

    def _beat(self) -> None:
        while not self._done.wait(0.2):
            self.write()

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


@pytest.mark.parametrize("opening", [open_adapter, open_spool])
def test_sqlite_is_refused_while_another_host_works_on_the_spool(
    settings: Settings, opening: Callable[[Settings], object]
) -> None:
    """Two hosts do not share a ledger by a file system; the message says what to do."""
    adapter = open_adapter(settings, create=True)
    adapter.close()

    with (
        OtherHost(adapter.spool),
        pytest.raises(ConfigurationError, match=r"database > url.*other-host.*PostgreSQL"),
    ):
        opening(settings)


def test_what_a_gone_host_left_behind_refuses_nobody(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heartbeat of a container that was replaced a moment ago is no longer rewritten."""
    monkeypatch.setattr(heartbeat, "SILENCE_SECONDS", 1.0)
    adapter = open_adapter(settings, create=True)
    adapter.close()
    gone = OtherHost(adapter.spool)

    open_adapter(settings).close()  # waits until it has been silent for long enough
    gone.write(ago=5)
    begun = time.monotonic()
    open_adapter(settings).close()

    assert time.monotonic() - begun < 0.9


@pytest.mark.every_ledger("postgresql")
def test_postgresql_serves_any_number_of_hosts(settings: Settings, adapter: Adapter) -> None:
    """With PostgreSQL other hosts are as it should be."""
    with OtherHost(adapter.spool):
        open_adapter(settings).close()


def test_a_process_of_this_host_is_no_other_host(settings: Settings, adapter: Adapter) -> None:
    """Roles on one machine share SQLite."""
    heartbeat.write(adapter.spool, "worker")

    open_adapter(settings).close()


# -- settings of a connection ----------------------------------------------------------------------


@pytest.mark.every_ledger("postgresql")
def test_every_connection_is_durable_and_patient_within_bounds(
    settings: Settings, adapter: Adapter, postgresql: PostgreSQL
) -> None:
    """Whatever the server's defaults are, a commit is on disk, and nothing waits for ever."""
    adapter.close()
    name = adapter.ledger.engine.url.database
    for setting, value in (
        ("synchronous_commit", "off"),
        ("statement_timeout", "0"),
        ("default_transaction_isolation", "serializable"),
    ):
        postgresql.execute(f"ALTER DATABASE {name} SET {setting} = '{value}'")

    with adapter.ledger.write() as connection:

        def show(setting: str) -> str:
            return str(connection.exec_driver_sql(f"SHOW {setting}").scalar())

        assert show("synchronous_commit") == "on"
        assert show("transaction_isolation") == "read committed"
        assert (show("lock_timeout"), show("statement_timeout")) == ("30s", "5min")
        assert show("idle_in_transaction_session_timeout") == "1min"
    with adapter.ledger.read() as connection:
        isolation = connection.exec_driver_sql("SHOW transaction_isolation").scalar()
        assert isolation == "repeatable read"


@pytest.mark.every_ledger("postgresql")
def test_a_server_that_only_reads_is_not_taken(adapter: Adapter, postgresql: PostgreSQL) -> None:
    """After a failover no role works on the server that became the standby."""
    name = adapter.ledger.engine.url.database
    postgresql.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    adapter.ledger.close()
    with pytest.raises(AWAY, match="read-only"):
        adapter.ledger.now()


@pytest.mark.every_ledger("postgresql")
def test_a_process_has_no_more_connections_than_it_may(
    settings: Settings, adapter: Adapter
) -> None:
    """A process with many threads keeps within `database > connections`; the others wait."""
    few = settings.database.model_copy(update={"connections": 2})
    ledger = open_ledger(load(data=settings.data).model_copy(update={"database": few}))
    inside = threading.Semaphore(0)
    leave = threading.Event()

    def use() -> None:
        with ledger.read() as connection:
            connection.exec_driver_sql("SELECT 1")
            inside.release()
            leave.wait(10)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert inside.acquire(timeout=10)
    assert inside.acquire(timeout=10)
    assert not inside.acquire(timeout=0.3)
    leave.set()
    for thread in threads:
        thread.join(10)

    eventually(lambda: inside.acquire(blocking=False))
    assert inside.acquire(timeout=10)
    ledger.close()
