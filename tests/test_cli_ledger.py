# SPDX-License-Identifier: Apache-2.0
"""`dicom-adapter ledger`: upgrades the schema, and reports the problems of a ledger."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import make_url

from adapter.core import Adapter, open_adapter, open_ledger
from adapter.ledger import health, revisions, schema
from adapter.settings import Settings
from adapter.spool import Spool
from tests.support_ledger import add_row
from tests.support_postgresql import PostgreSQL, shut

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def durable(postgresql: PostgreSQL) -> Iterator[None]:
    """The server as it should be: it syncs what is committed."""
    postgresql.execute("ALTER SYSTEM SET fsync = on")
    postgresql.reload("fsync", "on")
    yield
    postgresql.execute("ALTER SYSTEM RESET fsync")
    postgresql.reload("fsync", "off")


def checked(cli: Cli) -> tuple[int, dict[str, object]]:
    code, out, _ = cli("ledger", "check", "--json")
    return code, json.loads(out)


@pytest.mark.every_ledger
def test_a_ledger_is_upgraded_where_there_is_no_spool(cli: Cli, settings: Settings) -> None:
    """A job that runs before the roles needs the database only; done twice it is done once."""
    for _ in range(2):
        code, out, _ = cli("ledger", "upgrade", "--json")
        assert (code, json.loads(out)) == (0, {"revision": revisions.newest()})

    assert not settings.spool_path.exists()
    ledger = open_ledger(settings)
    assert ledger.is_usable()
    ledger.close()
    assert cli("ledger", "upgrade")[:2] == (0, f"the ledger is at revision {revisions.newest()}\n")


def test_sqlite_is_well(cli: Cli, adapter: Adapter) -> None:
    """A healthy ledger is reported as such, and the command ends with 0."""
    code, found = checked(cli)

    assert code == 0
    assert found["database"] == "sqlite"
    assert (found["reachable"], found["spool"], found["problems"]) == (True, "this one", [])
    assert found["revision"] == found["expected"] == revisions.newest()
    code, out, _ = cli("ledger", "check")
    assert code == 0
    assert out.splitlines()[-1] == "The ledger is well."


@pytest.mark.every_ledger("postgresql")
def test_postgresql_is_well(cli: Cli, adapter: Adapter, durable: None) -> None:
    """The server's release, its durability and its clock are shown too."""
    code, found = checked(cli)

    assert (code, found["problems"]) == (0, [])
    assert str(found["server"])[:2].isdigit()
    assert found["durability"] == {"fsync": "on", "synchronous_commit": "on"}
    assert abs(float(str(found["clock_ahead_seconds"]))) < 1


@pytest.mark.every_ledger("postgresql")
def test_a_server_that_does_not_sync_is_a_problem(cli: Cli, adapter: Adapter) -> None:
    """What the ledger has committed must not be lost with the power."""
    code, found = checked(cli)

    assert code == 1
    assert "fsync is off" in found["problems"][0]


def test_a_check_makes_nothing(cli: Cli, settings: Settings) -> None:
    """A ledger that does not exist yet is reported, and not created."""
    code, found = checked(cli)

    assert code == 1
    assert found["reachable"] is False
    assert found["problems"] == ["there is no ledger yet: the first start creates it"]
    assert not settings.data.exists()


@pytest.mark.every_ledger("postgresql")
def test_a_database_without_a_schema_is_told(
    cli: Cli, settings: Settings, durable: None, postgresql: PostgreSQL
) -> None:
    """It answers, and needs to be upgraded."""
    with postgresql.connect(make_url(settings.database_url).database) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")

    code, found = checked(cli)

    assert (code, found["reachable"], found["spool"]) == (1, True, "none yet")
    assert "run `dicom-adapter ledger upgrade`" in found["problems"][0]


@pytest.mark.every_ledger("postgresql")
def test_a_server_that_is_away_is_told_without_its_address(cli: Cli, adapter: Adapter) -> None:
    """The message contains neither the database's address nor a password."""
    adapter.close()
    with shut(adapter.ledger.url):
        code, out, err = cli("ledger", "check")

    assert code == 1
    assert "does not answer" in out
    assert "database > url" in out
    assert "127.0.0.1" not in out + err


def test_another_spool_is_a_problem(cli: Cli, adapter: Adapter, settings: Settings) -> None:
    """A ledger that is tied to another spool would lose instances."""
    adapter.close()
    shutil.rmtree(settings.spool_path)
    Spool(settings.spool_path).create()

    code, found = checked(cli)

    assert (code, found["spool"]) == (1, "another one")
    assert "another spool" in found["problems"][0]


def test_clocks_that_differ_are_a_problem(
    cli: Cli, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups would close early or late; the message says by how much, and what to do."""
    monkeypatch.setattr(health.time, "time", lambda: adapter.ledger.now() - 90)

    code, found = checked(cli)

    assert code == 1
    assert "differ by 90" in found["problems"][0]
    assert "NTP" in found["problems"][0]


def test_a_newer_schema_is_well_until_it_leaves_this_release_behind(
    cli: Cli, adapter: Adapter
) -> None:
    """A revision that this release does not know is no problem in itself."""
    with adapter.ledger.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'newer'")
    assert checked(cli)[0] == 0

    add_row(adapter, schema.meta, name="needs", value="newer")

    code, found = checked(cli)
    assert code == 1
    assert "of a newer release" in found["problems"][0]
    code, _, err = cli("ledger", "upgrade")
    assert code == 1
    assert "start that release" in err


def test_a_url_of_another_database_is_refused(
    cli: Cli, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the two databases that the ledger is tested on are taken."""
    monkeypatch.setenv("DICOMADAPTER__DATABASE__URL", "mysql://localhost/adapter")

    code, _, err = cli("ledger", "check")

    assert code == 2
    assert "DicomAdapter > database > url" in err


@pytest.mark.every_ledger("postgresql")
def test_a_role_opens_what_the_job_has_upgraded(cli: Cli, settings: Settings) -> None:
    """`ledger upgrade` first and a role after is the same as a role alone."""
    assert cli("ledger", "upgrade")[0] == 0

    adapter = open_adapter(settings, create=True)

    assert adapter.ledger.spool_id == adapter.spool.id
    adapter.close()
