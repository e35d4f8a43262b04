# SPDX-License-Identifier: Apache-2.0
"""The one rule for rows that kill or defeat their worker: counted, separated, bounded, visible."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from pydicom import Dataset
from pydicom.uid import generate_uid
from sqlalchemy import select

from adapter import plugins
from adapter.core import Adapter
from adapter.errors import ConfigurationError, PermanentError
from adapter.files import FileSystem, outside
from adapter.ledger import attempts, queries
from adapter.ledger import groups as groups_verbs
from adapter.ledger.attempts import ARRIVAL_ATTEMPTS
from adapter.ledger.schema import arrivals, configuration, events, exports, groups, jobs, tasks
from adapter.models import AETitle
from adapter.processors import registry
from adapter.processors.ae_title import AETitleJobProcessor
from adapter.stages import due_stages
from adapter.verify import verify
from tests import support_exports
from tests.support_jobs import submit_due
from tests.support_ledger import add_row, change_rows
from tests.support_stages import (
    IncomingAssociation,
    add_ae_title,
    end_rests,
    let_time_pass,
    make_instance,
    make_work,
    rows,
)
from workers import export, grouping, notification, pipeline, reclamation, submission
from workers.clients.embedded_platform import EmbeddedPlatform
from workers.stage import Work, take_all

pytestmark = pytest.mark.every_ledger

MAXIMUM = 3


@pytest.fixture
def work(adapter: Adapter) -> Iterator[Work]:
    """What the stages work with; a row may be attempted three times."""
    workers = adapter.settings.workers.model_copy(update={"maximum_lease_expiries": MAXIMUM})
    settings = adapter.settings.model_copy(update={"workers": workers})
    made = make_work(Adapter(settings, adapter.spool, adapter.ledger))
    yield made
    made.headers.close()


def refuse(
    monkeypatch: pytest.MonkeyPatch, name: str, arrival: str, number: int = errno.EPERM
) -> None:
    """Have the operating system refuse one operation on one file, as its owner may."""
    operation: Callable[..., Any] = getattr(FileSystem, name)

    def unless_it_is(self: FileSystem, path: Path, *others: Any) -> Any:
        if path.name == f"{arrival}.dcm":
            raise OSError(number, os.strerror(number), str(path))
        return operation(self, path, *others)

    monkeypatch.setattr(FileSystem, name, unless_it_is)


def defeats(work: Work, stage: str, reason: str) -> float:
    """Return how many attempts the stage's metric counts."""
    labels = {"stage": stage, "reason": reason}
    value = work.metrics.registry.get_sample_value("dicom_adapter_defeated_total", labels)
    return value or 0.0


def kinds(adapter: Adapter) -> list[str]:
    """Return the kinds of all events."""
    return [row.kind for row in rows(adapter, events)]


def received(adapter: Adapter, title: str = "BRAIN", ds: Dataset | None = None) -> str:
    """Receive an instance long enough ago for its group to be due when it is registered."""
    version = add_ae_title(adapter, title)
    return IncomingAssociation(adapter, version, title).store(
        ds or make_instance(), received_at=adapter.ledger.now() - 20
    )


# -- arrivals ------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_linked_holds_up_no_other(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is counted and rests, its batch is registered, and after three attempts it is quarantined.

    It moves to quarantine/ although it cannot be linked.
    """
    bad, good = received(adapter), received(adapter)
    refuse(monkeypatch, "link", bad)

    assert notification.run(work) == {"registered": 1}
    assert rows(adapter, arrivals, arrivals.c.id == good)[0].state == "registered"
    assert notification.run(work) == {}  # it rests
    for _ in range(ARRIVAL_ATTEMPTS - 2):
        end_rests(adapter, arrivals)
        assert notification.run(work) == {}
    end_rests(adapter, arrivals)
    assert notification.run(work) == {"quarantined": 1}

    (row,) = rows(adapter, arrivals, arrivals.c.id == bad)
    assert (row.state, row.reason, row.message) == (
        "quarantined",
        "file-system",
        "PermissionError (EPERM)",
    )
    assert row.called_ae_title == "BRAIN"
    assert adapter.spool.quarantine_path(bad).exists()
    assert defeats(work, "notification", "file-system") == ARRIVAL_ATTEMPTS
    assert kinds(adapter).count("registration-failed-try") == ARRIVAL_ATTEMPTS - 1
    assert "quarantined" in kinds(adapter)
    assert verify(adapter, 0) == []


def test_a_file_that_cannot_be_moved_is_quarantined_where_it_is(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    """It is not taken again, holds no group open, and `verify` and `quarantine show` tell of it."""
    bad = received(adapter)
    change: dict[str, Any] = {"attempts": ARRIVAL_ATTEMPTS - 1}
    with monkeypatch.context() as patch:
        refuse(patch, "link", bad)
        refuse(patch, "rename", bad)
        refuse(patch, "unlink", bad)
        notification.run(work)
        change_rows(adapter, arrivals, **change)
        end_rests(adapter, arrivals)
        assert notification.run(work) == {"quarantined": 1}
        assert notification.run(work) == {}
        received(adapter)
        assert notification.run(work) == {"registered": 1}
        assert take_all(work, grouping.take) == {"closed": 1, "jobs": 1}

        (row,) = rows(adapter, arrivals, arrivals.c.id == bad)
        assert (row.state, row.attempts) == ("quarantined", ARRIVAL_ATTEMPTS)
        (difference,) = verify(adapter, 0)
        assert (difference.id, "incoming/" in difference.problem) == (bad, True)
        _, out, _ = cli("quarantine", "show", bad)
        assert str(outside(adapter.spool.incoming_path(bad))) in out.replace("\n", "")

    assert notification.run(work) == {}  # its owner is put right: it moves by itself
    assert adapter.spool.quarantine_path(bad).exists()
    assert verify(adapter, 0) == []


def test_a_registered_file_that_cannot_be_unlinked_stops_no_intake(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row is there, so it is not taken again; what comes after it is registered."""
    first = received(adapter)
    refuse(monkeypatch, "unlink", first)
    assert notification.run(work) == {"registered": 1}
    received(adapter)

    assert notification.run(work) == {"registered": 1}
    assert notification.run(work) == {}


def test_a_file_that_cannot_be_read_is_counted_with_the_real_reason(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EACCES when its header is read is no broken header: its neighbour is registered at once."""
    bad = received(adapter)
    received(adapter)
    with work.headers.borrow() as reader:
        refuse_reading(monkeypatch, type(reader), bad)

    assert notification.run(work) == {"registered": 1}
    (row,) = rows(adapter, arrivals, arrivals.c.id == bad)
    assert (row.state, row.attempts) == ("received", 1)
    assert (row.reason, row.message) == ("file-system", "PermissionError (EACCES)")


def refuse_reading(monkeypatch: pytest.MonkeyPatch, reader: Any, arrival: str) -> None:
    """Have the disk refuse to read one file's header."""
    read = reader.read

    def unless_it_is(self: Any, path: Path, tags: Any, **more: Any) -> Any:
        if path.stem == arrival:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return read(self, path, tags, **more)

    monkeypatch.setattr(reader, "read", unless_it_is)


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EROFS])
def test_a_spool_that_fails_counts_against_no_file(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """If a file of our own cannot be linked either, the stage pauses and nothing is counted."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    received(adapter)
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", fail)
        for _ in range(ARRIVAL_ATTEMPTS + 1):
            with pytest.raises(OSError, match=os.strerror(number)):
                notification.run(work)
    assert rows(adapter, arrivals)[0].attempts == 0
    assert list((adapter.spool.root / "incoming").rglob("*.part")) == []
    assert notification.run(work) == {"registered": 1}


def test_a_file_that_is_listed_but_not_there_is_waited_for(
    adapter: Adapter, work: Work, settings: Any
) -> None:
    """It costs no attempt for `visibilitySeconds`, and then it is counted; others go on."""
    received_now = IncomingAssociation(adapter, add_ae_title(adapter)).store(make_instance())
    lost = received(adapter)
    for arrival in (received_now, lost):
        path = adapter.spool.incoming_path(arrival)
        path.unlink()
        path.symlink_to("nowhere")
    workers = work.adapter.settings.workers.model_copy(update={"visibility_seconds": 10.0})
    patient = make_work(
        Adapter(settings.model_copy(update={"workers": workers}), adapter.spool, adapter.ledger)
    )
    received(adapter)

    assert notification.run(patient) == {"registered": 1}
    states = {row.id: (row.attempts, row.reason) for row in rows(adapter, arrivals)}
    assert states[received_now] == (0, None)
    attempts, reason = states[lost]
    assert attempts >= 1  # a busy machine may have time for another
    assert reason == "not-visible"
    patient.headers.close()


class Broken(AETitleJobProcessor):
    """A job processor that fails."""

    def group_value(self, instance: Any) -> Any:
        """Fail on one modality."""
        if instance.values.get(0x00080060) == "MR":
            raise RuntimeError("CANARY")
        return super().group_value(instance)

    @property
    def tags(self) -> Any:
        """The modality, too."""
        return (*super().tags, 0x00080060)


def plug_in(monkeypatch: pytest.MonkeyPatch, title: str, plugin: type[Any]) -> None:
    """Have an AE title's job processor be another one."""
    create = registry.create_processor

    def create_other(ae_title: AETitle) -> Any:
        made = create(ae_title)
        if ae_title.name == title:
            made._plugin = plugin(ae_title, made.settings)  # type: ignore[attr-defined]
        return made

    for module in (notification, grouping):
        monkeypatch.setattr(module, "create_processor", create_other)


class Watching:
    """An observer that notes what it is told of."""

    seen: ClassVar[list[str]] = []

    def instance_stored(self, instance: Any) -> None:
        """Take note."""
        self.seen.append(instance.arrival)


def test_a_plugin_that_fails_on_a_file_hurts_that_file_only(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever `group_value` raises, that file is quarantined at once; its text is told nowhere.

    The row says what the file is, it belongs to its study, and observers are told of it.
    """
    plug_in(monkeypatch, "BRAIN", Broken)
    monkeypatch.setattr(Watching, "seen", [])
    monkeypatch.setattr(notification, "create_observers", lambda: [Watching()])
    mr = make_instance(Modality="MR")
    bad = received(adapter, ds=mr)
    good = received(adapter)

    assert notification.run(work) == {"registered": 1, "quarantined": 1}
    (row,) = rows(adapter, arrivals, arrivals.c.id == bad)
    assert (row.state, row.reason) == ("quarantined", "job-processor")
    assert row.message == "group_value of the job processor 'ae-title' raised RuntimeError"
    assert (row.calling_ae_title, row.called_ae_title) == ("MODALITY", "BRAIN")
    assert (row.sop_instance_uid, row.study_instance_uid, row.series_instance_uid) == (
        mr.SOPInstanceUID,
        mr.StudyInstanceUID,
        mr.SeriesInstanceUID,
    )
    assert defeats(work, "notification", "job-processor") == 1
    assert sorted(Watching.seen) == sorted([bad, good])
    assert verify(adapter, 0) == []


def test_a_plugin_that_is_not_installed_is_named(adapter: Adapter, work: Work) -> None:
    """Its files are quarantined under that reason and no other; `quarantine retry` is the way back.

    Observers are told of them all the same.
    """
    version = add_ae_title(adapter, "BRAIN")
    bad = received(adapter, "LOST")
    body = AETitle(ae_title="LOST", processor="gone").model_dump(mode="json", by_alias=True)
    change_rows(adapter, configuration, configuration.c.version != version, body=body)

    assert notification.run(work) == {"quarantined": 1}
    (row,) = rows(adapter, arrivals, arrivals.c.id == bad)
    assert row.reason == "job-processor"
    assert row.message == "processor: 'gone' is none of ae-title"
    assert row.study_instance_uid


# -- groups --------------------------------------------------------------------------------------


class Raises(AETitleJobProcessor):
    """A job processor whose `jobs` raises."""

    def jobs(self) -> Any:
        """Fail."""
        raise ZeroDivisionError("CANARY")


class Empty(AETitleJobProcessor):
    """A job processor whose `jobs` returns nothing."""

    def jobs(self) -> Any:
        """Return nothing."""
        return []


class Rubbish(AETitleJobProcessor):
    """A job processor whose `jobs` returns no jobs."""

    def jobs(self) -> Any:
        """Return rubbish."""
        return [None, "job"]


class Twice(AETitleJobProcessor):
    """A job processor whose `jobs` names a pipeline twice."""

    def jobs(self) -> Any:
        """Return the same twice."""
        return [*super().jobs(), *super().jobs()]


class Endless(AETitleJobProcessor):
    """A job processor whose quiet time is endless."""

    @property
    def timeout(self) -> float:
        """Return no useful time."""
        return float("inf")


@pytest.mark.parametrize("plugin", [Raises, Empty, Rubbish, Twice, Endless])
def test_a_job_processor_that_fails_is_refused_when_it_is_configured(
    monkeypatch: pytest.MonkeyPatch, plugin: type[Any]
) -> None:
    """It is asked then for all that the stages will ask it."""
    monkeypatch.setattr(plugins, "find", lambda *_: SimpleNamespace(load=lambda: plugin))
    ae_title = AETitle(ae_title="BRAIN", processor_settings={"pipeline-lung": "lung-1"})

    with pytest.raises(ConfigurationError, match="of the job processor 'ae-title' r"):
        registry.validate(ae_title)


def park_group(adapter: Adapter, work: Work) -> str:
    """Let grouping be defeated until it parks BRAIN's group, and return its id."""
    received(adapter)
    notification.run(work)
    for _ in range(MAXIMUM):
        take_all(work, grouping.take)
        end_rests(adapter, groups)
    (group,) = rows(adapter, groups, groups.c.called_ae_title == "BRAIN")
    assert group.state == "parked"
    return str(group.id)


@pytest.mark.parametrize("plugin", [Raises, Empty, Rubbish, Twice])
def test_a_group_whose_plugin_fails_is_parked(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch, plugin: type[Any]
) -> None:
    """It is parked at closing with the reason, an event and a metric; other groups close."""
    plug_in(monkeypatch, "BRAIN", plugin)
    received(adapter)
    received(adapter, "HEART")
    notification.run(work)

    assert take_all(work, grouping.take) == {"closed": 1, "jobs": 1, "parked": 1}

    (group,) = rows(adapter, groups, groups.c.called_ae_title == "BRAIN")
    assert (group.state, group.reason) == ("parked", "job-processor")
    assert "CANARY" not in group.message
    assert kinds(adapter).count("group-parked") == 1
    assert defeats(work, "grouping", "job-processor") == 1
    assert queries.attention(adapter.ledger).parked_groups.amount == 1
    assert "grouping" not in due_stages(adapter)
    assert verify(adapter, 0) == []


def test_a_group_that_defeats_its_worker_is_parked(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that nobody foresaw is tried again after a rest; after the bound it is parked."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CANARY")

    received(adapter)
    notification.run(work)
    monkeypatch.setattr(groups_verbs, "close", fail)

    for _ in range(MAXIMUM - 1):
        assert take_all(work, grouping.take) == {"failed": 1}
        assert take_all(work, grouping.take) == {}  # it rests
        end_rests(adapter, groups)
    assert take_all(work, grouping.take) == {"parked": 1}

    (group,) = rows(adapter, groups)
    assert (group.state, group.reason, group.message) == ("parked", "unforeseen", "RuntimeError")
    assert kinds(adapter).count("group-failed-try") == MAXIMUM - 1
    assert defeats(work, "grouping", "unforeseen") == MAXIMUM


def test_a_group_that_kills_its_worker_is_parked(adapter: Adapter, work: Work) -> None:
    """A group whose leases keep running out is not claimed for ever."""
    received(adapter)
    notification.run(work)
    for _ in range(MAXIMUM + 1):
        claimed = groups_verbs.claim_due(adapter.ledger, 30)
        assert claimed is not None
        change_rows(adapter, groups, lease_until=0)  # the worker died

    assert take_all(work, grouping.take) == {"parked": 1}
    assert rows(adapter, groups)[0].reason == attempts.KILLS
    assert defeats(work, "grouping", attempts.KILLS) == 1


def test_a_parked_group_is_retried(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    """It becomes its jobs, without what came meanwhile, which is the next generation."""
    study = make_instance()
    with monkeypatch.context() as patch:
        plug_in(patch, "BRAIN", Raises)
        received(adapter, ds=study)
        notification.run(work)
        for _ in range(MAXIMUM):
            take_all(work, grouping.take)
            end_rests(adapter, groups)
        study.SOPInstanceUID = generate_uid()
        received(adapter, ds=study)
        assert notification.run(work) == {"registered": 1}
    parked, opened = rows(adapter, groups, groups.c.state.in_(("parked", "open")))
    if parked.state == "open":
        parked, opened = opened, parked
    assert (parked.generation, opened.generation) == (1, 2)

    code, out, _ = cli("groups", "retry", parked.id)
    assert (code, "closing" in out) == (0, True)
    assert "grouping" in due_stages(adapter)
    assert take_all(work, grouping.take) == {"closed": 2, "jobs": 2}
    assert {row.instances for row in rows(adapter, groups)} == {1}
    assert {row.reason for row in rows(adapter, groups)} == {None}
    assert cli("groups", "retry", parked.id)[0] == 1
    assert verify(adapter, 0) == []


def test_a_retried_group_may_be_parked_again(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retry gives it all its attempts once more."""
    plug_in(monkeypatch, "BRAIN", Raises)
    group = park_group(adapter, work)
    groups_verbs.retry(adapter.ledger, group)
    for _ in range(MAXIMUM):
        take_all(work, grouping.take)
        end_rests(adapter, groups)

    assert rows(adapter, groups)[0].state == "parked"


def test_a_parked_group_is_given_up(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    """Its files are deleted, and the same instance may be sent again."""
    study = make_instance()
    with monkeypatch.context() as patch:
        plug_in(patch, "BRAIN", Raises)
        arrival = received(adapter, ds=study)
        notification.run(work)
        for _ in range(MAXIMUM):
            take_all(work, grouping.take)
            end_rests(adapter, groups)
    (group,) = rows(adapter, groups)

    assert group.id in cli("groups", "list", "--state", "parked", "--json")[1]
    assert group.id not in cli("groups", "list", "--state", "open", "--json")[1]
    assert cli("groups", "discard", group.id)[0] == 0
    counts = reclamation.run(work)
    assert counts["discarded"] + counts["groups"] >= 1
    reclamation.run(work)

    assert rows(adapter, groups)[0].state == "reclaimed"
    assert not adapter.spool.instance_path(arrival).exists()
    assert verify(adapter, 0) == []
    received(adapter, ds=study)
    assert notification.run(work) == {"registered": 1}
    assert cli("groups", "discard", group.id)[0] == 1


def test_health_names_a_parked_group(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for an operator, or cannot be deleted, is told as such."""
    plug_in(monkeypatch, "BRAIN", Raises)
    park_group(adapter, work)
    assert queries.count_states(adapter.ledger)["groups"]["parked"] == 1
    change_rows(adapter, groups, state="reclaiming")

    found = queries.attention(adapter.ledger)
    assert (found.parked_groups.amount, found.stuck_groups.amount) == (0, 1)
    assert found.stuck_groups.size > 0


# -- reclamation ---------------------------------------------------------------------------------


def finished(adapter: Adapter, work: Work, title: str = "BRAIN") -> str:
    """Take an instance all the way to a job that has succeeded, and return the arrival."""
    arrival = received(adapter, title)
    notification.run(work)
    let_time_pass(adapter, 6)
    take_all(work, grouping.take)
    change_rows(adapter, jobs, state="succeeded", updated_at=0)
    return arrival


def test_a_group_that_cannot_be_deleted_holds_up_no_other(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays `reclaiming` with the reason, is shown after the bound, and heals by itself."""
    stuck = finished(adapter, work)
    finished(adapter, work, "HEART")
    with monkeypatch.context() as patch:
        refuse(patch, "unlink", stuck)
        counts = reclamation.run(work)
        assert (counts["groups"], counts["failed"]) == (1, 1)
        for _ in range(MAXIMUM - 1):
            end_rests(adapter, groups)
            counts = reclamation.run(work)
        assert counts["stuck"] == 1
        (group,) = rows(adapter, groups, groups.c.called_ae_title == "BRAIN")
        assert (group.state, group.reason) == ("reclaiming", "file-system")
        assert group.message == "PermissionError (EPERM)"
        assert kinds(adapter).count("group-not-reclaimed") == 1
        assert defeats(work, "reclamation", "file-system") == MAXIMUM
        assert queries.attention(adapter.ledger).stuck_groups.amount == 1
        assert not any(group.id in (item.id, item.problem) for item in verify(adapter, 0))

    assert reclamation.run(work)["groups"] == 0  # it rests
    end_rests(adapter, groups)
    assert reclamation.run(work)["groups"] == 1
    assert not adapter.spool.instance_path(stuck).exists()
    assert queries.attention(adapter.ledger).stuck_groups.amount == 0


def test_a_folder_that_cannot_be_deleted_is_not_forgotten(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group is reclaimed only when its jobs' folders are gone, too."""
    finished(adapter, work)
    (job,) = rows(adapter, jobs)
    adapter.spool.result_folder(job.id).mkdir()
    (adapter.spool.result_folder(job.id) / "1.dcm").touch()
    with monkeypatch.context() as patch:
        patch.setattr("adapter.spool.spool.delete_tree", lambda _folder: None)
        patch.setattr("shutil.rmtree", refusing)
        assert reclamation.run(work)["failed"] == 1
    assert rows(adapter, groups)[0].reason == "file-system"
    end_rests(adapter, groups)
    assert reclamation.run(work)["groups"] == 1
    assert not adapter.spool.result_folder(job.id).exists()


def refusing(*_: object, **__: object) -> None:
    """Refuse, as the owner of a file may."""
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_a_discarded_file_that_cannot_be_deleted_holds_up_no_other(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It rests; the others are deleted; after the bound there is an event."""
    study = make_instance()
    received(adapter, ds=study)
    stuck, other = received(adapter, ds=study), received(adapter, ds=study)
    notification.run(work)
    with monkeypatch.context() as patch:
        refuse(patch, "unlink", stuck)
        assert reclamation.run(work)["discarded"] == 1
        assert not adapter.spool.instance_path(other).exists()
        assert reclamation.run(work)["discarded"] == 0
        assert "reclamation" not in due_stages(adapter)  # it rests: nobody is woken for it
        for _ in range(MAXIMUM - 1):
            end_rests(adapter, arrivals)
            counts = reclamation.run(work)
        assert counts["stuck"] == 1
        assert kinds(adapter).count("not-reclaimed") == 1
    end_rests(adapter, arrivals)
    assert reclamation.run(work)["discarded"] == 1


def test_reclamation_pauses_while_the_spool_fails(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that became read-only counts against no group."""
    stuck = finished(adapter, work)
    with monkeypatch.context() as patch:
        refuse(patch, "unlink", stuck, errno.EROFS)
        for _ in range(MAXIMUM + 1):
            with pytest.raises(OSError, match="Read-only"):
                reclamation.run(work)
    assert rows(adapter, groups)[0].lease_expiries == 0
    assert reclamation.run(work)["groups"] == 1


def test_a_group_that_kills_reclamation_waits_for_an_operator(adapter: Adapter, work: Work) -> None:
    """It is shown, not claimed again, and goes on when an operator retries it."""
    finished(adapter, work)
    change_rows(
        adapter,
        groups,
        state="reclaiming",
        lease_token="dead",
        lease_until=0,
        lease_expiries=MAXIMUM,
    )
    assert reclamation.run(work)["stuck"] == 1
    end_rests(adapter, groups)
    assert reclamation.run(work)["groups"] == 0
    assert "group-not-reclaimed" in kinds(adapter)

    (group,) = rows(adapter, groups)
    groups_verbs.retry(adapter.ledger, group.id)
    assert reclamation.run(work)["groups"] == 1


# -- jobs ----------------------------------------------------------------------------------------


def test_a_job_that_defeats_submission_is_parked(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It rests without a try; after the bound it is parked with the exception's type."""
    received(adapter)
    notification.run(work)
    take_all(work, grouping.take)
    platform = SimpleNamespace(create=lambda _job: "its run")

    def fail(*_: object) -> None:
        raise KeyError("CANARY")

    monkeypatch.setattr(submission, "describe", fail)

    for _ in range(MAXIMUM - 1):
        assert submit_due(work, platform) == {"failed": 1}
        assert submit_due(work, platform) == {}
        end_rests(adapter, jobs)
    assert submit_due(work, platform) == {"parked": 1}

    (job,) = rows(adapter, jobs)
    assert (job.state, job.outcome, job.message) == ("parked", "unforeseen", "KeyError")
    assert job.parked_in == "created"
    assert defeats(work, "submission", "unforeseen") == MAXIMUM
    assert kinds(adapter).count("job-parked") == 1


def test_a_spool_that_fails_costs_a_job_no_try(adapter: Adapter, work: Work) -> None:
    """A full disk is not the job's fault: it is given back as it was."""

    class Full(EmbeddedPlatform):
        def create(self, job: Any) -> str:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    received(adapter)
    notification.run(work)
    take_all(work, grouping.take)
    for _ in range(MAXIMUM + 1):
        with pytest.raises(OSError, match="space"):
            submit_due(work, Full(work.adapter, None))

    (job,) = rows(adapter, jobs)
    assert (job.state, job.tries, job.lease_expiries) == ("queued", 0, 0)
    assert job.lease_token is None


# -- the way back --------------------------------------------------------------------------------


class Killed(BaseException):
    """The worker was killed."""


def quarantined(adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch) -> str:
    """Quarantine a sound file, since its job processor failed; return the arrival."""
    with monkeypatch.context() as patch:
        plug_in(patch, "BRAIN", Broken)
        arrival = received(adapter, ds=make_instance(Modality="MR"))
        for _ in range(ARRIVAL_ATTEMPTS):
            notification.run(work)
            end_rests(adapter, arrivals)
    assert adapter.spool.quarantine_path(arrival).exists()
    return arrival


@pytest.mark.parametrize("by_reason", [False, True])
def test_a_quarantined_file_is_retried(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch, cli: Any, *, by_reason: bool
) -> None:
    """By its id or by the reason; done twice it is done once, and it becomes a job."""
    arrival = quarantined(adapter, work, monkeypatch)
    which = ["--reason", "job-processor"] if by_reason else [arrival]

    code, out, _ = cli("quarantine", "retry", *which, "--json")
    assert (code, arrival in out, '"retried"' in out) == (0, True, True)
    assert cli("quarantine", "retry", *which)[0] == 0
    assert due_stages(adapter) == ["reclamation"]
    assert verify(adapter, 0) == []
    assert reclamation.run(work)["retried"] == 1
    assert work.queues.woken[-1] == "notification"  # type: ignore[attr-defined]
    assert notification.run(work) == {"registered": 1}
    assert take_all(work, grouping.take) == {"closed": 1, "jobs": 1}

    assert kinds(adapter).count("quarantine-retried") == 1
    assert cli("quarantine", "retry", arrival)[0] == 0
    assert rows(adapter, arrivals)[0].state == "registered"
    assert verify(adapter, 0) == []


def test_only_what_is_known_is_retried(adapter: Adapter, cli: Any) -> None:
    """An unknown file is an error; so is naming neither files nor a reason."""
    add_ae_title(adapter)
    code, _, complaint = cli("quarantine", "retry", "unknown")
    assert (code, "not in quarantine" in complaint) == (1, True)
    assert cli("quarantine", "retry")[0] == 2
    assert cli("quarantine", "retry", "x", "--reason", "y")[0] == 2


@pytest.mark.parametrize("point", ["before the move", "after the move", "after the row"])
def test_a_retry_that_is_killed_is_finished(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch, cli: Any, point: str
) -> None:
    """Wherever the worker dies, the file is registered exactly once."""
    arrival = quarantined(adapter, work, monkeypatch)
    cli("quarantine", "retry", arrival)
    with monkeypatch.context() as patch:
        die_at(patch, point)
        with suppress(Killed):
            reclamation.run(work)
    assert adapter.spool.quarantine_path(arrival).exists() == (point == "before the move")
    change_rows(adapter, arrivals, arrivals.c.lease_token.is_not(None), lease_until=0)
    if point == "after the move":  # another worker may take it before the row says that it is moved
        assert notification.run(work) == {"registered": 1}
    reclamation.run(work)
    notification.run(work)

    (row,) = rows(adapter, arrivals)
    assert (row.state, row.reason) == ("registered", None)
    assert adapter.spool.instance_path(arrival).exists()
    assert list(adapter.spool.list_incoming()) == list(adapter.spool.list_quarantine()) == []


def die_at(monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """Have the worker die at a point of the file's way back."""
    from adapter.ledger import reclamation as verbs  # noqa: PLC0415
    from adapter.spool import Spool  # noqa: PLC0415

    where, name = (verbs, "moved_back") if point == "after the row" else (Spool, "settle_retried")
    operation = getattr(where, name)

    def die(*arguments: Any) -> None:
        if point != "before the move":
            operation(*arguments)
        raise Killed

    monkeypatch.setattr(where, name, die)


def test_a_retried_file_that_cannot_be_moved_is_quarantined_again(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    """It is counted like any other row; the operator sees the real reason."""
    arrival = quarantined(adapter, work, monkeypatch)
    cli("quarantine", "retry", arrival)
    with monkeypatch.context() as patch:
        refuse(patch, "rename", arrival)
        for _ in range(ARRIVAL_ATTEMPTS):
            counts = reclamation.run(work)
            end_rests(adapter, arrivals)
    assert counts["quarantined"] == 1
    (row,) = rows(adapter, arrivals)
    assert (row.state, row.reason) == ("quarantined", "file-system")

    cli("quarantine", "retry", arrival)
    reclamation.run(work)
    assert notification.run(work) == {"registered": 1}


def test_a_retried_late_instance_opens_the_next_generation(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    """Its group has closed meanwhile: it is not lost, and not added to the closed group."""
    study = generate_uid()
    with monkeypatch.context() as patch:
        plug_in(patch, "BRAIN", Broken)
        late = received(adapter, ds=make_instance(Modality="MR", StudyInstanceUID=study))
        received(adapter, ds=make_instance(StudyInstanceUID=study))
        for _ in range(ARRIVAL_ATTEMPTS):
            notification.run(work)
            end_rests(adapter, arrivals)
    assert take_all(work, grouping.take) == {"closed": 1, "jobs": 1}
    cli("quarantine", "retry", late)
    reclamation.run(work)
    notification.run(work)

    assert take_all(work, grouping.take) == {"closed": 1, "jobs": 1}
    with adapter.ledger.read() as connection:
        generations = connection.execute(
            select(groups.c.generation, groups.c.instances).order_by(groups.c.generation)
        ).all()
    assert [tuple(row) for row in generations] == [(1, 1), (2, 1)]


# -- exports -------------------------------------------------------------------------------------


def test_an_export_that_defeats_its_worker_is_parked(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It rests without a try, others go on, and after the bound it is parked with the reason."""
    support_exports.add_destination(adapter, 1)
    support_exports.add_task(adapter, 1)
    support_exports.add_task(adapter, 1)
    bad, good = rows(adapter, exports)

    def send(_work: Work, of: Any, *_: Any) -> None:
        if of.id == bad.id:
            raise KeyError("CANARY")
        raise PermanentError("for this test", "done")

    monkeypatch.setattr(export, "_send", send)
    assert take_all(work, export.take) == {"pending": 1, "parked": 1}
    for _ in range(MAXIMUM - 2):
        assert take_all(work, export.take) == {}
        end_rests(adapter, exports)
        assert take_all(work, export.take) == {"pending": 1}
    end_rests(adapter, exports)
    assert take_all(work, export.take) == {"parked": 1}

    reasons = {row.id: (row.state, row.reason, row.tries) for row in rows(adapter, exports)}
    assert reasons == {bad.id: ("parked", "unforeseen", 0), good.id: ("parked", "done", 0)}
    assert defeats(work, "export", "unforeseen") == MAXIMUM


def test_a_report_that_defeats_its_worker_is_kept_and_told(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer stays owed, waits longer each time, and the bound is an event."""

    class Broken:
        def report(self, _report: Any) -> None:
            raise KeyError("CANARY")

    add_row(
        adapter,
        tasks,
        id="t",
        agent="A",
        remote=True,
        report="due",
        report_success=True,
        report_retry_later=False,
        created_at=0,
    )
    monkeypatch.setattr(export, "results_service", lambda _settings: Broken())
    for failures in range(1, MAXIMUM + 1):
        assert take_all(work, export.take) == {"unreported": 1}
        (task,) = rows(adapter, tasks)
        assert (task.report, task.report_failures) == ("due", failures)
        assert take_all(work, export.take) == {}
        change_rows(adapter, tasks, report_due_at=0)

    assert kinds(adapter).count("task-not-reported") == 1
    assert defeats(work, "export", "unforeseen") == MAXIMUM


def test_a_job_that_defeats_its_run_is_parked(
    adapter: Adapter, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipeline stage goes by the same rule."""
    received(adapter)
    notification.run(work)
    take_all(work, grouping.take)
    change_rows(adapter, jobs, state="started")

    def fail(*_: object) -> None:
        raise KeyError("CANARY")

    monkeypatch.setattr(pipeline, "find_pipeline", fail)
    for _ in range(MAXIMUM - 1):
        assert take_all(work, pipeline.take) == {"failed": 1}
        assert take_all(work, pipeline.take) == {}
        end_rests(adapter, jobs)
    assert take_all(work, pipeline.take) == {"parked": 1}
    assert rows(adapter, jobs)[0].outcome == "unforeseen"
