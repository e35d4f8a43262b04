# SPDX-License-Identifier: Apache-2.0
"""Reclamation: which files nothing needs any more, and the rows that outlived their use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement, Double, Table, and_, cast, exists, or_, select

from adapter.ledger.leases import free
from adapter.ledger.schema import arrivals, exports, groups, jobs, meta, now, tasks
from adapter.models import ArrivalState, ExportState, GroupState, JobState, ReportState

if TYPE_CHECKING:
    from adapter.settings import Storage, Workers

#: The fact in `meta` that says when the last sweep was.
HOUSEKEPT = "housekept"


def unwanted_due() -> ColumnElement[bool]:
    """Return the condition that an arrival's file is not wanted and still there."""
    return and_(arrivals.c.state == ArrivalState.UNWANTED, arrivals.c.deleted_at.is_(None))


def group_due(retention_seconds: float, lease_seconds: float) -> ColumnElement[bool]:
    """Return the condition that nothing needs a group's files and their retention has passed.

    Every job has ended well or was discarded, no export of theirs is open, and nobody holds a lease
    on any of it.  A group without jobs never qualifies.
    """
    job = jobs.c.group_id == groups.c.id
    ended = (JobState.SUCCEEDED, JobState.DISCARDED)
    done = (ExportState.SUCCEEDED, ExportState.DISCARDED)
    open_job = exists().where(
        job,
        or_(
            jobs.c.state.not_in(ended),
            jobs.c.lease_token.is_not(None),
            jobs.c.updated_at > now() - retention_seconds,
        ),
    )
    open_task = exists(
        select(1)
        .select_from(tasks.join(jobs, tasks.c.job_id == jobs.c.id).outerjoin(exports, exports.c.task_id == tasks.c.id))
        .where(
            job,
            or_(
                tasks.c.report.in_((ReportState.OPEN, ReportState.DUE)),
                exports.c.state.not_in(done),
                exports.c.lease_token.is_not(None),
                exports.c.updated_at > now() - retention_seconds,
            ),
        )
    )
    ready = and_(
        groups.c.state.in_((GroupState.CLOSED, GroupState.SUBMITTED)),
        exists().where(job),
        ~open_job,
        ~open_task,
    )
    return and_(or_(ready, groups.c.state == GroupState.RECLAIMING), free(groups, lease_seconds))


def housekeeping_due(every_seconds: float) -> ColumnElement[bool]:
    """Return the condition, on `meta`, that the last sweep is long enough ago (or never was)."""
    return and_(
        meta.c.name == HOUSEKEPT, cast(meta.c.value, Double) < now() - every_seconds
    )


def due_questions(
    storage: Storage, workers: Workers
) -> list[tuple[Table, ColumnElement[bool]]]:
    """Return what makes reclamation due: tables, and a condition on each."""
    return [
        (arrivals, unwanted_due()),
        (groups, group_due(storage.retention_seconds, workers.lease_seconds)),
        (meta, housekeeping_due(workers.housekeeping_seconds)),
    ]
