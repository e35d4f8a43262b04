# SPDX-License-Identifier: Apache-2.0
"""Reclamation: what is deleted, and what never is."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapter import job_output
from adapter.core import Adapter
from adapter.ledger import housekeeping
from adapter.ledger.schema import (
    arrivals,
    exports,
    groups,
    jobs,
    meta,
    receipts,
    task_files,
    tasks,
)
from adapter.settings import Settings
from adapter.verify import verify
from tests.support_ledger import add_row
from tests.support_stages import (
    IncomingAssociation,
    add_ae_title,
    let_time_pass,
    make_instance,
    make_work,
    rows,
)
from workers import grouping, notification, reclamation
from workers.stage import Work, take_all

pytestmark = pytest.mark.every_ledger


@pytest.fixture
def work(adapter: Adapter) -> Iterator[Work]:
    """What the stages work with."""
    made = make_work(adapter)
    yield made
    made.headers.close()


@pytest.fixture
def arrival(adapter: Adapter, work: Work) -> str:
    """An instance whose group is closed, with one job that has succeeded."""
    stored = IncomingAssociation(adapter, add_ae_title(adapter)).store(make_instance())
    notification.run(work)
    let_time_pass(adapter, 6)
    take_all(work, grouping.take)
    change(adapter, jobs, state="succeeded", updated_at=0)
    return stored


def change(adapter: Adapter, table: Any, **values: Any) -> None:
    """Write to every row of a table."""
    with adapter.ledger.write() as connection:
        connection.execute(table.update().values(**values))


def add_export(adapter: Adapter, **values: Any) -> None:
    """Give the job a task with one export."""
    (job,) = rows(adapter, jobs)
    with adapter.ledger.write() as connection:
        connection.execute(
            tasks.insert().values(
                id="t", job_id=job.id, agent="A", remote=False, report="none", created_at=0
            )
        )
        connection.execute(
            exports.insert().values(
                {
                    "id": "e",
                    "task_id": "t",
                    "destination": "PACS",
                    "state": "succeeded",
                    "priority": 2,
                    "due_at": 0,
                    "failed": False,
                    "created_at": 0,
                    "updated_at": 0,
                    **values,
                }
            )
        )


def test_a_finished_groups_files_go(adapter: Adapter, work: Work, arrival: str) -> None:
    """When every job and export has ended well, the instances and results are deleted."""
    add_export(adapter)
    (job,) = rows(adapter, jobs)
    adapter.spool.result_folder(job.id).mkdir()
    path = adapter.spool.instance_path(arrival)
    assert path.exists()

    assert reclamation.run(work)["groups"] == 1

    assert not path.exists()
    assert not adapter.spool.result_folder(job.id).exists()
    assert rows(adapter, groups)[0].state == "reclaimed"
    assert rows(adapter, arrivals)[0].deleted_at is not None
    assert reclamation.run(work)["groups"] == 0


@pytest.mark.parametrize(
    "state", ["queued", "created", "described", "uploaded", "started", "parked"]
)
def test_a_job_that_is_not_over_keeps_its_files(
    adapter: Adapter, work: Work, arrival: str, state: str
) -> None:
    """Nothing is deleted while a job may still need it, or an operator may retry it."""
    change(adapter, jobs, state=state)

    assert reclamation.run(work)["groups"] == 0
    assert adapter.spool.instance_path(arrival).exists()


@pytest.mark.parametrize("state", ["pending", "sending", "partial", "parked"])
def test_an_export_that_is_not_over_keeps_its_files(
    adapter: Adapter, work: Work, arrival: str, state: str
) -> None:
    """Partial and parked exports are never reclaimed by themselves."""
    add_export(adapter, state=state)

    assert reclamation.run(work)["groups"] == 0
    assert adapter.spool.instance_path(arrival).exists()


def test_an_unreported_task_keeps_its_files(adapter: Adapter, work: Work, arrival: str) -> None:
    """A task whose answer the Results Service has not taken yet is not over."""
    add_export(adapter)
    change(adapter, tasks, report="due")

    assert reclamation.run(work)["groups"] == 0
    assert adapter.spool.instance_path(arrival).exists()


def test_a_lease_keeps_files(adapter: Adapter, work: Work, arrival: str) -> None:
    """A row that a worker holds is not over, whatever its state says."""
    change(adapter, jobs, lease_token="x")

    assert reclamation.run(work)["groups"] == 0
    assert adapter.spool.instance_path(arrival).exists()


def test_a_group_without_jobs_is_never_reclaimed(
    adapter: Adapter, work: Work, arrival: str
) -> None:
    """A closed group that has no job is a fault to look at, not space to win."""
    with adapter.ledger.write() as connection:
        connection.execute(jobs.delete())

    assert reclamation.run(work)["groups"] == 0
    assert adapter.spool.instance_path(arrival).exists()


def test_retention_is_waited_for(settings: Settings, adapter: Adapter, arrival: str) -> None:
    """Files outlive their use by the retention."""
    change(adapter, jobs, updated_at=adapter.ledger.now())
    storage = settings.storage.model_copy(update={"retention_seconds": 100.0})
    patient = Adapter(
        settings.model_copy(update={"storage": storage}), adapter.spool, adapter.ledger
    )

    assert reclamation.run(make_work(patient))["groups"] == 0
    change(adapter, jobs, updated_at=adapter.ledger.now() - 101)
    assert reclamation.run(make_work(patient))["groups"] == 1


def test_an_interrupted_reclamation_is_finished(adapter: Adapter, work: Work, arrival: str) -> None:
    """A group whose reclaimer died is reclaimed by the next, files half gone or not."""
    change(adapter, groups, state="reclaiming", lease_token="dead", lease_until=0)
    adapter.spool.instance_path(arrival).unlink()

    assert reclamation.run(work)["groups"] == 1
    assert rows(adapter, groups)[0].state == "reclaimed"


def test_unwanted_files_go_at_once(adapter: Adapter, work: Work) -> None:
    """A duplicate's file is deleted, its row stays to be counted."""
    version = add_ae_title(adapter)
    ds = make_instance()
    IncomingAssociation(adapter, version).store(ds)
    second = IncomingAssociation(adapter, version).store(ds)
    notification.run(work)

    assert reclamation.run(work)["discarded"] == 1
    assert not adapter.spool.instance_path(second).exists()
    assert rows(adapter, arrivals, arrivals.c.id == second)[0].deleted_at is not None


def test_an_unfinished_file_goes_when_it_is_stale(adapter: Adapter, work: Work) -> None:
    """The temporary file of a receiver that died is swept, a fresh one is left alone."""
    old, fresh = (adapter.spool.incoming / "03" / f".{name}.part" for name in ("old", "fresh"))
    for path in (old, fresh):
        path.touch()
    os.utime(old, (0, 0))

    assert reclamation.run(work)["stale"] == 1
    assert not old.exists()
    assert fresh.exists()


def test_a_file_that_lost_its_row_is_registered_anew(adapter: Adapter, work: Work) -> None:
    """The sweep gives an instance without a row back to notification."""
    association = IncomingAssociation(adapter, add_ae_title(adapter))
    association.store(make_instance(), received_at=adapter.ledger.now() - 1000)
    notification.run(work)
    with adapter.ledger.write() as connection:
        connection.execute(arrivals.delete())

    reclamation.run(work)

    assert notification.run(work) == {"registered": 1}


def test_a_folder_made_too_late_goes_with_the_next_sweep(
    adapter: Adapter, work: Work, arrival: str
) -> None:
    """What a run makes for a job whose group is reclaimed already is swept; another job's stays."""
    reclamation.run(work)
    (job,) = rows(adapter, jobs)
    other = str(uuid.uuid4())
    for name in (job.id, other):
        adapter.spool.work_folder(name).mkdir()
    adapter.spool.result_folder(job.id).mkdir()

    with adapter.ledger.write() as connection:
        connection.execute(sweep_again())
    reclamation.run(work)

    assert list(adapter.spool.list_jobs()) == [other]


def test_what_a_pipeline_printed_outlives_its_files(
    adapter: Adapter, work: Work, arrival: str
) -> None:
    """It stays for `jobOutputDays`, the newest of it for as long as `jobOutputMB` allows."""
    (job,) = rows(adapter, jobs)
    folder = adapter.spool.work_folder(job.id)
    (folder / "attempt").mkdir(parents=True)
    (folder / "metadata.json").write_text("{}")
    (folder / "stdout.txt").write_text("printed")
    (folder / "stderr.txt").write_text("")

    reclamation.run(work)
    assert [path.name for path in folder.iterdir()] == ["stdout.txt"]
    assert [group.state for group in rows(adapter, groups)] == ["reclaimed"]
    assert "work" not in {found.kind for found in verify(adapter, settle_seconds=0)}
    assert job_output.delete_old(adapter.spool.work, before=0, most=7) == 0
    assert folder.exists()

    os.utime(folder / "stdout.txt", (0, 0))
    with adapter.ledger.write() as connection:
        connection.execute(sweep_again())
    assert reclamation.run(work)["outputs"] == 1
    assert not folder.exists()


def test_there_is_no_more_of_what_pipelines_printed_than_may_be(tmp_path: Path) -> None:
    """Beyond the bytes that may be kept the oldest goes; a job that is not reclaimed keeps its."""
    for number in range(4):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "stdout.txt").write_text("12345")
        os.utime(folder / "stdout.txt", (number, number))
    (tmp_path / "0" / "metadata.json").write_text("{}")

    assert job_output.delete_old(tmp_path, before=0, most=12) == 1

    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "2", "3"]


def test_rows_outlive_their_files_and_are_then_forgotten(
    adapter: Adapter, work: Work, arrival: str
) -> None:
    """Rows of a reclaimed group stay for `historyDays`, then they go."""
    reclamation.run(work)
    change(adapter, groups, reclaimed_at=adapter.ledger.now() - 89 * 86400)
    with adapter.ledger.write() as connection:
        connection.execute(sweep_again())
    reclamation.run(work)
    assert len(rows(adapter, arrivals)) == 1

    change(adapter, groups, reclaimed_at=adapter.ledger.now() - 91 * 86400)
    with adapter.ledger.write() as connection:
        connection.execute(sweep_again())
    reclamation.run(work)
    assert rows(adapter, arrivals) == rows(adapter, groups) == rows(adapter, jobs) == []


def test_all_old_rows_are_forgotten_however_many(
    adapter: Adapter, work: Work, arrival: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sweep forgets more than fits into one transaction: rows never outgrow the sweeps."""
    monkeypatch.setattr(housekeeping, "_BATCH", 2)
    reclamation.run(work)
    (group,) = rows(adapter, groups)
    with adapter.ledger.write() as connection:
        for generation in range(2, 7):
            more = {**group._asdict(), "id": f"g{generation}", "generation": generation}
            connection.execute(groups.insert().values(**more))
        connection.execute(sweep_again())
    change(adapter, groups, reclaimed_at=adapter.ledger.now() - 91 * 86400)

    reclamation.run(work)

    assert rows(adapter, groups) == []


def test_tasks_of_a_remote_results_service_are_forgotten(adapter: Adapter, work: Work) -> None:
    """So long after their last report they go; what is not reported or decided stays."""
    long_ago = adapter.ledger.now() - 91 * 86400
    cases: dict[str, dict[str, Any]] = {
        "reported": {},
        "reported, its time kept": {"report_due_at": long_ago},
        "told again": {"report_due_at": long_ago + 5 * 86400},
        "owed": {"report": "due"},
        "parked": {},
        "ours": {"remote": False},
    }
    usual = {"agent": "SCU", "remote": True, "report": "reported", "created_at": long_ago}
    times = {"due_at": 0.0, "created_at": 0.0, "updated_at": 0.0, "failed": False, "priority": 2}
    for name, values in cases.items():
        add_row(adapter, tasks, id=name, **{**usual, **values})
        add_row(adapter, task_files, task_id=name, number=1, path="1.dcm")
        state = "parked" if name == "parked" else "succeeded"
        row = {"id": name, "task_id": name, "destination": "PACS", "state": state, **times}
        add_row(adapter, exports, **row)
        receipt = {"outcome": "stored", "tries": 1, "updated_at": 0.0}
        add_row(adapter, receipts, export_id=name, number=1, **receipt)
    with adapter.ledger.write() as connection:
        connection.execute(sweep_again())

    assert reclamation.run(work)["forgotten"] == 2

    for table, column in ((tasks, "id"), (task_files, "task_id"), (exports, "id")):
        kept = {getattr(row, column) for row in rows(adapter, table)}
        assert kept == {"told again", "owed", "parked", "ours"}


def sweep_again() -> Any:
    """Return the statement that makes housekeeping due."""
    return meta.update().where(meta.c.name == "housekept").values(value="0")
