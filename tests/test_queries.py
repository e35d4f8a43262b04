# SPDX-License-Identifier: Apache-2.0
"""Queries of the ledger."""

from __future__ import annotations

import json

import pytest

from adapter.core import Adapter
from adapter.ledger import events, quarantine, queries, reclamation, schema
from adapter.ledger.queries.studies import _newest
from adapter.models import ExportState, JobState
from tests.support_ledger import (
    LONG_AGO,
    STUDY,
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
    return add_ae_title(adapter)


def test_studies_come_newest_first_in_pages_that_neither_skip_nor_repeat(
    adapter: Adapter, version: int
) -> None:
    """The pages of the list hold every study once; the one received last is the first."""
    for study in range(1, 8):
        for number in (study, 20 - study):  # the second instances come in the opposite order
            add_arrival(adapter, version, number, study=f"1.2.{study}", data=None)

    pages = [queries.list_studies(adapter.ledger, limit=3)]
    while pages[-1].next is not None:
        pages.append(queries.list_studies(adapter.ledger, limit=3, after=pages[-1].next))

    assert [[s.study_instance_uid for s in page.items] for page in pages] == [
        ["1.2.1", "1.2.2", "1.2.3"],
        ["1.2.4", "1.2.5", "1.2.6"],
        ["1.2.7"],
    ]


@pytest.mark.every_ledger("sqlite")
def test_a_page_of_studies_does_not_read_the_whole_history(adapter: Adapter) -> None:
    """The list walks an index backwards and probes another; it sorts and scans no table."""
    statement = str(_newest(10, None).compile(adapter.ledger.engine)).replace("\n", " ")
    with adapter.ledger.read() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", (11, 0)).all()

    steps = " / ".join(row[3] for row in plan)
    assert "TEMP B-TREE" not in steps, steps
    assert "USING INDEX ix_arrivals_study (study_instance_uid=? AND id>?)" in steps, steps


def test_a_study_is_summed_up_by_instances_series_bytes_and_states(
    adapter: Adapter, version: int
) -> None:
    """A row of the list counts what was received and how far it has come."""
    group = add_group(adapter, version, state="submitted")
    for number in (1, 2, 3):
        add_arrival(adapter, version, number, group_id=group)
    add_arrival(adapter, version, 4, state="discarded", reason="duplicate")
    add_arrival(adapter, version, 5, state="quarantined", reason="no-grouping-value")
    job = add_job(adapter, group, state="succeeded")
    add_job(adapter, group, pipeline="liver", state="parked", parked_in="created")
    task = add_task(adapter, job)
    add_export(adapter, task, state="partial")

    (study,) = queries.list_studies(adapter.ledger).items

    assert study.model_dump(exclude={"first_received_at", "last_received_at"}) == {
        "study_instance_uid": STUDY,
        "instances": 3,
        "series": 1,
        "size": 36,
        "called_ae_titles": ["BRAIN"],
        "arrivals": {"registered": 3, "discarded": 1, "quarantined": 1},
        "groups": {"submitted": 1},
        "jobs": {"succeeded": 1, "parked": 1},
        "exports": {"partial": 1},
        "patient_conflict": False,
    }
    assert study.first_received_at.timestamp() == pytest.approx(LONG_AGO + 1, abs=0.001)
    assert study.last_received_at.timestamp() == pytest.approx(LONG_AGO + 5, abs=0.001)


def test_what_an_overwritten_instance_leaves_is_not_counted_twice(
    adapter: Adapter, version: int
) -> None:
    """Instances are counted by SOP Instance UID, as their groups hold them."""
    group = add_group(adapter, version)
    add_arrival(adapter, version, 1, group_id=group, sop_instance_uid="1.2.3")
    overwritten = {"state": "discarded", "reason": "overwritten"}
    add_arrival(adapter, version, 2, sop_instance_uid="1.2.3", **overwritten)

    (study,) = queries.list_studies(adapter.ledger).items

    assert study.instances == 1


def test_a_timeline_tells_the_way_from_associations_to_exports(
    adapter: Adapter, version: int
) -> None:
    """A study's timeline names its associations, what groups took, jobs, exports and events."""
    group = add_group(adapter, version, state="submitted", instances=3)
    for number in (1, 2):
        add_arrival(adapter, version, number, group_id=group)
    add_arrival(adapter, version, 3, association="ba9876543210", group_id=group)
    add_arrival(adapter, version, 4, state="discarded", reason="duplicate")
    add_arrival(adapter, version, 5, state="quarantined", study=None, reason="not-parseable")
    job = add_job(adapter, group, state="succeeded")
    task = add_task(adapter, job, files=3)
    export = add_export(adapter, task, state="partial", receipts={1: "stored", 2: "refused"})
    with adapter.ledger.write() as connection:
        events.record(
            connection, "association", association="ba9876543210", at=1.0, peer="192.0.2.7"
        )
        events.record(connection, "job-succeeded", job=job, group=group, at=3.0, files=3)
        events.record(connection, "group-closed", group=group, at=2.0, reason="quiet")
        events.record(connection, "group-closed", group="another", at=2.5)

    timeline = queries.find_timeline(adapter.ledger, STUDY)

    assert timeline is not None
    assert (timeline.instances, timeline.registered, timeline.received) == (3, 3, 0)
    assert (timeline.discarded, timeline.quarantined) == ({"duplicate": 1}, {})
    first, second = timeline.associations
    assert (first.arrivals, first.size, first.unidentified, first.peer) == (3, 36, 1, None)
    assert (second.arrivals, second.size, second.unidentified, second.peer) == (
        1,
        12,
        0,
        "192.0.2.7",
    )
    assert [(g.id, g.state, g.close_reason) for g in timeline.groups] == [
        (group, "submitted", "quiet")
    ]
    assert [(j.id, j.state, j.studies, j.priority) for j in timeline.jobs] == [
        (job, "succeeded", [STUDY], "normal")
    ]
    (sent,) = timeline.exports
    assert (sent.id, sent.files, sent.stored, sent.failed) == (export, 3, 1, 1)
    assert [(u.sop_instance_uid, u.outcome, u.status, u.tries) for u in sent.unconfirmed] == [
        (f"{STUDY}.9.2", "refused", 0xA700, 1),
        (f"{STUDY}.9.3", None, None, 0),
    ]
    assert [e.kind for e in timeline.events] == ["association", "group-closed", "job-succeeded"]


def test_the_results_of_a_remote_platform_are_in_the_timeline(
    adapter: Adapter, version: int
) -> None:
    """A task of a remote Results Service is found by the job id that the platform gave."""
    group = add_group(adapter, version, state="submitted")
    add_arrival(adapter, version, group_id=group)
    add_job(adapter, group, state="started", platform_job_id="platform-7")
    task = add_task(adapter, add_job(adapter, group, pipeline="liver"), remote=True)
    change_rows(adapter, schema.tasks, job_id="platform-7")
    add_export(adapter, task)

    timeline = queries.find_timeline(adapter.ledger, STUDY)
    (listed,) = queries.list_exports(adapter.ledger).items

    assert timeline is not None
    assert [e.id for e in timeline.exports] == [listed.id]
    assert listed.studies == [STUDY]


def test_a_study_that_was_never_received_has_no_timeline(adapter: Adapter) -> None:
    """An unknown Study Instance UID finds nothing."""
    assert queries.find_timeline(adapter.ledger, STUDY) is None


def test_jobs_are_listed_by_state_newest_first_in_pages(adapter: Adapter, version: int) -> None:
    """Jobs made in the same second are neither skipped nor repeated at a page's edge."""
    group = add_group(adapter, version, state="closed")
    names = [f"p{number}" for number in range(5)]
    ids = {add_job(adapter, group, pipeline=name, state="parked"): name for name in names}
    newest = add_job(adapter, group, pipeline="newest", at=LONG_AGO + 100)

    first = queries.list_jobs(adapter.ledger, limit=2)
    second = queries.list_jobs(adapter.ledger, limit=10, after=first.next)
    parked = queries.list_jobs(adapter.ledger, state=JobState.PARKED)

    assert first.items[0].id == newest
    listed = [job.id for job in (*first.items, *second.items)]
    assert sorted(listed) == sorted([newest, *ids])
    assert second.next is None
    assert {job.id for job in parked.items} == set(ids)


def test_a_job_says_whether_a_worker_holds_it(adapter: Adapter, version: int) -> None:
    """A lease that has not run out means that the job is being worked on."""
    group = add_group(adapter, version, state="closed")
    held = add_job(adapter, group, lease_token="t", lease_until=adapter.ledger.now() + 60)
    lost = add_job(adapter, group, pipeline="liver", lease_token="t", lease_until=LONG_AGO)

    found = [queries.find_job(adapter.ledger, job) for job in (held, lost, "unknown")]

    assert [job and job.working for job in found] == [True, False, None]


def test_exports_are_listed_by_state_and_destination_with_their_holds(
    adapter: Adapter, version: int
) -> None:
    """An export counts its files by what the destination said, and shows the hold in force."""
    job = add_job(adapter, add_group(adapter, version, state="submitted"), state="succeeded")
    task = add_task(adapter, job, files=4)
    receipts = {1: "stored", 2: "stored", 3: "retry"}
    add_export(adapter, task, "PACS", receipts=receipts)
    add_export(adapter, task, "ARCHIVE", state="succeeded")
    for name, seconds in (("PACS", 60), ("ARCHIVE", -60)):
        add_row(
            adapter,
            schema.holds,
            destination=name,
            since=LONG_AGO,
            until=adapter.ledger.now() + seconds,
            failures=3,
            reason="connection refused",
        )

    (waiting,) = queries.list_exports(adapter.ledger, state=ExportState.PENDING).items
    (archived,) = queries.list_exports(adapter.ledger, destination="ARCHIVE").items

    assert (waiting.destination, waiting.files, waiting.stored, waiting.failed) == ("PACS", 4, 2, 1)
    assert waiting.hold is not None
    assert waiting.hold.reason == "connection refused"
    assert (archived.state, archived.hold) == ("succeeded", None)
    assert queries.find_export(adapter.ledger, "unknown") is None


def test_unfinished_work_is_counted_by_stage_with_the_age_of_the_oldest(
    adapter: Adapter, version: int
) -> None:
    """Each stage's amount and age say whether it keeps up."""
    closed = add_group(adapter, version, state="closed")
    add_group(adapter, version, generation=2)
    add_arrival(adapter, version, 1, state="discarded", reason="duplicate")
    add_arrival(adapter, version, 2, state="discarded", reason="duplicate", deleted_at=LONG_AGO)
    add_job(adapter, closed, pipeline="a", state="uploaded")
    started = add_job(adapter, closed, pipeline="b", state="started", at=LONG_AGO - 600)
    add_job(adapter, closed, pipeline="c", state="parked")
    task = add_task(adapter, started, report="due")
    add_export(adapter, task, state="sending")
    add_export(adapter, task, "ARCHIVE", state="parked")

    found = queries.unfinished(adapter.ledger, adapter.settings)

    assert {stage: work.amount for stage, work in found.items()} == {
        "grouping": 1,
        "submission": 1,
        "pipeline": 1,
        "export": 2,
        "reclamation": 1,
    }
    assert found["pipeline"].oldest_seconds == pytest.approx(
        adapter.ledger.now() - LONG_AGO + 600, abs=5
    )


def test_what_waits_for_an_operator_is_counted_with_its_bytes(
    adapter: Adapter, version: int
) -> None:
    """Parked, partial and quarantined work keeps bytes in the spool, and says how many."""
    group = add_group(adapter, version, state="submitted")
    for number in (1, 2):
        add_arrival(adapter, version, number, group_id=group)
    add_arrival(adapter, version, 3, state="quarantined", reason="not-parseable", size=100)
    add_arrival(adapter, version, 4, state="quarantined", study=None, reason="not-dicom")
    add_arrival(adapter, version, 5, group_id=group, deleted_at=LONG_AGO)
    add_job(adapter, group, state="parked")
    task = add_task(adapter, add_job(adapter, group, pipeline="liver", state="succeeded"), files=3)
    add_export(adapter, task, state="parked")
    add_export(adapter, task, "ARCHIVE", state="partial")

    found = queries.attention(adapter.ledger)

    assert (found.parked_jobs.amount, found.parked_jobs.size) == (1, 24)
    assert (found.parked_exports.amount, found.parked_exports.size) == (1, 24)
    assert (found.partial_exports.amount, found.partial_exports.size) == (1, 24)
    assert (found.quarantined.amount, found.quarantined.size) == (2, 100)


def test_facts_are_camel_case_with_times_in_utc_outside(adapter: Adapter, version: int) -> None:
    """JSON keeps the keys' style of the settings, DICOM's spelling of UID, and ISO 8601."""
    add_arrival(adapter, version, data=None)

    page = queries.list_studies(adapter.ledger)
    (study,) = json.loads(page.model_dump_json(by_alias=True))["items"]

    assert study["studyInstanceUID"] == STUDY
    assert study["calledAeTitles"] == ["BRAIN"]
    assert study["lastReceivedAt"].endswith("Z")


def test_quarantined_files_are_listed_and_shown_with_their_reason(
    adapter: Adapter, version: int
) -> None:
    """The quarantine is a list of files, the last received first, each with why it is there."""
    old = add_arrival(adapter, version, 1, state="quarantined", reason="not-dicom", study=None)
    new = add_arrival(adapter, version, 2, state="quarantined", reason="invalid-uid", message="M")
    add_arrival(adapter, version, 3)

    page = quarantine.list_quarantined(adapter.ledger, limit=1)
    rest = quarantine.list_quarantined(adapter.ledger, after=page.next)
    by_reason = quarantine.list_quarantined(adapter.ledger, reason="not-dicom")

    assert [f.id for f in (*page.items, *rest.items)] == [new, old]
    assert [f.id for f in by_reason.items] == [old]
    shown = quarantine.find_quarantined(adapter.ledger, new)
    assert shown is not None
    assert (shown.message, shown.study_instance_uid) == ("M", STUDY)


def test_a_discarded_file_is_left_to_reclamation(adapter: Adapter, version: int) -> None:
    """Discarding takes a file out of quarantine for good; nothing else can be discarded."""
    kept = add_arrival(adapter, version, 1)
    bad = add_arrival(adapter, version, 2, state="quarantined", reason="not-dicom")

    discarded = quarantine.discard(adapter.ledger, [kept, bad, "unknown"])

    assert discarded == [bad]
    assert quarantine.find_quarantined(adapter.ledger, bad) is None
    _, due = reclamation.claim_discarded(adapter.ledger, lag_seconds=0, lease_seconds=30)
    assert [row.id for row in due] == [bad]
    assert quarantine.discard(adapter.ledger, [bad]) == []
