# SPDX-License-Identifier: Apache-2.0
"""Reclamation: which files nothing needs any more.

It also moves a quarantined file that an operator retries back to incoming/: the command that asks
for it may run where the spool is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Table,
    and_,
    exists,
    or_,
    select,
    update,
)

from adapter.errors import LeaseLost
from adapter.ledger import attempts, events, leases
from adapter.ledger.arrivals import RETRIED
from adapter.ledger.attempts import Defeat
from adapter.ledger.database import Ledger
from adapter.ledger.housekeeping import housekeeping_due
from adapter.ledger.leases import Lease, free
from adapter.ledger.schema import (
    arrivals,
    cancellations,
    exports,
    groups,
    jobs,
    meta,
    now,
    tasks,
)
from adapter.models import ArrivalState, ExportState, GroupState, JobState, ReportState
from adapter.settings import Settings

#: Files deleted between two transactions, and rows looked up in one.
_BATCH = 200


#: What the state is called here, and by a worker of the release before during an upgrade.
_DISCARDED = (ArrivalState.DISCARDED, "unwanted")


def discarded_due(lag_seconds: float, lease_seconds: float) -> ColumnElement[bool]:
    """Return the condition that an arrival's file is not wanted, still there and seen by now."""
    return and_(
        arrivals.c.state.in_(_DISCARDED),
        arrivals.c.deleted_at.is_(None),
        arrivals.c.registered_at <= now() - lag_seconds,
        free(arrivals, lease_seconds),
    )


def retried_due(lease_seconds: float) -> ColumnElement[bool]:
    """Return the condition that an arrival's file is to be moved back from quarantine/."""
    return and_(
        arrivals.c.state == ArrivalState.RECEIVED,
        arrivals.c.reason == RETRIED,
        free(arrivals, lease_seconds),
    )


def group_due(retention_seconds: float, lease_seconds: float) -> ColumnElement[bool]:
    """Return the condition that nothing needs a group's files and their retention has passed.

    Every job has ended well or was discarded, no platform has a run of theirs to end, no export of
    theirs is open, and nobody holds a lease on any of it.  A group without jobs never qualifies
    unless an operator has given it up.  A group that kills its workers waits for an operator.
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
        .select_from(
            tasks.join(jobs, tasks.c.job_id == jobs.c.id).outerjoin(
                exports, exports.c.task_id == tasks.c.id
            )
        )
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
        ~exists(
            select(1)
            .select_from(cancellations.join(jobs, cancellations.c.job_id == jobs.c.id))
            .where(job)
        ),
    )
    begun = and_(
        groups.c.state == GroupState.RECLAIMING,
        or_(groups.c.reason.is_(None), groups.c.reason != attempts.KILLS),
    )
    return and_(or_(ready, begun), free(groups, lease_seconds))


def due_questions(settings: Settings) -> list[tuple[Table, ColumnElement[bool]]]:
    """Return what makes reclamation due: tables, and a condition on each."""
    workers = settings.workers
    return [
        (arrivals, retried_due(workers.lease_seconds)),
        (arrivals, discarded_due(settings.lag_seconds, workers.lease_seconds)),
        (groups, group_due(settings.retention_seconds, workers.lease_seconds)),
        (meta, housekeeping_due(workers.housekeeping_seconds)),
    ]


# -- files that an operator retries ----------------------------------------------------------------


def claim_retried(ledger: Ledger, lease_seconds: float) -> tuple[Lease, list[Any]]:
    """Lease some arrivals whose files are to be moved back, and count the attempt."""
    with ledger.write() as connection:
        return leases.claim(
            connection,
            arrivals,
            retried_due(lease_seconds),
            order=[arrivals.c.id],
            limit=_BATCH,
            seconds=lease_seconds,
            values={"attempts": arrivals.c.attempts + 1},
        )


def moved_back(ledger: Ledger, lease: Lease, arrival: str) -> None:
    """Record that a retried file is in incoming/ again.

    Raises
    ------
    LeaseLost
        If another worker holds it.
    """
    with ledger.write() as connection:
        leases.finish(connection, lease, arrival, reason=None, message=None, attempts=0)


def not_moved_back(ledger: Ledger, lease: Lease, row: Any, why: Defeat) -> str:
    """Count that a retried file could not be moved; the last attempt quarantines it again.

    Returns
    -------
    str
        ``"quarantined"`` or ``"failed"``.

    Raises
    ------
    LeaseLost
        If another worker holds it.
    """
    with ledger.write() as connection:
        if row.attempts < attempts.ARRIVAL_ATTEMPTS:
            attempts.rest(
                connection,
                lease,
                row.id,
                row.attempts,
                first=why.rest_of_arrival,
                message=why.facts["message"],
            )
            return "failed"
        leases.finish(
            connection,
            lease,
            row.id,
            state=ArrivalState.QUARANTINED,
            registered_at=now(),
            **why.facts,
        )
        events.record(
            connection, "quarantined", association=row.association, arrival=row.id, **why.facts
        )
    return ArrivalState.QUARANTINED


# -- files that nothing needs ----------------------------------------------------------------------


def claim_discarded(
    ledger: Ledger, lag_seconds: float, lease_seconds: float
) -> tuple[Lease, list[Any]]:
    """Lease some arrivals whose files are not wanted, still there and seen by now."""
    with ledger.write() as connection:
        return leases.claim(
            connection,
            arrivals,
            discarded_due(lag_seconds, lease_seconds),
            order=[arrivals.c.id],
            limit=_BATCH,
            seconds=lease_seconds,
        )


def discarded_deleted(ledger: Ledger, lease: Lease, ids: Sequence[str]) -> None:
    """Record that discarded arrivals' files are gone, if they are leased still."""
    with ledger.write() as connection:
        connection.execute(
            update(arrivals)
            .where(arrivals.c.id.in_(ids), arrivals.c.lease_token == lease.token)
            .values(
                deleted_at=now(), message=None, lease_token=None, lease_until=None, lease_expiries=0
            )
        )


def discarded_not_deleted(ledger: Ledger, lease: Lease, row: Any, why: Defeat, maximum: int) -> str:
    """Count that a discarded file could not be deleted; it is tried again after a rest.

    The last of `maximum` times is an event; after that it is tried at the longest delay.

    Returns
    -------
    str
        ``"stuck"`` or ``"failed"``.

    Raises
    ------
    LeaseLost
        If another worker holds it.
    """
    count = row.lease_expiries + 1
    message = f"its file cannot be deleted: {why.message}"[:500]
    with ledger.write() as connection:
        attempts.rest(connection, lease, row.id, count, lease_expiries=count, message=message)
        if count == maximum:
            events.record(
                connection,
                "not-reclaimed",
                association=row.association,
                arrival=row.id,
                reason=why.reason,
                message=why.message,
            )
    return "stuck" if count >= maximum else "failed"


def mark_deleted(ledger: Ledger, ids: Sequence[str], lease: Lease) -> None:
    """Record that files of a group are gone, under the group's lease.

    Raises
    ------
    LeaseLost
        If the lease is lost.
    """
    with ledger.write() as connection:
        connection.execute(update(arrivals).where(arrivals.c.id.in_(ids)).values(deleted_at=now()))
        if leases.renew(connection, lease) == 0:
            raise LeaseLost("another worker reclaims the group")


def claim_group(
    ledger: Ledger, retention_seconds: float, lease_seconds: float
) -> tuple[Lease, Any] | None:
    """Take a group that nothing needs any more: it is `reclaiming` from here on."""
    with ledger.write() as connection:
        lease, rows = leases.claim(
            connection,
            groups,
            group_due(retention_seconds, lease_seconds),
            order=[groups.c.closed_at],
            limit=1,
            seconds=lease_seconds,
            values={"state": GroupState.RECLAIMING},
        )
    return (lease, rows[0]) if rows else None


def group_defeat(ledger: Ledger, lease: Lease, group: Any, why: Defeat, maximum: int) -> str:
    """Count that a group could not be reclaimed; it stays `reclaiming` and is tried again.

    The last of `maximum` times is an event; after that it is tried at the longest delay, or not at
    all if it kills its workers.

    Returns
    -------
    str
        ``"stuck"`` or ``"failed"``.

    Raises
    ------
    LeaseLost
        If another worker reclaims it.
    """
    count = group.lease_expiries + 1
    with ledger.write() as connection:
        attempts.rest(connection, lease, group.id, count, lease_expiries=count, **why.facts)
        if count == maximum or why.reason == attempts.KILLS:
            events.record(connection, "group-not-reclaimed", group=group.id, **why.facts)
    return "stuck" if count >= maximum else "failed"


def jobs_of(ledger: Ledger, group: str) -> list[str]:
    """Return the ids of a group's jobs."""
    with ledger.read() as connection:
        return list(connection.execute(select(jobs.c.id).where(jobs.c.group_id == group)).scalars())


def files_of(ledger: Ledger, group: str) -> Iterator[list[str]]:
    """Yield batches of a group's arrivals whose files are still there."""
    query = (
        select(arrivals.c.id)
        .where(arrivals.c.group_id == group, arrivals.c.deleted_at.is_(None))
        .order_by(arrivals.c.id)
        .limit(_BATCH)
    )
    last = ""
    while True:
        with ledger.read() as connection:
            ids = list(connection.execute(query.where(arrivals.c.id > last)).scalars())
        if not ids:
            return
        yield ids
        last = ids[-1]


def finish_group(ledger: Ledger, lease: Lease, group: str) -> None:
    """Record that a group's files are gone.

    Raises
    ------
    LeaseLost
        If another worker reclaims it.
    """
    with ledger.write() as connection:
        leases.finish(
            connection,
            lease,
            group,
            state=GroupState.RECLAIMED,
            reclaimed_at=now(),
            reason=None,
            message=None,
        )
        events.record(connection, "group-reclaimed", group=group)
