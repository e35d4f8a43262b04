# SPDX-License-Identifier: Apache-2.0
"""Jobs: one pipeline's work on one group, from queued to its results.

``queued -> created -> described -> uploaded -> started -> succeeded`` on the embedded platform, and
``handed-over`` instead of ``started`` on any other.  Any of them ``-> parked``, and from there back
to where it stood, or ``discarded``.  All states are drawn in `adapter.models`; what becomes of a
job that is handed over is told in `adapter.ledger.runs`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, exists, func, select, update

from adapter.errors import PermanentError
from adapter.ledger import attempts, cancellations, events, leases, tasks
from adapter.ledger.attempts import Defeat
from adapter.ledger.database import Ledger
from adapter.ledger.delays import LONGEST_WAIT
from adapter.ledger.leases import Lease, due, free
from adapter.ledger.schema import groups, jobs, now
from adapter.ledger.tasks import TaskFile
from adapter.models import EMBEDDED, SUBMISSION_STATES, GroupState, JobState, run_id

#: Which job is claimed first.
ORDER = (jobs.c.priority.desc(), jobs.c.created_at, jobs.c.id)

_SUBMITTED = (JobState.STARTED, JobState.HANDED_OVER, JobState.SUCCEEDED, JobState.DISCARDED)
_ENDED = (JobState.SUCCEEDED, JobState.DISCARDED)


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stood when it was claimed; the attributes are the columns of its row.

    Attributes
    ----------
    platform : str
        Who runs it.
    run : int
        Which run of the job it is: it grows when a run has failed at the platform.
    failed_runs : int
        How many runs have failed since the job was made, or retried by an operator.
    handed_over_at, running_since : float or None
        Since when a platform has the run, and since when it runs there.
    """

    id: str
    group_id: str
    pipeline: str
    pipeline_id: str
    name: str
    priority: int
    retry_delay: float
    state: str
    tries: int
    lease_expiries: int
    created_at: float
    updated_at: float
    platform: str
    platform_job_id: str | None
    run: int
    failed_runs: int
    handed_over_at: float | None
    running_since: float | None

    @property
    def run_id(self) -> str:
        """The id of this run of the job: the idempotency key of all that a platform is asked."""
        return run_id(self.id, self.run)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a try failed: an outcome for the ledger, a sentence for people, an exit code if any."""

    outcome: str
    message: str
    exit_code: int | None = None

    @property
    def text(self) -> str:
        """The outcome and the sentence, for people."""
        return f"{self.outcome}: {self.message}"

    @property
    def values(self) -> dict[str, Any]:
        """The columns that record it."""
        return {
            "outcome": self.outcome[:32],
            "message": self.message[:500],
            "exit_code": self.exit_code,
        }


def deadly(job: Job, maximum_expiries: int) -> Failure | None:
    """Return why a job whose lease keeps running out must be parked; None if it need not be."""
    why = attempts.killed(job.lease_expiries, maximum_expiries)
    return None if why is None else Failure(why.reason, why.message)


# -- claims --------------------------------------------------------------------------------------


def submission_due(lease_seconds: float) -> ColumnElement[bool]:
    """Return the condition that the submission stage has a step to take for a job."""
    return and_(
        jobs.c.state.in_(SUBMISSION_STATES),
        due(jobs.c.due_at),
        free(jobs, lease_seconds),
    )


def run_due(lease_seconds: float) -> ColumnElement[bool]:
    """Return the condition that the pipeline stage has a job of the embedded platform to run."""
    return and_(
        jobs.c.state == JobState.STARTED,
        due(jobs.c.due_at),
        free(jobs, lease_seconds),
    )


def claim_run(
    ledger: Ledger, lease_seconds: float, first: str | None = None
) -> tuple[Lease, Job] | None:
    """Lease a job that is to be run by the embedded platform, `first` if it is; None if none is."""
    return claim(ledger, run_due(lease_seconds), lease_seconds, first)


def claim(
    ledger: Ledger, where: ColumnElement[bool], seconds: float, first: str | None = None
) -> tuple[Lease, Job] | None:
    """Lease a job that a condition holds for, `first` if it is one; None if there is none."""
    with ledger.write() as connection:
        lease, rows = leases.claim(
            connection,
            jobs,
            where,
            order=ORDER,
            first=first,
            limit=1,
            seconds=seconds,
        )
    return (lease, job_of(rows[0])) if rows else None


def job_of(row: Row[Any]) -> Job:
    """Return the job that a row of the table is."""
    return Job(**{field.name: getattr(row, field.name) for field in fields(Job)})


def read(ledger: Ledger, job: str) -> Job:
    """Return a job as it stands now."""
    with ledger.read() as connection:
        return job_of(connection.execute(select(jobs).where(jobs.c.id == job)).one())


# -- what a worker records; each raises LeaseLost, and changes nothing, if it lost the job --------


def advance(ledger: Ledger, lease: Lease, job: Job, state: JobState, *, delay: float = 0.0) -> Job:
    """Record that a step of the submission is done, and return the job as it stands now.

    The last step, to `started` or `handed-over`, gives the job back; a group whose jobs have all
    come so far is `submitted`.

    Parameters
    ----------
    delay : float, optional
        Seconds after which a job that was given back is looked at again.
    """
    step: dict[str, Any] = {
        "state": state,
        "platform_job_id": job.platform_job_id,
        "tries": 0,
        "outcome": None,
        "message": None,
        "updated_at": now(),
    }
    with ledger.write() as connection:
        if state in SUBMISSION_STATES:
            leases.change(connection, lease, job.id, **step)
        else:
            if state == JobState.HANDED_OVER:
                step |= {"handed_over_at": now(), "running_since": None}
            _lock_group(connection, job.group_id)
            leases.finish(connection, lease, job.id, due_at=now() + delay, **step)
            _submit_group(connection, job.group_id)
            events.record(
                connection,
                "job-submitted",
                group=job.group_id,
                job=job.id,
                pipeline=job.pipeline_id,
                platform=job.platform,
                run=job.run,
            )
    return replace(job, state=state, tries=0)


def begin_run(ledger: Ledger, lease: Lease, job: Job) -> None:
    """Record that a run of the pipeline begins."""
    with ledger.write() as connection:
        leases.change(connection, lease, job.id, updated_at=now())
        events.record(
            connection, "job-started-run", group=job.group_id, job=job.id, run=job.tries + 1
        )


def still_held(ledger: Ledger, lease: Lease, job: Job) -> None:
    """Raise LeaseLost unless the job is still leased under this token: before a lasting step."""
    with ledger.write() as connection:
        leases.change(connection, lease, job.id, lease_until=now() + lease.seconds)


def give_back(ledger: Ledger, lease: Lease, job: Job, *, delay: float) -> None:
    """Give a job back untried; it is due again after `delay` seconds."""
    with ledger.write() as connection:
        leases.finish(connection, lease, job.id, due_at=now() + delay)


def fail_try(
    ledger: Ledger, lease: Lease, job: Job, failure: Failure, *, retries: int, delay: float
) -> bool:
    """Record a failed try that may pass; the last of ``1 + retries`` parks the job.

    Returns
    -------
    bool
        True if the job is parked.
    """
    tries = job.tries + 1
    if tries > retries:
        park(ledger, lease, job, failure)
        return True
    with ledger.write() as connection:
        leases.finish(
            connection,
            lease,
            job.id,
            tries=tries,
            due_at=now() + min(delay, LONGEST_WAIT),
            updated_at=now(),
            **failure.values,
        )
        record_failure(connection, "job-failed-try", job, failure)
    return False


def defeat(ledger: Ledger, lease: Lease, job: Job, why: Defeat, maximum: int) -> str:
    """Count that a job defeated its worker (no try); the last of `maximum` times parks it.

    Returns
    -------
    str
        ``"parked"`` or ``"failed"``.
    """
    failure = Failure(why.reason, why.message)
    count = job.lease_expiries + 1
    if count >= maximum:
        park(ledger, lease, job, failure)
        return JobState.PARKED
    with ledger.write() as connection:
        attempts.rest(
            connection,
            lease,
            job.id,
            count,
            lease_expiries=count,
            updated_at=now(),
            **failure.values,
        )
        record_failure(connection, "job-failed-try", job, failure)
    return "failed"


def park(ledger: Ledger, lease: Lease, job: Job, failure: Failure) -> None:
    """Park a job where it stands, until an operator retries or discards it."""
    with ledger.write() as connection:
        leases.finish(
            connection,
            lease,
            job.id,
            state=JobState.PARKED,
            parked_in=job.state,
            tries=job.tries + 1,
            updated_at=now(),
            **failure.values,
        )
        record_failure(connection, "job-parked", job, failure)


def succeed(
    ledger: Ledger,
    lease: Lease,
    job: Job,
    files: Sequence[TaskFile],
    *,
    destinations: Sequence[str],
    agent: str,
) -> None:
    """Record a job's published results, their task and its exports, and its success: one step.

    Another platform than the embedded one may then forget the run.
    """
    adopted = job.state in SUBMISSION_STATES  # results that a ledger before this one knew of
    with ledger.write() as connection:
        if adopted:
            _lock_group(connection, job.group_id)
        leases.finish(
            connection,
            lease,
            job.id,
            state=JobState.SUCCEEDED,
            outcome="succeeded",
            message=None,
            exit_code=0,
            updated_at=now(),
        )
        if adopted:
            _submit_group(connection, job.group_id)
        if job.platform != EMBEDDED:
            cancellations.owe(connection, job)
        tasks.create_task(
            connection, job.id, files, destinations, agent=agent, priority=job.priority
        )
        events.record(
            connection,
            "job-succeeded",
            group=job.group_id,
            job=job.id,
            files=len(files),
            destinations=list(destinations),
        )


def record_failure(connection: Connection, kind: str, job: Job, failure: Failure) -> None:
    """Record the event that a job failed a try, or is parked."""
    events.record(
        connection,
        kind,
        group=job.group_id,
        job=job.id,
        state=job.state,
        outcome=failure.outcome,
        exit_code=failure.exit_code,
        tries=job.tries + 1,
    )


def _lock_group(connection: Connection, group: str) -> None:
    """Let one transaction at a time judge a group's jobs: two would miss each other's step."""
    connection.execute(select(groups.c.id).where(groups.c.id == group).with_for_update())


def _submit_group(connection: Connection, group: str) -> None:
    waiting = exists().where(jobs.c.group_id == group, jobs.c.state.not_in(_SUBMITTED))
    connection.execute(
        update(groups)
        .where(groups.c.id == group, groups.c.state == GroupState.CLOSED, ~waiting)
        .values(state=GroupState.SUBMITTED)
    )


# -- what an operator asks for -------------------------------------------------------------------


def parked(ledger: Ledger, outcome: str | None = None) -> list[str]:
    """Return the parked jobs, the oldest first, or those of them whose last try ended so."""
    query = select(jobs.c.id).where(jobs.c.state == JobState.PARKED).order_by(jobs.c.created_at)
    if outcome is not None:
        query = query.where(jobs.c.outcome == outcome)
    with ledger.read() as connection:
        return list(connection.execute(query).scalars())


def retry(ledger: Ledger, job: str) -> JobState:
    """Let a parked job go on where it stood, with all its tries; return that state.

    Raises
    ------
    PermanentError
        If there is no such job, or it is not parked.
    """
    with ledger.write() as connection:
        row = connection.execute(
            update(jobs)
            .where(jobs.c.id == job, jobs.c.state == JobState.PARKED)
            .values(
                state=func.coalesce(jobs.c.parked_in, JobState.QUEUED),
                parked_in=None,
                tries=0,
                failed_runs=0,
                due_at=now(),
                updated_at=now(),
                lease_token=None,
                lease_until=None,
                lease_expiries=0,
            )
            .returning(jobs.c.state, jobs.c.group_id)
        ).first()
        if row is None:
            raise _refusal(connection, job, "only a parked job can be retried")
        events.record(connection, "job-retried", group=row.group_id, job=job, state=row.state)
    return JobState(row.state)


def discard(ledger: Ledger, job: str) -> JobState:
    """Give a job up for good; its run is stopped.

    One that a worker of ours runs is stopped by the loss of its lease.  One that is at another
    platform is cancelled there: that is owed from here on, and done by the submission stage.

    Raises
    ------
    PermanentError
        If there is no such job, or it has ended already.
    """
    with ledger.write() as connection:
        group = connection.execute(select(jobs.c.group_id).where(jobs.c.id == job)).scalar()
        _lock_group(connection, group or "")
        unended = and_(jobs.c.id == job, jobs.c.state.not_in(_ENDED))
        row = connection.execute(select(jobs).where(unended).with_for_update()).first()
        if row is None:
            raise _refusal(connection, job, "a job that has ended cannot be discarded")
        connection.execute(
            update(jobs)
            .where(jobs.c.id == job)
            .values(
                state=JobState.DISCARDED,
                parked_in=None,
                updated_at=now(),
                lease_token=None,
                lease_until=None,
            )
        )
        if row.platform != EMBEDDED:
            # Its worker may be asking the platform for a step just now.
            cancellations.owe(connection, job_of(row), due_at=row.lease_until)
        _submit_group(connection, group or "")
        events.record(connection, "job-discarded", group=group, job=job)
    return JobState.DISCARDED


def _refusal(connection: Connection, job: str, rule: str) -> PermanentError:
    state = connection.execute(select(jobs.c.state).where(jobs.c.id == job)).scalar()
    if state is None:
        return PermanentError(f"there is no job {job}", "no-such-job")
    return PermanentError(f"job {job} is {state}: {rule}", "wrong-state")
