# SPDX-License-Identifier: Apache-2.0
"""Grouping: when a group closes, and what it becomes."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from pydicom.uid import generate_uid

from adapter.core import Adapter
from adapter.errors import ConfigurationError
from adapter.ledger import configuration
from adapter.ledger import groups as groups_verbs
from adapter.ledger.groups import Closing, job_name
from adapter.ledger.schema import arrivals, groups, jobs
from adapter.models import AETitle, EntityKind, GroupState
from adapter.processors.base import JobProcessor
from tests.support_stages import (
    IncomingAssociation,
    add_ae_title,
    end_rests,
    let_time_pass,
    make_instance,
    make_work,
    rows,
)
from workers import grouping, notification
from workers.stage import Work, take_all

pytestmark = pytest.mark.every_ledger


@pytest.fixture
def work(adapter: Adapter) -> Iterator[Work]:
    """What the stages work with."""
    made = make_work(adapter)
    yield made
    made.headers.close()


def test_a_quiet_group_becomes_one_job_per_pipeline(adapter: Adapter, work: Work) -> None:
    """After its quiet time a group closes once, with a job for each pipeline."""
    settings = {"pipeline-lung": "lung-1", "pipeline-heart": "heart-2", "priority": "Higher"}
    IncomingAssociation(adapter, add_ae_title(adapter, processor_settings=settings)).store(
        make_instance()
    )
    notification.run(work)
    assert take_all(work, grouping.take) == {}

    let_time_pass(adapter, 6)

    assert take_all(work, grouping.take) == {"closed": 1, "jobs": 2}
    assert take_all(work, grouping.take) == {}
    (group,) = rows(adapter, groups)
    assert (group.state, group.close_reason) == ("closed", "quiet")
    created = {row.pipeline: row for row in rows(adapter, jobs)}
    assert {name: row.pipeline_id for name, row in created.items()} == {
        "lung": "lung-1",
        "heart": "heart-2",
    }
    assert {(row.state, row.priority) for row in created.values()} == {("queued", 3)}
    assert re.fullmatch(r"brain-lung-\d{14}-[0-9a-f]{8}", created["lung"].name)
    assert work.queues.woken[-1] == "submission"  # type: ignore[attr-defined]


def test_a_new_instance_pushes_the_quiet_time(adapter: Adapter, work: Work) -> None:
    """A group whose time was up stays open when an instance came just before."""
    version = add_ae_title(adapter)
    ds = make_instance()
    IncomingAssociation(adapter, version).store(ds)
    notification.run(work)
    let_time_pass(adapter, 6)
    ds.SOPInstanceUID = generate_uid()
    IncomingAssociation(adapter, version).store(ds)
    notification.run(work)

    assert take_all(work, grouping.take) == {}
    (group,) = rows(adapter, groups)
    assert (group.instances, group.state) == (2, "open")


def test_instances_on_their_way_hold_a_group_open(adapter: Adapter, work: Work) -> None:
    """Nothing closes while an instance received before the quiet time's end waits in incoming/."""
    version = add_ae_title(adapter)
    ds = make_instance()
    IncomingAssociation(adapter, version).store(ds, received_at=adapter.ledger.now() - 20)
    notification.run(work)
    ds.SOPInstanceUID = generate_uid()
    IncomingAssociation(adapter, version).store(ds, received_at=adapter.ledger.now() - 18)

    assert take_all(work, grouping.take) == {"waits": 1}

    notification.run(work)
    let_time_pass(adapter, 2)
    assert take_all(work, grouping.take) == {"closed": 1, "jobs": 1}
    assert rows(adapter, groups)[0].instances == 2


def test_another_ae_titles_instances_hold_nothing_open(adapter: Adapter, work: Work) -> None:
    """What waits for another AE title does not delay a group."""
    version, other = add_ae_title(adapter), add_ae_title(adapter, "HEART")
    IncomingAssociation(adapter, version).store(
        make_instance(), received_at=adapter.ledger.now() - 20
    )
    notification.run(work)
    IncomingAssociation(adapter, other).store(
        make_instance(), received_at=adapter.ledger.now() - 18
    )

    assert take_all(work, grouping.take) == {"closed": 1, "jobs": 1}


def test_a_newer_version_of_the_ae_title_holds_the_group_open(adapter: Adapter, work: Work) -> None:
    """Instances accepted under a changed configuration count for the same AE title."""
    version = add_ae_title(adapter)
    IncomingAssociation(adapter, version).store(
        make_instance(), received_at=adapter.ledger.now() - 20
    )
    notification.run(work)
    changed = add_ae_title(adapter, processor_settings={"pipeline-a": "a", "timeout": "9"})
    IncomingAssociation(adapter, changed).store(
        make_instance(), received_at=adapter.ledger.now() - 18
    )

    assert take_all(work, grouping.take) == {"waits": 1}


def test_a_changed_ae_title_does_not_split_what_is_open(adapter: Adapter, work: Work) -> None:
    """An open group goes on under its own settings; a group that is opened later has the new ones.

    So a study that is being sent while an administrator adds a pipeline becomes one job, whole.
    """
    ds, late = make_instance(), make_instance()
    before = add_ae_title(adapter)
    IncomingAssociation(adapter, before).store(ds)
    notification.run(work)
    settings = {"pipeline-lung": "lung-1", "pipeline-heart": "heart-2", "timeout": "60"}
    after = add_ae_title(adapter, processor_settings=settings, overwrite_same_instance=True)
    association = IncomingAssociation(adapter, after)
    ds.SOPInstanceUID = generate_uid()
    association.store(ds)
    notification.run(work)

    (group,) = rows(adapter, groups)
    assert (group.version, group.instances) == (before, 2)
    assert group.due_at - group.newest_at == pytest.approx(5)
    ds.PatientName = "Other^Bytes"
    association.store(ds)
    assert notification.run(work) == {"quarantined": 1}, "as its version says"
    let_time_pass(adapter, 6)
    assert take_all(work, grouping.take) == {"closed": 1, "jobs": 1}

    late.StudyInstanceUID = ds.StudyInstanceUID
    association.store(late)
    notification.run(work)
    let_time_pass(adapter, 61)
    assert take_all(work, grouping.take) == {"closed": 1, "jobs": 2}
    assert [row.generation for row in rows(adapter, groups)] == [1, 2]


@pytest.mark.parametrize("change", ["created anew", "another AE title"])
def test_another_ae_title_has_groups_of_its_own(adapter: Adapter, work: Work, change: str) -> None:
    """A study sent to an AE title of the same name that was deleted, or to another, is apart."""
    ds = make_instance()
    IncomingAssociation(adapter, add_ae_title(adapter)).store(ds)
    notification.run(work)
    if change == "created anew":
        configuration.remove(adapter.ledger, EntityKind.AE_TITLE, "BRAIN")
        association = IncomingAssociation(adapter, add_ae_title(adapter))
    else:
        entity = AETitle(name="BRAIN", ae_title="B2", processor_settings={"pipeline-lung": "l"})
        version = configuration.put(adapter.ledger, EntityKind.AE_TITLE, entity, replace=True)
        association = IncomingAssociation(adapter, version, "B2")
    ds.SOPInstanceUID = generate_uid()
    association.store(ds)
    notification.run(work)

    assert [row.instances for row in rows(adapter, groups)] == [1, 1]


def test_a_plugin_that_was_taken_away_holds_up_its_own_groups_only(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group whose job processor is not installed any more rests; the others close."""
    version, other = add_ae_title(adapter), add_ae_title(adapter, "HEART")
    for title in (version, other):
        IncomingAssociation(adapter, title).store(
            make_instance(), received_at=adapter.ledger.now() - 20
        )
    notification.run(work)
    create = grouping.create_processor

    def without_one(ae_title: AETitle) -> JobProcessor:
        if ae_title.name == "BRAIN":
            raise ConfigurationError(["processor: not installed"])
        return create(ae_title)

    with monkeypatch.context() as patch:
        patch.setattr(grouping, "create_processor", without_one)
        assert take_all(work, grouping.take) == {"closed": 1, "jobs": 1, "failed": 1}
        assert take_all(work, grouping.take) == {}
    assert {group.state for group in rows(adapter, groups)} == {"open", "closed"}

    end_rests(adapter, groups)
    assert take_all(work, grouping.take) == {"closed": 1, "jobs": 1}


def test_the_maximum_wait_closes_regardless(adapter: Adapter, work: Work) -> None:
    """A trickle cannot hold a group open for ever, and the reason is recorded."""
    version = add_ae_title(adapter, processor_settings={"pipeline-a": "a", "maximumWait": "60"})
    ds = make_instance()
    IncomingAssociation(adapter, version).store(ds)
    notification.run(work)
    let_time_pass(adapter, 61)
    ds.SOPInstanceUID = generate_uid()
    association = IncomingAssociation(adapter, version)
    association.store(ds)
    notification.run(work)
    association.store(make_instance())  # still waits in incoming/

    assert take_all(work, grouping.take) == {"closed": 1, "jobs": 1}
    assert rows(adapter, groups, groups.c.state == "closed")[0].close_reason == "maximum-wait"


def test_a_late_instance_makes_the_next_generation(adapter: Adapter, work: Work) -> None:
    """What comes after the close is a group of its own, with a job of its own."""
    version = add_ae_title(adapter)
    ds = make_instance()
    IncomingAssociation(adapter, version).store(ds)
    notification.run(work)
    let_time_pass(adapter, 6)
    take_all(work, grouping.take)
    ds.SOPInstanceUID = generate_uid()
    IncomingAssociation(adapter, version).store(ds)
    notification.run(work)
    with adapter.ledger.write() as connection:
        connection.execute(
            groups.update().where(groups.c.state == "open").values(look_at=0, due_at=0)
        )

    assert take_all(work, grouping.take) == {"closed": 1, "jobs": 1}
    assert sorted((row.generation, row.instances) for row in rows(adapter, groups)) == [
        (1, 1),
        (2, 1),
    ]
    assert len({row.id for row in rows(adapter, jobs)}) == 2


def test_an_instance_between_look_and_close_is_not_left_out(adapter: Adapter, work: Work) -> None:
    """A close that an instance overtook changes nothing."""
    version = add_ae_title(adapter)
    ds = make_instance()
    IncomingAssociation(adapter, version).store(ds)
    notification.run(work)
    let_time_pass(adapter, 6)
    claimed = groups_verbs.claim_due(adapter.ledger, 30)
    assert claimed is not None
    ds.SOPInstanceUID = generate_uid()
    IncomingAssociation(adapter, version).store(ds)
    notification.run(work)

    assert grouping.close_or_hold(adapter, *claimed) == Closing(GroupState.OPEN)
    assert rows(adapter, jobs) == []
    assert rows(adapter, groups)[0].instances == 2


@pytest.mark.parametrize(
    ("group_by", "jobs_made"), [("0020,000D", 6), ("PatientID", 4), ("(0020,000E)", 8)]
)
def test_any_tag_groups(adapter: Adapter, work: Work, group_by: str, jobs_made: int) -> None:
    """The original's numbers: 3 instances of a patient in 2 studies, 1 of another; 2 pipelines."""
    settings = {"pipeline-a": "a", "pipeline-b": "b", "groupBy": group_by}
    association = IncomingAssociation(adapter, add_ae_title(adapter, processor_settings=settings))
    studies = [generate_uid() for _ in range(3)]
    for patient, study in (("P1", 0), ("P1", 0), ("P1", 1), ("P2", 2)):
        ds = make_instance(PatientID=patient, StudyInstanceUID=studies[study])
        association.store(ds)
    notification.run(work)
    let_time_pass(adapter, 6)

    assert take_all(work, grouping.take)["jobs"] == jobs_made


def test_made_again_ids_are_the_same(adapter: Adapter, work: Work) -> None:
    """The ids of groups and jobs follow from their keys."""
    version = add_ae_title(adapter)
    ds = make_instance()
    IncomingAssociation(adapter, version).store(ds)
    notification.run(work)
    let_time_pass(adapter, 6)
    take_all(work, grouping.take)
    before = [row.id for row in rows(adapter, groups)] + [row.id for row in rows(adapter, jobs)]
    with adapter.ledger.write() as connection:
        for table in (jobs, arrivals, groups):
            connection.execute(table.delete())
    IncomingAssociation(adapter, version).store(ds)
    notification.run(work)
    let_time_pass(adapter, 6)
    take_all(work, grouping.take)

    assert [row.id for row in rows(adapter, groups)] + [row.id for row in rows(adapter, jobs)] == (
        before
    )


def test_a_job_name_keeps_its_time_and_its_id() -> None:
    """A long name is cut in front, so that two jobs of one second still differ."""
    name = job_name("A_VERY_LONG_AET_", "p" * 64, 1_800_000_000.0, "0123456789abcdef")

    assert len(name) <= 63
    assert name.endswith("-20270115080000-01234567")
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
