# SPDX-License-Identifier: Apache-2.0
"""Verbs of the ledger that meet each other on PostgreSQL, each at its worst moment.

On SQLite a writing transaction waits for the one before it; on PostgreSQL each of these would read
what the other has not written yet.  A `Meeting` holds a statement back until all have come to it:
where they are kept apart, they cannot, and it ends by itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from sqlalchemy import event, update
from sqlalchemy.exc import OperationalError

from adapter.core import Adapter
from adapter.dicom.instance import Instance
from adapter.errors import ConfigurationError, LeaseLost, SpoolError
from adapter.ledger import (
    arrivals,
    cancellations,
    configuration,
    exports,
    groups,
    housekeeping,
    jobs,
    leases,
    remote_tasks,
    runs,
    schema,
)
from adapter.ledger.arrivals import Grouped
from adapter.ledger.engines import AWAY
from adapter.ledger.groups import QUIET
from adapter.ledger.remote_tasks import Delivery
from adapter.models import AETitle, ArrivalId, EntityKind, JobState
from adapter.settings import ScuExport
from adapter.stages import due_stages
from tests.support_ledger import (
    LONG_AGO,
    STUDY,
    add_ae_title,
    add_arrival,
    add_export,
    add_group,
    add_job,
    add_task,
)
from tests.support_postgresql import PostgreSQL, kill_backends
from tests.support_stages import IncomingAssociation, let_time_pass, make_instance, make_work, rows
from tests.support_waiting import eventually
from workers import grouping, notification
from workers.stage import Work, take_all

pytestmark = pytest.mark.every_ledger("postgresql")

#: Seconds that a meeting waits for those who may never come.
PATIENCE = 0.4


@contextmanager
def at_statement(adapter: Adapter, start: str, do: Callable[[], None]) -> Iterator[None]:
    """Do something in front of each statement that begins like this."""

    def look(_connection, _cursor, statement, *_) -> None:
        if statement.startswith(start):
            do()

    event.listen(adapter.ledger.engine, "before_cursor_execute", look)
    try:
        yield
    finally:
        event.remove(adapter.ledger.engine, "before_cursor_execute", look)


def meet(adapter: Adapter, statement: str, *verbs: Callable[[], Any]) -> list[Any]:
    """Run verbs at once so that they meet in front of a statement; return results, or errors."""
    barrier = threading.Barrier(len(verbs))

    def wait() -> None:
        with suppress(threading.BrokenBarrierError):
            barrier.wait(PATIENCE)

    with at_statement(adapter, statement, wait), ThreadPoolExecutor(len(verbs)) as pool:
        futures = [pool.submit(verb) for verb in verbs]
        return [future.exception() or future.result() for future in futures]


def received(adapter: Adapter, version: int, number: int, **header: Any) -> Callable[[], Any]:
    """Lease one arrival, and return the verb that registers it."""
    arrival = ArrivalId(LONG_AGO + number, f"{number:012x}", 1, version)
    lease, found = arrivals.lease_batch(adapter.ledger, [arrival], limit=1, seconds=30)
    assert lease is not None
    assert [row.id for row in found] == [str(arrival)]
    facts = {
        "calling_ae_title": "MODALITY",
        "called_ae_title": "BRAIN",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
        "sop_instance_uid": f"{STUDY}.{number}",
        "study_instance_uid": STUDY,
        "series_instance_uid": f"{STUDY}.0",
        "transfer_syntax_uid": "1.2.840.10008.1.2.1",
        "size": 1000,
        "digest": f"{number:064x}",
        "values": {},
    }
    decision = Grouped(
        Instance(arrival=str(arrival), **(facts | header)),
        key=STUDY,
        first_version=version,
        timeout=5,
        maximum_wait=3600,
        overwrite=True,
        rerun=False,
    )
    return lambda: arrivals.register(adapter.ledger, lease, [decision])[str(arrival)]


@pytest.fixture
def version(adapter: Adapter) -> int:
    """The version of a configured AE title."""
    return add_ae_title(adapter)


@pytest.fixture
def work(adapter: Adapter) -> Iterator[Work]:
    """What the stages work with."""
    made = make_work(adapter)
    yield made
    made.headers.close()


# -- registration ----------------------------------------------------------------------------------


@pytest.mark.parametrize("earlier", ["nothing", "a closed group"])
def test_two_registrations_open_one_group(adapter: Adapter, version: int, earlier: str) -> None:
    """Instances of one study that are registered at once are in one group, also a late one."""
    if earlier == "a closed group":
        add_group(adapter, version, state="closed")
    verbs = [received(adapter, version, number) for number in (1, 2, 3)]

    assert meet(adapter, "INSERT INTO groups", *verbs) == ["registered"] * 3

    (group,) = rows(adapter, schema.groups, schema.groups.c.state == "open")
    assert group.instances == 3
    assert group.generation == (2 if earlier == "a closed group" else 1)
    assert group.newest_at == pytest.approx(LONG_AGO + 3)


@pytest.mark.parametrize("point", ["INSERT INTO groups", "UPDATE groups", "UPDATE arrivals"])
def test_an_instance_sent_twice_is_registered_once(
    adapter: Adapter, version: int, point: str
) -> None:
    """The same bytes in two associations, registered at once, are one instance of the group."""
    add_group(adapter, version, instances=0)
    same = {"sop_instance_uid": f"{STUDY}.7", "digest": "7" * 64}
    verbs = [received(adapter, version, number, **same) for number in (1, 2)]

    assert sorted(meet(adapter, point, *verbs)) == ["discarded", "registered"]

    (group,) = rows(adapter, schema.groups)
    assert group.instances == 1


def test_an_instance_is_not_replaced_in_a_group_that_closes(adapter: Adapter, version: int) -> None:
    """While an instance is being replaced its group is not closed under it."""
    group = add_group(adapter, version, look_at=LONG_AGO)
    add_arrival(adapter, version, 0, group_id=group, sop_instance_uid=f"{STUDY}.7")
    newer = received(adapter, version, round(time.time() - LONG_AGO), sop_instance_uid=f"{STUDY}.7")
    lease, claimed = groups.claim_due(adapter.ledger, 30)
    assert claimed.id == group
    closing = ThreadPoolExecutor(1)
    ended: list[Any] = []

    def close() -> None:
        request = [("lung", "lung-1", 128, 5.0)]
        future = closing.submit(groups.close, adapter.ledger, lease, group, request, reason=QUIET)
        ended.append(future)
        with suppress(TimeoutError):
            future.result(PATIENCE)

    with closing, at_statement(adapter, "UPDATE arrivals SET state", close):
        assert newer() == "registered"

    assert ended[0].result().state == "open"
    (row,) = rows(adapter, schema.groups)
    assert (row.state, row.instances) == ("open", 1)


def test_a_batch_is_leased_once_and_no_larger_than_asked_for(
    adapter: Adapter, version: int
) -> None:
    """Workers that look at the same files share them."""
    waiting = [ArrivalId(LONG_AGO + n, f"{n:012x}", 1, version) for n in range(40)]

    def lease() -> list[str]:
        _, found = arrivals.lease_batch(adapter.ledger, waiting, limit=7, seconds=30)
        return [row.id for row in found]

    batches = meet(adapter, "WITH chosen", *[lease] * 5)

    assert [len(batch) for batch in batches] == [7] * 5
    assert len({arrival for batch in batches for arrival in batch}) == 35


# -- groups and jobs -------------------------------------------------------------------------------


def test_two_groupings_close_a_group_once(adapter: Adapter, version: int) -> None:
    """Of groupings that look at once, one gets the group."""
    add_group(adapter, version)

    found = meet(adapter, "WITH chosen", *[lambda: groups.claim_due(adapter.ledger, 30)] * 4)

    assert len([claim for claim in found if claim]) == 1


def test_the_last_two_jobs_of_a_group_make_it_submitted(adapter: Adapter, version: int) -> None:
    """Two jobs that are handed over at once do not each take the other for unfinished."""
    group = add_group(adapter, version, state="closed")
    for pipeline in ("lung", "liver"):
        add_job(adapter, group, pipeline=pipeline, state="uploaded")
    claims = [runs.claim_step(adapter.ledger, 30) for _ in range(2)]

    def start(claim: Any) -> Callable[[], Any]:
        return lambda: jobs.advance(adapter.ledger, *claim, JobState.STARTED).state

    assert meet(adapter, "UPDATE groups", *map(start, claims)) == ["started"] * 2

    assert [row.state for row in rows(adapter, schema.groups)] == ["submitted"]


@pytest.mark.parametrize("ends", ["fails", "succeeds"])
def test_a_job_discarded_while_its_run_ends_leaves_no_run_uncancelled(
    adapter: Adapter, version: int, ends: str
) -> None:
    """Whoever is first, one of the two is refused or the other's run is cancelled, too."""
    group = add_group(adapter, version, state="submitted")
    job = add_job(adapter, group, state="handed-over", platform="elsewhere")
    claimed = runs.claim_step(adapter.ledger, 30)
    assert claimed is not None

    def end() -> Any:
        if ends == "succeeds":
            return jobs.succeed(adapter.ledger, *claimed, [], destinations=[], agent="SCU")
        failure = jobs.Failure("lost", "it is gone")
        return runs.fail(adapter.ledger, *claimed, failure, retries=2, delay=0.0, may_pass=True)

    meet(adapter, "UPDATE jobs", end, lambda: jobs.discard(adapter.ledger, job))

    (found,) = rows(adapter, schema.jobs)
    assert found.state == "discarded" or ends == "succeeds"
    owed = {row.run for row in rows(adapter, schema.cancellations)}
    assert owed == set(range(1, found.run + 1))
    assert (found.lease_token, found.lease_until) == (None, None)


def test_a_cancellation_owed_anew_outlives_the_one_that_is_just_done(
    adapter: Adapter, version: int
) -> None:
    """A worker that lost its job in mid-step owes it again; who was at it has lost its lease."""
    group = add_group(adapter, version, state="submitted")
    job = add_job(adapter, group, state="handed-over", platform="elsewhere")
    jobs.discard(adapter.ledger, job)
    claimed = cancellations.claim(adapter.ledger, 30)
    assert claimed is not None

    runs.cancel_if_discarded(adapter.ledger, job)

    with pytest.raises(LeaseLost):
        cancellations.done(adapter.ledger, claimed)
    again = cancellations.claim(adapter.ledger, 30)
    assert again is not None
    cancellations.done(adapter.ledger, again)
    assert rows(adapter, schema.cancellations) == []


# -- exports ---------------------------------------------------------------------------------------


def several_exports(adapter: Adapter, version: int, amount: int, **values: Any) -> list[str]:
    group = add_group(adapter, version, state="submitted")
    made = []
    for number in range(amount):
        job = add_job(adapter, group, pipeline=f"p{number}", state="succeeded")
        made.append(add_export(adapter, add_task(adapter, job, 1), **values))
    return made


def test_workers_together_send_a_destination_no_more_than_its_share(
    adapter: Adapter, version: int
) -> None:
    """Half of the slots, over all workers, also when they claim in the same moment."""
    several_exports(adapter, version, 4)
    scu = adapter.settings.dicom.scu.model_copy(update={"maximum_number_of_associations": 4})

    def claim() -> Any:
        return exports.claim(adapter.ledger, scu, adapter.settings.workers)

    found = meet(adapter, "WITH chosen", *[claim] * 4)

    assert len([export for export in found if export is not None]) == 2


def test_a_destination_found_away_twice_at_once_is_on_hold_once(
    adapter: Adapter, version: int
) -> None:
    """Two exports that cannot reach their destination make one hold, of the first length."""
    several_exports(adapter, version, 2)
    scu = adapter.settings.dicom.scu
    claimed = [exports.claim(adapter.ledger, scu, adapter.settings.workers) for _ in range(2)]

    def away(export: Any) -> Callable[[], Any]:
        return lambda: exports.unreachable(adapter.ledger, export, "no route", scu.export)

    assert meet(adapter, "INSERT INTO holds", *map(away, claimed)) == ["pending"] * 2

    (hold,) = rows(adapter, schema.holds)
    assert hold.failures == 1


def test_destinations_of_a_task_that_end_at_once_report_it(adapter: Adapter) -> None:
    """The last two exports of a remote task do not each wait for the other's."""
    delivery = Delivery("t1", destinations=("A", "B"), files=(("a.dcm", None),))
    deliver(adapter, delivery)
    scu = adapter.settings.dicom.scu
    claimed = [exports.claim(adapter.ledger, scu, adapter.settings.workers) for _ in range(2)]

    def conclude(export: Any) -> Callable[[], Any]:
        return lambda: exports.conclude(adapter.ledger, export, scu.export)

    meet(adapter, "SELECT exports.id, exports.task_id", *map(conclude, claimed))

    (task,) = rows(adapter, schema.tasks)
    assert task.report == "due"


def deliver(adapter: Adapter, delivery: Delivery) -> int:
    service = adapter.settings.services.results_service
    return remote_tasks.deliver(
        adapter.ledger, [delivery], agent="ClaraSCU", service=service, policy=ScuExport()
    )


def test_a_task_that_two_workers_are_told_of_is_taken_in_once(adapter: Adapter) -> None:
    """Every worker of the export stage polls; a task is new to one of them only."""
    delivery = Delivery("t1", destinations=("PACS",), files=(("a.dcm", None),))

    found = meet(adapter, "INSERT INTO tasks", *[lambda: deliver(adapter, delivery)] * 3)

    assert sorted(found) == [0, 0, 1]
    assert len(rows(adapter, schema.exports)) == 1


# -- configuration, identity, sweeps ---------------------------------------------------------------


@pytest.mark.parametrize("names", [("one", "one"), ("one", "two")])
def test_an_ae_title_is_added_once(adapter: Adapter, names: Sequence[str]) -> None:
    """Of two that add the same entry, or the same AE title under two names, one is refused."""

    def put(name: str) -> Callable[[], Any]:
        entity = AETitle(
            name=name, ae_title="BRAIN", processor_settings={"pipeline-lung": "lung-1"}
        )
        return lambda: configuration.put(adapter.ledger, EntityKind.AE_TITLE, entity, replace=False)

    found = meet(adapter, "INSERT INTO configuration", *map(put, names))

    assert {type(answer) for answer in found} == {int, ConfigurationError}
    assert len(configuration.current(adapter.ledger, EntityKind.AE_TITLE)) == 1


def test_two_changes_of_an_entry_become_two_versions(adapter: Adapter, version: int) -> None:
    """Nothing is lost of two changes at once, and the later version is the one in force."""

    def put(timeout: str) -> Callable[[], Any]:
        settings = {"pipeline-lung": "lung-1", "timeout": timeout}
        entity = AETitle(ae_title="BRAIN", processor_settings=settings)
        return lambda: configuration.put(adapter.ledger, EntityKind.AE_TITLE, entity, replace=True)

    found = meet(adapter, "UPDATE configuration", put("7"), put("8"))

    assert len(set(found)) == 2
    (current,) = configuration.current(adapter.ledger, EntityKind.AE_TITLE)
    assert current.version == max(found)


def test_a_ledger_is_tied_to_one_of_two_spools(adapter: Adapter) -> None:
    """Two spools that want an empty ledger at once do not both get it."""
    with adapter.ledger.write() as connection:
        connection.execute(schema.meta.delete())

    def adopt(spool: str) -> Callable[[], Any]:
        return lambda: adapter.ledger.adopt_spool(spool)

    found = meet(adapter, "INSERT INTO meta", adopt("a"), adopt("b"))

    assert {type(answer) for answer in found} == {type(None), SpoolError}


def test_a_sweep_is_taken_once(adapter: Adapter) -> None:
    """Housekeeping that is due for all workers at once is done by one."""
    found = meet(
        adapter,
        "UPDATE meta",
        *[lambda: housekeeping.claim_housekeeping(adapter.ledger, 3600)] * 4,
    )

    assert sorted(found) == [False, False, False, True]


def test_a_lease_is_renewed_while_its_rows_are_written(adapter: Adapter, version: int) -> None:
    """A renewal and its holder's transaction lock rows in one order: neither ends the other."""
    waiting = [ArrivalId(LONG_AGO + n, f"{n:012x}", 1, version) for n in range(20)]
    lease, found = arrivals.lease_batch(adapter.ledger, waiting, limit=20, seconds=30)
    assert lease is not None
    table = schema.arrivals
    with adapter.ledger.write() as connection:  # so that the table's order is not the ids'
        for row in reversed(found):
            where = table.c.id == row.id
            connection.execute(update(table).where(where).values(attempts=1))
    renewing = ThreadPoolExecutor(1)

    def renew() -> int:
        with adapter.ledger.write() as connection:
            return leases.renew(connection, lease)

    with renewing, adapter.ledger.write() as connection:
        for number, row in enumerate(found):
            where = (table.c.id == row.id, table.c.lease_token == lease.token)
            connection.execute(update(table).where(*where).values(reason="written"))
            if number == 0:
                renewed = renewing.submit(renew)
                with suppress(TimeoutError):
                    renewed.result(PATIENCE)

    assert renewed.result() == 20


# -- a server that ends sessions -------------------------------------------------------------------


@pytest.mark.parametrize("point", ["UPDATE arrivals SET state", "INSERT INTO events"])
def test_a_registration_cut_off_costs_no_attempt(
    adapter: Adapter, version: int, work: Work, point: str
) -> None:
    """A file whose registration the database cut off is no file that kills its reader."""
    IncomingAssociation(adapter, version).store(make_instance())
    cuts: list[int] = []

    def cut_off() -> None:
        if not cuts:
            cuts.append(kill_backends(adapter.ledger.url))

    with at_statement(adapter, point, cut_off), pytest.raises(AWAY):
        notification.run(work)

    (arrival,) = rows(adapter, schema.arrivals)
    assert (arrival.state, arrival.attempts, arrival.lease_token) == ("received", 0, None)
    assert notification.run(work) == {"registered": 1}


def test_a_commit_whose_answer_is_lost_is_not_done_twice(
    adapter: Adapter, version: int, work: Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step may have been committed although its worker was told that the ledger is away."""
    IncomingAssociation(adapter, version).store(make_instance())

    def run_with_lost_answer(stage: Callable[[Work], object], module: Any, verb: str) -> None:
        done = getattr(module, verb)

        def lose_answer(*arguments: Any, **options: Any) -> None:
            done(*arguments, **options)
            raise OperationalError("COMMIT", None, Exception("the connection is gone"))

        with monkeypatch.context() as patched:
            patched.setattr(module, verb, lose_answer)
            with pytest.raises(AWAY):
                stage(work)

    run_with_lost_answer(notification.run, arrivals, "register")
    assert len(list(adapter.spool.list_incoming())) == 1
    assert notification.run(work) == {}
    let_time_pass(adapter, 10)
    run_with_lost_answer(group_all, groups, "close")
    assert take_all(work, grouping.take) == {}

    assert list(adapter.spool.list_incoming()) == []
    assert [row.state for row in rows(adapter, schema.arrivals)] == ["registered"]
    assert [row.instances for row in rows(adapter, schema.groups)] == [1]
    assert len(rows(adapter, schema.jobs)) == 1
    assert "submission" in due_stages(adapter)


def test_a_server_that_is_restarted_is_found_again(
    adapter: Adapter, version: int, work: Work, postgresql: PostgreSQL
) -> None:
    """While the server is away a stage gives up at once, and goes on when it is back."""
    association = IncomingAssociation(adapter, version)
    association.store(make_instance())
    assert notification.run(work) == {"registered": 1}
    association.store(make_instance())

    postgresql.stop()
    try:
        begun = time.monotonic()
        with pytest.raises(AWAY):
            notification.run(work)
        with pytest.raises(AWAY):
            due_stages(adapter)
        assert time.monotonic() - begun < 5
    finally:
        postgresql.start()

    eventually(lambda: "notification" in due_stages(adapter))
    assert notification.run(work) == {"registered": 1}


def test_sessions_that_are_ended_at_any_moment_lose_and_double_nothing(
    adapter: Adapter, version: int, work: Work
) -> None:
    """While the server ends sessions over and over, every instance gets into one job."""
    studies = [make_instance().StudyInstanceUID for _ in range(4)]
    association = IncomingAssociation(adapter, version)
    for number in range(40):
        association.store(make_instance(StudyInstanceUID=studies[number % 4]))

    with cut_off_again_and_again(adapter) as cuts:
        twice_until(lambda: not list(adapter.spool.list_incoming()), notification.run, work)
    let_time_pass(adapter, 10)
    with cut_off_again_and_again(adapter):
        twice_until(lambda: len(rows(adapter, schema.jobs)) == 4, group_all, work)

    assert len(cuts) > 3
    found = rows(adapter, schema.groups)
    assert [(row.state, row.instances) for row in found] == [("closed", 10)] * 4
    states = [row.state for row in rows(adapter, schema.arrivals)]
    assert states == ["registered"] * 40


@contextmanager
def cut_off_again_and_again(adapter: Adapter) -> Iterator[list[int]]:
    """End all sessions of the ledger up to thirty times; give how many there were each time."""
    done = threading.Event()
    cuts: list[int] = []

    def cut_off() -> None:
        while len(cuts) < 30 and not done.wait(0.05):
            cuts.append(kill_backends(adapter.ledger.url))

    with ThreadPoolExecutor(1) as pool:
        pool.submit(cut_off)
        try:
            yield cuts
        finally:
            done.set()


def group_all(work: Work) -> object:
    """Take every group that is due."""
    return take_all(work, grouping.take)


def twice_until(check: Callable[[], bool], stage: Callable[[Work], object], work: Work) -> None:
    """Run a stage in two threads over and over, as its wake-ups do, until a check holds."""

    def run() -> None:
        with suppress(*AWAY):  # as the base of all tasks does
            stage(work)

    while True:
        with ThreadPoolExecutor(2) as pool:
            for future in [pool.submit(run) for _ in range(2)]:
                future.result()
        with suppress(*AWAY):
            if check():
                return
