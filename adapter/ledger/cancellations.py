# SPDX-License-Identifier: Apache-2.0
"""Cancellations: runs that a platform has to end and forget, because nobody wants them any more.

A run is not wanted when its job is discarded, when it failed or was lost and another run takes its
place, and when its results are published.  The cancellation is owed in the transaction that decides
so; the submission stage tells the platform, again and again until it takes it.  The embedded
platform is owed nothing: the loss of a lease ends its runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import ColumnElement, Connection, and_, delete, insert, select

from adapter.ledger import events, leases
from adapter.ledger.database import Ledger
from adapter.ledger.leases import Lease, due, free
from adapter.ledger.schema import cancellations, now
from adapter.models import run_id

if TYPE_CHECKING:
    from adapter.ledger.jobs import Job

#: The longest a cancellation legally waits for its next try (seconds).
LONGEST_WAIT = 86400.0


@dataclass(frozen=True, slots=True)
class Cancellation:
    """A claimed cancellation: its lease, whose run it is about, and how old it is (seconds)."""

    lease: Lease
    id: str
    job_id: str
    run: int
    platform: str
    platform_job_id: str | None
    tries: int
    age: float


def cancel_due(lease_seconds: float) -> ColumnElement[bool]:
    """Return the condition that a platform has to be told of a run that nobody wants."""
    return and_(
        due(cancellations.c.due_at),
        free(cancellations, lease_seconds),
    )


def owe(connection: Connection, job: Job, *, due_at: float | None = None) -> None:
    """Record that a job's run, as it stands in `job`, is to be ended and forgotten.

    If that is owed already it is owed anew: whoever is at it may have come too early.

    Parameters
    ----------
    due_at : float, optional
        Not before this time of the ledger's; by default now.
    """
    id_ = run_id(job.id, job.run)
    connection.execute(delete(cancellations).where(cancellations.c.id == id_))
    connection.execute(
        insert(cancellations).values(
            id=id_,
            job_id=job.id,
            run=job.run,
            platform=job.platform,
            platform_job_id=job.platform_job_id,
            due_at=now() if due_at is None else due_at,
            created_at=now(),
        )
    )


def claim(ledger: Ledger, lease_seconds: float) -> Cancellation | None:
    """Lease the cancellation that is due first; None if there is none."""
    with ledger.write() as connection:
        lease, rows = leases.claim(
            connection,
            cancellations,
            cancel_due(lease_seconds),
            order=[cancellations.c.due_at, cancellations.c.id],
            limit=1,
            seconds=lease_seconds,
        )
        if not rows:
            return None
        [row] = rows
        age = connection.execute(select(now() - row.created_at)).scalar_one()
    return Cancellation(
        lease, row.id, row.job_id, row.run, row.platform, row.platform_job_id, row.tries, age
    )


def done(ledger: Ledger, cancellation: Cancellation) -> None:
    """Record that the platform has taken a cancellation.

    Raises
    ------
    LeaseLost
        If it is owed anew, or another worker is at it.
    """
    _close(ledger, cancellation, "job-cancelled")


def give_up(ledger: Ledger, cancellation: Cancellation, problem: str) -> None:
    """Record that a platform would not take a cancellation for too long.

    Raises
    ------
    LeaseLost
        As `done`.
    """
    _close(ledger, cancellation, "job-not-cancelled", problem[:200])


def put_off(ledger: Ledger, cancellation: Cancellation, delay: float) -> None:
    """Record that the platform did not take a cancellation; it is due again in `delay` seconds.

    Raises
    ------
    LeaseLost
        As `done`.
    """
    with ledger.write() as connection:
        leases.finish(
            connection,
            cancellation.lease,
            cancellation.id,
            tries=cancellation.tries + 1,
            due_at=now() + min(delay, LONGEST_WAIT),
        )


def _close(
    ledger: Ledger, cancellation: Cancellation, kind: str, problem: str | None = None
) -> None:
    with ledger.write() as connection:
        leases.change(connection, cancellation.lease, cancellation.id, tries=cancellation.tries + 1)
        connection.execute(delete(cancellations).where(cancellations.c.id == cancellation.id))
        events.record(
            connection,
            kind,
            job=cancellation.job_id,
            platform=cancellation.platform,
            run=cancellation.run,
            problem=problem,
        )
