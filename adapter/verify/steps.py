# SPDX-License-Identifier: Apache-2.0
"""Groups, jobs, tasks, exports and leases: every unfinished row has a next step.

A due time is always a next step (`adapter.ledger.leases.due`).  So this module looks for rows that
no stage would ever claim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, exists, func, or_, select

from adapter.core import Adapter
from adapter.errors import ConfigurationError, ProcessorError
from adapter.ledger.configuration import ae_title_version
from adapter.ledger.schema import (
    arrivals,
    exports,
    groups,
    holds,
    jobs,
    now,
    receipts,
    task_files,
    tasks,
)
from adapter.models import (
    EMBEDDED,
    ArrivalState,
    ExportState,
    GroupState,
    JobState,
    Outcome,
    ReportState,
    job_id,
)
from adapter.processors.registry import create_processor
from adapter.verify.difference import Difference

#: Lease lengths after which another worker should have taken over an expired lease.
_FEW = 3

#: Groups whose files are being deleted or are gone.
GOING = (GroupState.RECLAIMING, GroupState.RECLAIMED)

_DEFECT = "report this as a defect"

_UNFINISHED_JOB = (
    JobState.QUEUED,
    JobState.CREATED,
    JobState.DESCRIBED,
    JobState.UPLOADED,
    JobState.STARTED,
    JobState.HANDED_OVER,
    JobState.PARKED,
)
_UNFINISHED_EXPORT = (ExportState.PENDING, ExportState.SENDING)


def compare(adapter: Adapter) -> Iterator[Difference]:
    """Yield the unfinished rows that have no next step."""
    with adapter.ledger.read() as connection:
        yield from _groups(connection)
        yield from _jobs(connection)
        yield from _exports(connection)
        yield from _leases(connection, adapter.settings.workers.lease_seconds)


def expected_jobs(connection: Connection, found: Sequence[Any]) -> dict[str, set[str]]:
    """Return the ids of the jobs that each group gets, for processors that are installed here."""
    pipelines = {version: _pipelines(connection, version) for version in {g.version for g in found}}
    return {
        group.id: {job_id(group.id, pipeline) for pipeline in pipelines[group.version]}
        for group in found
    }


def _pipelines(connection: Connection, version: int) -> list[str]:
    ae_title = ae_title_version(connection, version)
    if ae_title is None:
        return []
    try:
        return [request.pipeline for request in create_processor(ae_title).jobs()]
    except (ConfigurationError, ProcessorError):  # it is not installed here, or fails
        return []


def _groups(connection: Connection) -> Iterator[Difference]:
    member = exists().where(
        arrivals.c.group_id == groups.c.id, arrivals.c.state == ArrivalState.REGISTERED
    )
    for row in connection.execute(select(groups.c.id).where(groups.c.state.not_in(GOING), ~member)):
        yield Difference("group", row.id, "no instance belongs to it", _DEFECT)
    closed = groups.c.state.in_((GroupState.CLOSED, GroupState.SUBMITTED))
    expected = expected_jobs(connection, connection.execute(select(groups).where(closed)).all())
    there: dict[str, set[str]] = {group: set() for group in expected}
    of_group = jobs.join(groups, jobs.c.group_id == groups.c.id)
    for job in connection.execute(
        select(jobs.c.id, jobs.c.group_id).select_from(of_group).where(closed)
    ):
        there[job.group_id].add(job.id)
    for group, wanted in expected.items():
        for missing in sorted(wanted - there[group]):
            yield Difference("group", group, f"it is closed without its job {missing}", _DEFECT)
        if not there[group] and not wanted:
            yield Difference("group", group, "it is closed without any job", _DEFECT)


def _jobs(connection: Connection) -> Iterator[Difference]:
    gone = and_(jobs.c.state.in_(_UNFINISHED_JOB), groups.c.state.in_(GOING))
    of_group = jobs.join(groups, jobs.c.group_id == groups.c.id)
    for row in connection.execute(select(jobs.c.id).select_from(of_group).where(gone)):
        yield Difference("job", row.id, "it has not ended but its group is reclaimed", _DEFECT)
    task = exists().where(tasks.c.job_id == jobs.c.id)
    for row in connection.execute(
        select(jobs.c.id).where(jobs.c.state == JobState.SUCCEEDED, ~task)
    ):
        yield Difference("job", row.id, "it has succeeded but its results have no task", _DEFECT)
    ours = and_(jobs.c.state == JobState.HANDED_OVER, jobs.c.platform == EMBEDDED)
    theirs = and_(jobs.c.state == JobState.STARTED, jobs.c.platform != EMBEDDED)
    for row in connection.execute(select(jobs.c.id, jobs.c.platform).where(or_(ours, theirs))):
        words = f"no stage looks after a job of platform {row.platform!r} in this state"
        yield Difference("job", row.id, words, _DEFECT)
    nowhere = and_(jobs.c.state == JobState.PARKED, jobs.c.parked_in.is_(None))
    for row in connection.execute(select(jobs.c.id).where(nowhere)):
        yield Difference(
            "job", row.id, "it is parked but not known where", f"`jobs discard {row.id}`"
        )


def _exports(connection: Connection) -> Iterator[Difference]:
    stored = (
        select(func.count())
        .where(receipts.c.export_id == exports.c.id, receipts.c.outcome == Outcome.STORED)
        .scalar_subquery()
    )
    files = select(func.count()).where(task_files.c.task_id == exports.c.task_id).scalar_subquery()
    for row in connection.execute(
        select(exports.c.id).where(exports.c.state == ExportState.SUCCEEDED, stored < files)
    ):
        yield Difference(
            "export", row.id, "it has succeeded but not every file is confirmed", _DEFECT
        )
    under_way = exists().where(
        exports.c.task_id == tasks.c.id, exports.c.state.in_(_UNFINISHED_EXPORT)
    )
    undecided = and_(tasks.c.remote, tasks.c.report == ReportState.OPEN, ~under_way)
    for row in connection.execute(select(tasks.c.id).where(undecided)):
        yield Difference(
            "task", row.id, "nothing of it is under way and its answer is not decided", _DEFECT
        )


def _leases(connection: Connection, seconds: float) -> Iterator[Difference]:
    """Yield expired leases that no worker takes over, and leases of finished rows.

    While another row of the same kind is leased, its stage is at work, and this row waits its turn.
    """
    unfinished: dict[str, tuple[Table, ColumnElement[bool], ColumnElement[bool]]] = {
        "arrival": (
            arrivals,
            arrivals.c.state == ArrivalState.RECEIVED,
            arrivals.c.state != ArrivalState.RECEIVED,
        ),
        "group": (
            groups,
            groups.c.state != GroupState.RECLAIMED,
            groups.c.state == GroupState.RECLAIMED,
        ),
        "job": (jobs, jobs.c.state.in_(_UNFINISHED_JOB), jobs.c.state.not_in(_UNFINISHED_JOB)),
        "export": (
            exports,
            and_(
                exports.c.state.in_(_UNFINISHED_EXPORT),
                ~exists().where(
                    func.lower(holds.c.destination) == func.lower(exports.c.destination)
                ),
            ),
            exports.c.state.not_in(_UNFINISHED_EXPORT),
        ),
    }
    for kind, (table, waiting, ended) in unfinished.items():
        held, until = table.c.lease_token.is_not(None), table.c.lease_until
        at_work = connection.execute(select(exists().where(held, until > now()))).scalar_one()
        overdue = and_(waiting, held, until < now() - _FEW * seconds)
        if not at_work:
            for row in connection.execute(select(table.c.id).where(overdue)):
                yield Difference(
                    kind,
                    row.id,
                    "its worker is gone and no other has taken it over",
                    "see that a worker for its stage is running",
                )
        for row in connection.execute(
            select(table.c.id).where(ended, table.c.lease_token.is_not(None))
        ):
            yield Difference(kind, row.id, "it is finished but still leased", _DEFECT)
