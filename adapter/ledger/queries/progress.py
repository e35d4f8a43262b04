# SPDX-License-Identifier: Apache-2.0
"""Unfinished work by stage, its age, and work that waits for an operator."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select, union_all

from adapter.ledger.database import Ledger
from adapter.ledger.queries.exports import hold_facts
from adapter.ledger.queries.facts import Attention, Kept, Unfinished
from adapter.ledger.reclamation import discarded_due, group_due, retried_due
from adapter.ledger.schema import arrivals, exports, groups, holds, jobs, now, task_files, tasks
from adapter.models import (
    SUBMISSION_STATES,
    ArrivalState,
    ExportState,
    GroupState,
    JobState,
    ReportState,
)
from adapter.settings import Settings


def unfinished(ledger: Ledger, settings: Settings) -> dict[str, Unfinished]:
    """Return the unfinished work in the ledger, by stage.

    ``grouping`` counts groups to close, ``submission`` jobs to hand over, ``pipeline`` jobs that
    run here or at another platform, ``export`` unfinished exports and reports due to a Results
    Service, ``reclamation`` files and groups that may be deleted.  Files in incoming/ are not
    included: the spool lists them.
    """
    retention, lease = settings.retention_seconds, settings.workers.lease_seconds
    questions: dict[str, Select[Any]] = {
        "grouping": select(groups.c.opened_at.label("since")).where(
            groups.c.state.in_((GroupState.OPEN, GroupState.CLOSING))
        ),
        "submission": select(jobs.c.created_at.label("since")).where(
            jobs.c.state.in_(SUBMISSION_STATES)
        ),
        "pipeline": select(jobs.c.created_at.label("since")).where(
            jobs.c.state.in_((JobState.STARTED, JobState.HANDED_OVER))
        ),
        "export": _both(
            select(exports.c.created_at.label("since")).where(
                exports.c.state.in_((ExportState.PENDING, ExportState.SENDING))
            ),
            select(tasks.c.created_at.label("since")).where(tasks.c.report == ReportState.DUE),
        ),
        "reclamation": _both(
            select(arrivals.c.registered_at.label("since")).where(
                or_(retried_due(lease), discarded_due(settings.lag_seconds, lease))
            ),
            select((groups.c.closed_at + retention).label("since")).where(
                group_due(retention, lease)
            ),
        ),
    }
    with ledger.read() as connection:
        return {stage: _ask(connection, question) for stage, question in questions.items()}


def attention(ledger: Ledger) -> Attention:
    """Return the work that waits for an operator, and the destination holds."""
    with ledger.read() as connection:
        return Attention(
            parked_groups=_groups(connection, groups.c.state == GroupState.PARKED),
            stuck_groups=_groups(
                connection,
                and_(groups.c.state == GroupState.RECLAIMING, groups.c.reason.is_not(None)),
            ),
            parked_jobs=_parked_jobs(connection),
            parked_exports=_exports(connection, ExportState.PARKED),
            partial_exports=_exports(connection, ExportState.PARTIAL),
            quarantined=_kept(
                connection,
                select(func.count(), func.sum(arrivals.c.size)).where(
                    arrivals.c.state == ArrivalState.QUARANTINED, arrivals.c.deleted_at.is_(None)
                ),
            ),
            holds=[
                hold_facts(row)
                for row in connection.execute(
                    select(holds).where(holds.c.until > now()).order_by(holds.c.destination)
                )
            ],
        )


def _both(one: Select[Any], other: Select[Any]) -> Select[Any]:
    return select(union_all(one, other).subquery())


def _ask(connection: Connection, question: Select[Any]) -> Unfinished:
    since = question.subquery()
    amount, age = connection.execute(select(func.count(), now() - func.min(since.c.since))).one()
    return Unfinished(amount=amount, oldest_seconds=None if age is None else max(0.0, age))


def _groups(connection: Connection, which: ColumnElement[bool]) -> Kept:
    size = (
        select(func.sum(arrivals.c.size))
        .where(
            arrivals.c.group_id.in_(select(groups.c.id).where(which)),
            arrivals.c.deleted_at.is_(None),
        )
        .scalar_subquery()
    )
    return _kept(connection, select(func.count(), size).select_from(groups).where(which))


def _parked_jobs(connection: Connection) -> Kept:
    parked = jobs.c.state == JobState.PARKED
    size = (
        select(func.sum(arrivals.c.size))
        .where(
            arrivals.c.group_id.in_(select(jobs.c.group_id).where(parked)),
            arrivals.c.deleted_at.is_(None),
        )
        .scalar_subquery()
    )
    return _kept(connection, select(func.count(), size).select_from(jobs).where(parked))


def _exports(connection: Connection, state: ExportState) -> Kept:
    mine = exports.c.state == state
    size = (
        select(func.sum(task_files.c.size))
        .where(task_files.c.task_id.in_(select(exports.c.task_id).where(mine)))
        .scalar_subquery()
    )
    return _kept(connection, select(func.count(), size).select_from(exports).where(mine))


def _kept(connection: Connection, question: Select[Any, Any]) -> Kept:
    amount, size = connection.execute(question).one()
    return Kept(amount=amount, size=int(size or 0))
