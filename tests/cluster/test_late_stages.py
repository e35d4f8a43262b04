# SPDX-License-Identifier: Apache-2.0
"""Each stage on a host that does not see yet what another host has written: it waits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import generate_uid
from sqlalchemy import update

from adapter.core import Adapter
from adapter.ledger.schema import arrivals, exports, groups, jobs
from adapter.rebuild import rebuild
from adapter.settings import Pipeline
from adapter.verify import verify
from tests import late_volume
from tests.late_volume import LateVolume
from tests.support_exports import add_destination, add_task
from tests.support_peers import ScriptedPacs
from tests.support_stages import (
    IncomingAssociation,
    add_ae_title,
    let_time_pass,
    make_instance,
    make_work,
    rows,
)
from workers import export, grouping, notification, pipeline, reclamation, submission
from workers.stage import Work, take_all

#: Longer than any of these tests takes: what is to be seen is seen when the test says so.
DELAY = 1000.0
LAG = 60.0


@pytest.fixture
def volume(adapter: Adapter, tmp_path: Path) -> Iterator[LateVolume]:
    """The adapter's spool as seen from the host that the volume's `host` names."""
    yield late_volume.install(adapter.spool.root, tmp_path / "journal", DELAY, "receiver")
    late_volume.uninstall()


@pytest.fixture
def work(adapter: Adapter, volume: LateVolume) -> Iterator[Work]:
    """What the stages work with, on a volume that they know to be late."""
    settings = adapter.settings.model_copy(
        update={
            "storage": adapter.settings.storage.model_copy(update={"lag_seconds": LAG}),
            "pipelines": {
                "lung-1": Pipeline(
                    name="Lung",
                    command=["sh", "-c", "cp {input}/* {output}"],
                    destinations=["PACS"],
                )
            },
        }
    )
    made = make_work(replace(adapter, settings=settings))
    yield made
    made.headers.close()


def age(adapter: Adapter, table: Any, column: str, seconds: float = 2 * LAG) -> None:
    """Make rows older, as if time had passed."""
    with adapter.ledger.write() as connection:
        connection.execute(update(table).values({column: table.c[column] - seconds}))


def receive(work: Work, count: int = 2) -> None:
    """Receive a study and register it, all on the same host."""
    study = generate_uid()
    association = IncomingAssociation(work.adapter, add_ae_title(work.adapter))
    for _ in range(count):
        association.store(make_instance(StudyInstanceUID=study))
    notification.run(work)


def make_job(work: Work) -> None:
    """Take a study as far as its job."""
    receive(work)
    let_time_pass(work.adapter, 6 + LAG)
    age(work.adapter, groups, "opened_at")
    assert take_all(work, grouping.take)["jobs"] == 1


def states(work: Work, table: Any) -> list[str]:
    """Return the states of a table's rows."""
    return [row.state for row in rows(work.adapter, table)]


def test_an_instance_that_is_not_seen_yet_is_left_alone(work: Work, volume: LateVolume) -> None:
    """Notification on another host registers a file when it sees it, and not before."""
    IncomingAssociation(work.adapter, add_ae_title(work.adapter)).store(make_instance())
    volume.host = "other"
    assert notification.run(work) == {}
    volume.delay = 0.0
    assert notification.run(work) == {"registered": 1}


def test_a_group_waits_until_all_that_was_received_is_seen(work: Work, volume: LateVolume) -> None:
    """An instance of the study that the grouping host cannot see yet splits nothing."""
    study = generate_uid()
    association = IncomingAssociation(work.adapter, add_ae_title(work.adapter))
    association.store(make_instance(StudyInstanceUID=study))
    notification.run(work)
    volume.host = "second-receiver"
    association.store(make_instance(StudyInstanceUID=study))
    let_time_pass(work.adapter, 6)

    volume.host = "receiver"
    assert take_all(work, grouping.take) == {"waits": 1}
    let_time_pass(work.adapter, LAG - 10)
    assert take_all(work, grouping.take) == {}
    age(work.adapter, groups, "look_at")
    assert take_all(work, grouping.take) == {"waits": 1}
    volume.delay = 0.0
    assert notification.run(work) == {"registered": 1}
    let_time_pass(work.adapter, LAG + 10)
    age(work.adapter, groups, "opened_at")

    assert take_all(work, grouping.take) == {"closed": 1, "jobs": 1}
    assert [group.instances for group in rows(work.adapter, groups)] == [2]


def test_submission_waits_for_the_payload(work: Work, volume: LateVolume) -> None:
    """A payload that is not seen yet costs no try."""
    make_job(work)
    volume.host = "other"
    assert take_all(work, submission.take) == {"waits": 1}
    assert [job.tries for job in rows(work.adapter, jobs)] == [0]
    volume.delay = 0.0
    age(work.adapter, jobs, "due_at", 10)
    assert take_all(work, submission.take) == {"started": 1}


def test_a_job_may_be_described_twice(work: Work, volume: LateVolume) -> None:
    """A submission that died after it made the job's folder is done again on a host without it."""
    make_job(work)
    assert take_all(work, submission.take) == {"started": 1}
    with work.adapter.ledger.write() as connection:
        connection.execute(update(jobs).values(state="created", due_at=0.0))
    volume.host = "other"
    assert take_all(work, submission.take) == {"waits": 1}
    assert [job.tries for job in rows(work.adapter, jobs)] == [0]


def test_a_run_waits_for_folder_and_payload(work: Work, volume: LateVolume) -> None:
    """What another host prepared for a run, and does not show yet, costs no try."""
    make_job(work)
    assert take_all(work, submission.take) == {"started": 1}
    age(work.adapter, jobs, "created_at", 1000)  # a job that waited long for its submission
    volume.host = "other"
    assert take_all(work, pipeline.take) == {"waits": 1}
    assert [job.tries for job in rows(work.adapter, jobs)] == [0]
    volume.delay = 0.0
    age(work.adapter, jobs, "due_at", 10)
    assert take_all(work, pipeline.take) == {"succeeded": 1}


def test_results_that_another_host_published_are_taken_when_they_are_seen(
    work: Work, volume: LateVolume
) -> None:
    """A run on a host that does not see the results of one that died publishes nothing itself."""
    make_job(work)
    take_all(work, submission.take)
    assert take_all(work, pipeline.take) == {"succeeded": 1}
    (job,) = rows(work.adapter, jobs)
    before = sorted(work.adapter.spool.result_folder(job.id).iterdir())
    bytes_before = [path.read_bytes() for path in before]
    with work.adapter.ledger.write() as connection:  # as if it had died before it recorded them
        for table in ("receipts", "exports", "task_files", "tasks"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
        connection.execute(update(jobs).values(state="started", due_at=0.0))
    # The payload has been there for long: this host sees it, and not the results.
    for journal in Path(volume.journal).iterdir():
        journal.unlink()
    volume.note(volume.name(work.adapter.spool.result_folder(job.id)))

    volume.host = "other"
    assert take_all(work, pipeline.take) == {"waits": 1}
    assert [row.tries for row in rows(work.adapter, jobs)] == [0]
    volume.delay = 0.0
    age(work.adapter, jobs, "due_at", 10)
    assert take_all(work, pipeline.take) == {"succeeded": 1}
    assert [path.read_bytes() for path in before] == bytes_before


def test_an_export_waits_for_results(work: Work, volume: LateVolume) -> None:
    """Results that another host published a moment ago cost no try, and are sent once seen."""
    with ScriptedPacs() as pacs:
        add_destination(work.adapter, pacs.port)
        uids = add_task(work.adapter, 3)
        volume.host = "other"
        assert take_all(work, export.take) == {"pending": 1}
        assert [row.tries for row in rows(work.adapter, exports)] == [0]
        assert pacs.associations == 0
        volume.delay = 0.0
        age(work.adapter, exports, "due_at", 100)
        assert take_all(work, export.take) == {"succeeded": 1}
        assert sorted(pacs.sent) == sorted(uids)


def test_nothing_is_reclaimed_that_is_not_seen(work: Work, volume: LateVolume) -> None:
    """A file that a host cannot see, it cannot delete: it is left until all hosts see it."""
    study = make_instance()
    association = IncomingAssociation(work.adapter, add_ae_title(work.adapter))
    association.store(study)
    association.store(study)
    assert notification.run(work) == {"registered": 1, "discarded": 1}
    volume.host = "other"
    assert reclamation.run(work)["discarded"] == 0
    assert len(list(work.adapter.spool.instances.rglob("*.dcm"))) == 0
    volume.delay = 0.0
    assert len(list(work.adapter.spool.instances.rglob("*.dcm"))) == 2
    age(work.adapter, arrivals, "registered_at")
    assert reclamation.run(work)["discarded"] == 1
    assert len(list(work.adapter.spool.instances.rglob("*.dcm"))) == 1


def test_a_group_is_kept_until_every_host_sees_its_files(work: Work, volume: LateVolume) -> None:
    """Without any retention a group's files still stay for as long as a host may not see them."""
    make_job(work)
    take_all(work, submission.take)
    take_all(work, pipeline.take)
    with work.adapter.ledger.write() as connection:
        connection.execute(update(exports).values(state="discarded"))
    volume.host = "other"
    assert reclamation.run(work)["groups"] == 0
    volume.delay = 0.0
    age(work.adapter, jobs, "updated_at")
    age(work.adapter, exports, "updated_at")
    assert reclamation.run(work)["groups"] == 1
    spool = work.adapter.spool
    for folder in (spool.instances, spool.results, spool.work):
        assert [path for path in folder.rglob("*") if path.is_file()] == []


def test_verification_waits_too(work: Work, volume: LateVolume) -> None:
    """Files so young that another host need not show them are no difference; older ones are."""
    make_job(work)
    take_all(work, submission.take)
    take_all(work, pipeline.take)
    volume.host = "other"
    assert verify(work.adapter, 0) == []
    age(work.adapter, arrivals, "registered_at")
    with work.adapter.ledger.write() as connection:
        connection.exec_driver_sql("UPDATE tasks SET created_at = created_at - 120")
    problems = [difference.problem for difference in verify(work.adapter, 0)]
    assert sum("not in instances/" in problem for problem in problems) == 2
    assert sum("is missing" in problem for problem in problems) == 2


def test_a_rebuild_sees_everything_first(
    work: Work, volume: LateVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rebuild on a late volume begins when all that was written before is seen."""
    receive(work)
    spool = work.adapter.spool
    spool.write_configuration({"version": 0, "rows": []})
    settings = work.adapter.settings
    (settings.data / "ledger.sqlite").unlink()
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        volume.delay = 0.0

    monkeypatch.setattr(time, "sleep", sleep)
    volume.host = "other"
    assert rebuild(settings).instances == 2
    assert slept == [LAG]
