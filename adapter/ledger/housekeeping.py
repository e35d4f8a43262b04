# SPDX-License-Identifier: Apache-2.0
"""Housekeeping: the sweep for files that nobody owns, and for rows that outlived their use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    String,
    and_,
    case,
    cast,
    delete,
    exists,
    func,
    or_,
    select,
    update,
)

from adapter.ledger.database import Ledger
from adapter.ledger.schema import (
    arrivals,
    exports,
    groups,
    jobs,
    meta,
    now,
    receipts,
    task_files,
    tasks,
)
from adapter.ledger.schema import events as happened
from adapter.models import ExportState, GroupState, ReportState

#: Rows that are looked up, or deleted, in one transaction.
_BATCH = 200
#: The fact in `meta` that says when the last sweep was.
HOUSEKEPT = "housekept"


def housekeeping_due(every_seconds: float) -> ColumnElement[bool]:
    """Return the condition, on `meta`, that the last sweep is long enough ago (or never was)."""
    # Only that fact is a number, and a database asks its questions in any order.
    at = case((meta.c.name == HOUSEKEPT, cast(meta.c.value, Double)))
    return at < now() - every_seconds


def claim_housekeeping(ledger: Ledger, every_seconds: float) -> bool:
    """Take the sweep if it is due; False if it is not, or another worker took it."""
    with ledger.write() as connection:
        return (
            connection.execute(
                update(meta)
                .where(housekeeping_due(every_seconds))
                .values(value=cast(now(), String))
            ).rowcount
            == 1
        )


def without_row(ledger: Ledger, ids: Iterable[str]) -> Iterator[list[str]]:
    """Yield batches of those arrivals that the ledger knows nothing of."""
    remaining = iter(ids)
    while batch := list(islice(remaining, _BATCH)):
        with ledger.read() as connection:
            known = set(
                connection.execute(select(arrivals.c.id).where(arrivals.c.id.in_(batch))).scalars()
            )
        if lost := [arrival for arrival in batch if arrival not in known]:
            yield lost


def left_behind(ledger: Ledger, ids: Iterable[str]) -> Iterator[list[str]]:
    """Yield batches of those jobs whose group is reclaimed: nothing owns their folders."""
    reclaimed = select(jobs.c.id).join(groups, jobs.c.group_id == groups.c.id)
    remaining = iter(ids)
    while batch := list(islice(remaining, _BATCH)):
        condition = and_(jobs.c.id.in_(batch), groups.c.state == GroupState.RECLAIMED)
        with ledger.read() as connection:
            yield list(connection.execute(reclaimed.where(condition)).scalars())


def forget(ledger: Ledger, older_than_seconds: float) -> int:
    """Delete rows that outlived their use: of reclaimed groups, old events, deleted arrivals.

    So it is with tasks of a remote Results Service that were reported, unless an operator still has
    to decide about one of their exports.

    Returns
    -------
    int
        How many arrivals, groups and remote tasks there were.
    """
    old = now() - older_than_seconds
    with ledger.write() as connection:
        gone = list(
            connection.execute(
                select(groups.c.id)
                .where(groups.c.state == GroupState.RECLAIMED, groups.c.reclaimed_at < old)
                .limit(_BATCH)
            ).scalars()
        )
        remote = _reported_tasks(connection, old)
        job_ids = select(jobs.c.id).where(jobs.c.group_id.in_(gone))
        task_ids = select(tasks.c.id).where(
            or_(tasks.c.job_id.in_(job_ids) & ~tasks.c.remote, tasks.c.id.in_(remote))
        )
        export_ids = select(exports.c.id).where(exports.c.task_id.in_(task_ids))
        for table, condition in (
            (receipts, receipts.c.export_id.in_(export_ids)),
            (exports, exports.c.task_id.in_(task_ids)),
            (task_files, task_files.c.task_id.in_(task_ids)),
            (tasks, tasks.c.id.in_(task_ids)),
            (jobs, jobs.c.group_id.in_(gone)),
            (arrivals, arrivals.c.group_id.in_(gone)),
            (groups, groups.c.id.in_(gone)),
            (happened, happened.c.at < old),
        ):
            connection.execute(delete(table).where(condition))
        rows = connection.execute(
            delete(arrivals).where(arrivals.c.group_id.is_(None), arrivals.c.deleted_at < old)
        ).rowcount
    return len(gone) + len(remote) + rows


def _reported_tasks(connection: Connection, old: ColumnElement[float]) -> list[str]:
    """Return some tasks of a remote Results Service that nobody asks for any more."""
    undecided = exists().where(
        exports.c.task_id == tasks.c.id,
        or_(
            exports.c.state.not_in((ExportState.SUCCEEDED, ExportState.DISCARDED)),
            exports.c.lease_token.is_not(None),
        ),
    )
    reported_at = func.coalesce(tasks.c.report_due_at, tasks.c.created_at)
    return list(
        connection.execute(
            select(tasks.c.id)
            .where(
                tasks.c.remote,
                tasks.c.report == ReportState.REPORTED,
                reported_at < old,
                ~undecided,
            )
            .limit(_BATCH)
        ).scalars()
    )
