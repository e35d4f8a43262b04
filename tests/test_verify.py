# SPDX-License-Identifier: Apache-2.0
"""Verification: differences between spool and ledger are reported, work in progress is not."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapter.core import Adapter
from adapter.ledger import schema
from adapter.verify import verify
from tests.support_ledger import (
    LONG_AGO,
    add_ae_title,
    add_arrival,
    add_export,
    add_group,
    add_job,
    add_row,
    add_task,
    change_rows,
)

pytestmark = pytest.mark.every_ledger


@pytest.fixture
def version(adapter: Adapter) -> int:
    """An AE title with one pipeline."""
    return add_ae_title(adapter)


@pytest.fixture
def whole(adapter: Adapter, version: int) -> str:
    """A study on its way: group, job, results, exports; return the id of its first arrival."""
    group = add_group(adapter, version, state="submitted", instances=2)
    arrival = add_arrival(adapter, version, 1, group_id=group)
    add_arrival(adapter, version, 2, group_id=group)
    job = add_job(adapter, group, state="succeeded")
    task = add_task(adapter, job)
    add_export(adapter, task, state="partial", receipts={1: "stored", 2: "refused"})
    add_arrival(adapter, version, 3, state="quarantined", reason="not-parseable")
    return arrival


def problems(adapter: Adapter) -> list[str]:
    """Return the problems found, without waiting."""
    return [f"{d.kind}: {d.problem}" for d in verify(adapter, settle_seconds=0)]


def test_a_sound_adapter_has_no_differences(adapter: Adapter, whole: str) -> None:
    """Files and rows that account for each other are not mentioned."""
    assert problems(adapter) == []


def test_an_instance_removed_by_hand_is_told(adapter: Adapter, whole: str) -> None:
    """A registered instance whose file is gone."""
    adapter.spool.instance_path(whole).unlink()

    assert problems(adapter) == ["arrival: its file is not in instances/"]


def test_an_instance_cut_short_is_told(adapter: Adapter, whole: str) -> None:
    """A file with fewer bytes than were registered."""
    adapter.spool.instance_path(whole).write_bytes(b"short")

    assert problems(adapter) == ["arrival: its file has 5 bytes instead of 12"]


def test_a_result_removed_by_hand_is_told(adapter: Adapter, whole: str) -> None:
    """A result that is still to be sent, or to be looked at."""
    (result,) = adapter.spool.results.glob("*/1.dcm")
    result.unlink()

    assert problems(adapter) == ["results: its file 1.dcm is missing"]


def test_a_quarantined_file_removed_by_hand_is_told(adapter: Adapter, whole: str) -> None:
    """Quarantine is kept until an operator discards it."""
    (kept,) = adapter.spool.quarantine.iterdir()
    kept.unlink()

    assert problems(adapter) == ["arrival: its file is not in quarantine/"]


def test_a_file_without_a_row_is_told(adapter: Adapter, whole: str) -> None:
    """An instance that the ledger does not know."""
    change_rows(adapter, schema.arrivals, schema.arrivals.c.id == whole, id=whole[:-1] + "9")

    assert sorted(problems(adapter)) == [
        "arrival: its file is in instances/ but the ledger does not know it",
        "arrival: its file is not in instances/",
    ]


def test_a_stranger_in_the_spool_is_told(adapter: Adapter, whole: str) -> None:
    """What no role of the adapter has written."""
    (adapter.spool.instances / "00" / "notes.txt").write_text("x")

    assert problems(adapter) == ["file: no role of the adapter created it"]


STEPS: dict[str, Callable[[Adapter], None]] = {
    "group: it is closed without its job": lambda adapter: delete_all(adapter, "jobs"),
    "job: it has succeeded but its results have no task": lambda a: delete_all(a, "tasks"),
    "export: it has succeeded but not every file is confirmed": lambda adapter: change_rows(
        adapter, schema.exports, state="succeeded"
    ),
    "job: it is parked but not known where": lambda adapter: change_rows(
        adapter, schema.jobs, state="parked"
    ),
    "job: it has not ended but its group is reclaimed": lambda adapter: (
        change_rows(adapter, schema.groups, state="reclaimed"),
        change_rows(adapter, schema.jobs, state="started"),
    ),
    "job: it is finished but still leased": lambda adapter: change_rows(
        adapter, schema.jobs, lease_token="x", lease_until=LONG_AGO
    ),
    "job: its worker is gone and no other has taken it over": lambda adapter: change_rows(
        adapter, schema.jobs, state="started", lease_token="x", lease_until=LONG_AGO
    ),
}


def delete_all(adapter: Adapter, table: str) -> None:
    """Delete a table's rows, and those that refer to them."""
    order = ["receipts", "exports", "task_files", "tasks", "jobs"]
    with adapter.ledger.write() as connection:
        for name in order[: order.index(table) + 1]:
            connection.execute(schema.metadata.tables[name].delete())


@pytest.mark.parametrize("problem", STEPS)
def test_a_row_without_a_next_step_is_told(adapter: Adapter, whole: str, problem: str) -> None:
    """A row that is not at its end, and that no stage would ever look at."""
    STEPS[problem](adapter)

    found = problems(adapter)

    assert any(text.startswith(problem) for text in found), found


def test_work_in_flight_is_no_difference(adapter: Adapter, version: int) -> None:
    """A file that has both its names is being registered, and is not reported."""
    group = add_group(adapter, version)
    arrival = add_arrival(adapter, version, 1, group_id=group)
    source = adapter.spool.instance_path(arrival)
    source.rename(adapter.spool.incoming_path(arrival))
    assert problems(adapter) == ["arrival: its file is not in instances/"]
    adapter.spool.link_instances([arrival])  # both names: it is being registered

    assert problems(adapter) == []


def test_deep_verification_reads_the_bytes(adapter: Adapter, whole: str) -> None:
    """A file of the right size with other bytes is found by its digest."""
    assert problems(adapter) == []

    assert {d.id for d in verify(adapter, settle_seconds=0, deep=True)} >= {whole}


def test_waiting_jobs_and_holds_are_next_steps(adapter: Adapter, version: int) -> None:
    """A job that waits for its retry, and an export whose destination is on hold, are in order."""
    group = add_group(adapter, version, state="submitted")
    add_arrival(adapter, version, 1, group_id=group)
    job = add_job(adapter, group, state="succeeded")
    task = add_task(adapter, job)
    add_export(adapter, task, state="sending", lease_token="x", lease_until=LONG_AGO)
    add_row(
        adapter,
        schema.holds,
        destination="PACS",
        since=LONG_AGO,
        until=LONG_AGO,
        failures=3,
        reason="nobody listens",
    )

    assert problems(adapter) == []


def test_whatever_it_meets_is_told_and_the_rest_is_compared(
    adapter: Adapter, whole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that cannot be listed, a row that cannot be read: verification goes on."""
    adapter.spool.instance_path(whole).unlink()
    scandir = os.scandir

    def refuse(folder: Path) -> Any:
        if Path(folder) == adapter.spool.quarantine:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    change_rows(adapter, schema.configuration, body={"aeTitle": 7})

    found = problems(adapter)

    assert "arrival: its file is not in instances/" in found
    assert "file: it cannot be listed: Permission denied" in found
    assert "verify: the comparison cannot go on: ValidationError" in found
