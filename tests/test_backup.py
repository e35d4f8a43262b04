# SPDX-License-Identifier: Apache-2.0
"""Back-up and restore as docs/operations.md tells: the ledger first, then the spool."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import generate_uid
from sqlalchemy import select

from adapter import heartbeat
from adapter.core import Adapter, open_adapter
from adapter.ledger import Ledger, configuration, dumps, jobs, schema
from adapter.ledger.schema import arrivals, groups
from adapter.models import EntityKind
from adapter.settings import Settings
from adapter.verify import verify
from tests import support_ledger
from tests.support_ledger import lose_ledger
from tests.support_stages import (
    IncomingAssociation,
    add_ae_title,
    let_time_pass,
    make_instance,
    make_work,
    rows,
)
from workers import grouping, notification, reclamation
from workers.stage import take_all

#: Seconds since the instances of the test were received: the sweep leaves younger ones alone.
AGE = 2000.0

Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.every_ledger
def test_what_came_between_the_two_copies_is_registered_again(
    settings: Settings, tmp_path: Path, cli: Cli
) -> None:
    """Nothing acknowledged before the spool was copied is lost, and each is in one group."""
    adapter = open_adapter(settings, create=True)
    study, received_at = generate_uid(), adapter.ledger.now() - AGE
    version = add_ae_title(adapter, processor_settings={"pipeline-a": "a", "timeout": "3600"})

    def receive(adapter: Adapter, *instances) -> None:
        for ds in instances:
            IncomingAssociation(adapter, version).store(ds, received_at=received_at)

    work = make_work(adapter)
    receive(adapter, *(make_instance(StudyInstanceUID=study) for _ in range(2)))
    notification.run(work)
    assert cli("ledger", "dump", tmp_path / "ledger.copy")[0] == 0
    receive(adapter, make_instance(StudyInstanceUID=study), make_instance())
    notification.run(work)
    receive(adapter, make_instance())
    shutil.copytree(adapter.spool.folder, tmp_path / "spool.copy")
    work.headers.close()
    shutil.rmtree(adapter.spool.folder)
    lose_ledger(adapter)

    shutil.copytree(tmp_path / "spool.copy", settings.spool_path)
    assert cli("ledger", "restore", tmp_path / "ledger.copy")[0] == 0
    workers = settings.workers.model_copy(update={"housekeeping_seconds": 0.001})
    restored = open_adapter(settings)
    restored = replace(restored, settings=settings.model_copy(update={"workers": workers}))

    remedies = {difference.remedy.partition(":")[0] for difference in verify(restored, 0)}
    assert remedies == {"wait"}
    work = make_work(restored)
    reclamation.run(work)
    notification.run(work)
    let_time_pass(restored, 3700)
    take_all(work, grouping.take)
    work.headers.close()
    assert sorted(group.instances for group in rows(restored, groups)) == [1, 1, 3]
    assert [arrival.state for arrival in rows(restored, arrivals)] == ["registered"] * 5
    assert verify(restored, 0) == []
    restored.close()


def all_rows(ledger: Ledger) -> dict[str, list[Any]]:
    """Return every row of a ledger, by table."""
    with ledger.read() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(select(table)).mappings()))
            for table in schema.metadata.sorted_tables
        }


def fill(adapter: Adapter) -> None:
    """Give a ledger rows of most kinds."""
    version = support_ledger.add_ae_title(adapter)
    group = support_ledger.add_group(adapter, version, state="submitted")
    support_ledger.add_arrival(adapter, version, group_id=group)
    job = support_ledger.add_job(adapter, group, state="parked", message="no answer")
    task = support_ledger.add_task(adapter, job)
    support_ledger.add_export(adapter, task, state="partial", receipts={1: "stored"})
    jobs.retry(adapter.ledger, job)


@pytest.mark.every_ledger
def test_a_dump_is_restored_into_either_database(
    adapter: Adapter, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Every row comes again, from SQLite in PostgreSQL and the reverse, and numbers go on."""
    fill(adapter)
    dumps.dump(adapter.ledger, tmp_path / "dump")
    to_sqlite = f"sqlite:///{tmp_path / 'other.sqlite'}"
    url = to_sqlite if adapter.ledger.is_shared else request.getfixturevalue("postgresql_url")
    other = Ledger(url)
    other.upgrade()

    assert dumps.restore(other, tmp_path / "dump") == sum(map(len, all_rows(other).values()))

    assert all_rows(other) == all_rows(adapter.ledger)
    source = configuration.parse(EntityKind.SOURCE, {"aeTitle": "CT1", "hostIp": "10.0.0.7"})
    newer = configuration.put(other, EntityKind.SOURCE, source, replace=False)
    assert newer == 1 + configuration.current(adapter.ledger, EntityKind.AE_TITLE)[0].version
    assert sorted(path.name for path in tmp_path.glob("*dump*")) == ["dump"]
    other.close()


@pytest.mark.every_ledger
def test_restoring_loses_nothing_unless_it_is_told_to(
    cli: Cli, adapter: Adapter, tmp_path: Path
) -> None:
    """Rows are kept, a running role is noticed, and what is no dump changes nothing."""
    fill(adapter)
    assert json.loads(cli("ledger", "dump", tmp_path / "dump", "--json")[1])["rows"] > 5
    assert (tmp_path / "dump").stat().st_mode & 0o777 == 0o600
    before = all_rows(adapter.ledger)
    (tmp_path / "text").write_text("not a dump")
    sqlite3.connect(tmp_path / "empty").execute("CREATE TABLE t (x)").connection.close()

    def refused(*words: object) -> str:
        code, _, err = cli("ledger", "restore", *words)
        assert (code, all_rows(adapter.ledger)) == (1, before)
        return str(err)

    assert "--replace" in refused(tmp_path / "dump")
    assert "no dump" in refused(tmp_path / "text", "--replace")
    assert "no dump" in refused(tmp_path / "empty", "--replace")
    heartbeat.write(adapter.spool, "worker")
    assert "these run: worker" in refused(tmp_path / "dump", "--replace")
    heartbeat.remove(adapter.spool, "worker")
    configuration.remove(adapter.ledger, EntityKind.AE_TITLE, "BRAIN")
    assert cli("ledger", "restore", tmp_path / "dump", "--replace")[0] == 0
    assert all_rows(adapter.ledger) == before
