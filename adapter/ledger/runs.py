# SPDX-License-Identifier: Apache-2.0
"""Runs of jobs at other platforms than the embedded one: who has them, and how they end.

::

    queued .. uploaded -> handed-over   the platform has the run, and is asked for its end when due
    handed-over -> succeeded            its output is published (`adapter.ledger.jobs.succeed`)
    handed-over -> queued               it failed or was lost: another run, with a number of its own
    handed-over -> parked               too many runs failed, or this one failed for good: a retry
                                        by an operator begins another run.  Or the platform was away
                                        for too long: a retry goes on asking for the same run

No counter or clock of a run is anywhere else.  The verbs raise LeaseLost, and change nothing, if
the worker lost the job.
"""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import ColumnElement, and_, or_, select

from adapter.ledger import cancellations, events, leases
from adapter.ledger.database import Ledger
from adapter.ledger.delays import LONGEST_WAIT
from adapter.ledger.jobs import Failure, Job, claim, job_of, record_failure, submission_due
from adapter.ledger.leases import Lease, due, free
from adapter.ledger.schema import jobs, now
from adapter.models import EMBEDDED, JobState


def ask_due(lease_seconds: float) -> ColumnElement[bool]:
    """Return the condition that a platform is to be asked how a job's run is."""
    return and_(
        jobs.c.state == JobState.HANDED_OVER,
        due(jobs.c.due_at),
        free(jobs, lease_seconds),
    )


def step_due(lease_seconds: float) -> ColumnElement[bool]:
    """Return the condition that the submission stage has a step or a question due for a job."""
    return or_(submission_due(lease_seconds), ask_due(lease_seconds))


def claim_step(
    ledger: Ledger, lease_seconds: float, first: str | None = None
) -> tuple[Lease, Job] | None:
    """Lease a job with a step or a question due, `first` if it has; None if none has."""
    return claim(ledger, step_due(lease_seconds), lease_seconds, first)


def choose_platform(ledger: Ledger, lease: Lease, job: Job, platform: str) -> Job:
    """Record who is to run a queued job, before it is asked for anything; return the job.

    If another platform was asked before, it may have created the run: that is cancelled there, and
    the next one gets a number of its own.
    """
    chosen = replace(job, platform=platform)
    with ledger.write() as connection:
        if job.platform != EMBEDDED:
            chosen = replace(chosen, run=job.run + 1)
        leases.change(connection, lease, job.id, platform=chosen.platform, run=chosen.run)
        if job.platform != EMBEDDED:
            cancellations.owe(connection, job)
    return chosen


def goes_on(ledger: Ledger, lease: Lease, job: Job, *, running: bool, delay: float) -> None:
    """Record that a run has not ended, and ask again in `delay` seconds.

    Parameters
    ----------
    running : bool
        False if the platform has not begun it (yet, or again).
    """
    began = running and job.running_since is None
    with ledger.write() as connection:
        leases.finish(
            connection,
            lease,
            job.id,
            running_since=(now() if began else job.running_since) if running else None,
            outcome=None,
            message=None,
            due_at=now() + min(delay, LONGEST_WAIT),
            updated_at=now(),
        )
        if began:
            events.record(
                connection, "job-started-run", group=job.group_id, job=job.id, run=job.run
            )


def not_answered(ledger: Ledger, lease: Lease, job: Job, failure: Failure, *, delay: float) -> None:
    """Record why nothing could be learnt of a run; no try is used.

    `updated_at` stays: it says since when nothing is known.
    """
    with ledger.write() as connection:
        leases.finish(
            connection,
            lease,
            job.id,
            due_at=now() + min(delay, LONGEST_WAIT),
            **failure.values,
        )


def fail(
    ledger: Ledger,
    lease: Lease,
    job: Job,
    failure: Failure,
    *,
    retries: int,
    delay: float,
    may_pass: bool,
) -> bool:
    """Record that a run has failed: the job is queued for another one, or parked.

    Parameters
    ----------
    retries : int
        Runs beyond the first.
    delay : float
        Seconds before the next run is created.
    may_pass : bool
        Whether another run may do better.

    Returns
    -------
    bool
        True if the job is parked.
    """
    parked = not may_pass or job.failed_runs >= retries
    with ledger.write() as connection:
        leases.finish(
            connection,
            lease,
            job.id,
            state=JobState.PARKED if parked else JobState.QUEUED,
            parked_in=JobState.QUEUED if parked else None,
            run=job.run + 1,
            failed_runs=job.failed_runs + 1,
            tries=0,
            platform_job_id=None,
            handed_over_at=None,
            running_since=None,
            due_at=now() + min(delay, LONGEST_WAIT),
            updated_at=now(),
            **failure.values,
        )
        cancellations.owe(connection, job)
        kind = "job-parked" if parked else "job-failed-try"
        record_failure(connection, kind, replace(job, tries=job.failed_runs), failure)
    return parked


def cancel_if_discarded(ledger: Ledger, job: str) -> None:
    """Owe the cancellation of a discarded job anew, after a worker lost it in mid-step.

    The platform may have taken that step after it was told to cancel the run.
    """
    with ledger.write() as connection:
        row = connection.execute(select(jobs).where(jobs.c.id == job).with_for_update()).first()
        if row is not None and row.state == JobState.DISCARDED and row.platform != EMBEDDED:
            cancellations.owe(connection, job_of(row))
