# SPDX-License-Identifier: Apache-2.0
"""Groups: closed by grouping, once, together with the jobs that they become.

::

    open -> closed -> submitted -> reclaiming -> reclaimed
    open -> parked -> closing -> closed | parked
            parked -> reclaiming               given up

Registration opens and pushes them (`adapter.ledger.open_groups`).  A group is parked if it defeats
grouping too often, or if its AE title has it held since a study of it has several patients; what
comes after that opens the next generation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, insert, or_, select, update

from adapter.errors import PermanentError
from adapter.ledger import attempts, events, leases
from adapter.ledger.arrivals import BY_OPERATOR
from adapter.ledger.attempts import Defeat
from adapter.ledger.database import Ledger
from adapter.ledger.hashes import several_patients
from adapter.ledger.leases import Lease, due, free
from adapter.ledger.schema import arrivals, groups, jobs, now
from adapter.models import ArrivalState, GroupState, JobState, Priority, job_id

#: Which group is looked at first.
ORDER = (groups.c.look_at,)

#: Why a group was closed.
QUIET, MAXIMUM_WAIT = "quiet", "maximum-wait"

#: Why a group is parked: its AE title has it held if a study of it has several patients.
PATIENT_CONFLICT = "patient-conflict"

_SEVERAL_PATIENTS = Defeat(
    PATIENT_CONFLICT,
    "instances of several patients have the same Study Instance UID; "
    "`groups retry` submits them, `groups discard` gives them up",
)

#: Most studies that an event names.
_MOST_STUDIES = 20

#: Seconds between looks at a group that waits for older instances to be registered.
GUARD_SECONDS = 1.0

#: The states of a group that grouping has to close.
TO_CLOSE = (GroupState.OPEN, GroupState.CLOSING)


@dataclass(frozen=True, slots=True)
class Closing:
    """What came of closing a group.

    Attributes
    ----------
    state : GroupState
        ``closed``; ``parked`` if it is held; ``open`` if an instance came in the meantime.
    jobs : tuple of str
        The ids of its jobs.
    patient_conflict : bool
        Whether it was found that a study of it has instances of several patients.
    """

    state: GroupState
    jobs: tuple[str, ...] = ()
    patient_conflict: bool = False


def close_due(lease_seconds: float) -> ColumnElement[bool]:
    """Return the condition that the grouping stage should look at a group."""
    look = or_(due(groups.c.look_at), groups.c.maximum_at <= now())
    return and_(groups.c.state.in_(TO_CLOSE), look, free(groups, lease_seconds))


def claim_due(ledger: Ledger, seconds: float, first: str | None = None) -> tuple[Lease, Any] | None:
    """Lease the group `first` if it is due, else the one longest due; None if there is none."""
    with ledger.write() as connection:
        lease, rows = leases.claim(
            connection,
            groups,
            close_due(seconds),
            order=ORDER,
            first=first,
            limit=1,
            seconds=seconds,
        )
    return (lease, rows[0]) if rows else None


# -- what a worker records; each raises LeaseLost, and changes nothing, if it lost the group -------


def hold_open(ledger: Ledger, lease: Lease, group: str, seconds: float = GUARD_SECONDS) -> None:
    """Give a group back unclosed: instances received before its quiet time are on their way.

    Parameters
    ----------
    seconds : float, optional
        When to look again.
    """
    with ledger.write() as connection:
        leases.finish(connection, lease, group, look_at=now() + seconds)


def close(
    ledger: Ledger,
    lease: Lease,
    group: str,
    requests: Sequence[tuple[str, str, Priority, float]],
    *,
    reason: str,
    hold_conflict: bool = False,
) -> Closing:
    """Close a group and create its jobs, in one transaction.

    A group with a study of several patients is marked, which its jobs tell.

    Parameters
    ----------
    requests : sequence of tuple
        Pipeline name, pipeline id, priority and retry delay (seconds) of each job.
    reason : str
        ``QUIET`` if the quiet time has passed, ``MAXIMUM_WAIT`` if the maximum wait has.
    hold_conflict : bool, optional
        Whether to park a group with a study of several patients, until an operator decides.
    """
    time_has_come = due(groups.c.due_at)
    if reason == MAXIMUM_WAIT:
        time_has_come = groups.c.maximum_at <= now()
    with ledger.write() as connection:
        closed = connection.execute(
            update(groups)
            .where(
                groups.c.id == group,
                groups.c.lease_token == lease.token,
                groups.c.state.in_(TO_CLOSE),
                time_has_come,
            )
            .values(
                state=GroupState.CLOSED,
                closed_at=now(),
                close_reason=reason,
                reason=None,
                message=None,
                lease_token=None,
                lease_until=None,
                lease_expiries=0,
            )
            .returning(groups)
        ).first()
        if closed is None:
            leases.finish(connection, lease, group)
            return Closing(GroupState.OPEN)
        conflict = not closed.patient_conflict and _mark_conflict(connection, group)
        if conflict and hold_conflict:
            _hold(connection, group)
            return Closing(GroupState.PARKED, patient_conflict=True)
        created = []
        for pipeline, pipeline_id, priority, retry_delay in requests:
            job = job_id(group, pipeline)
            connection.execute(
                insert(jobs).values(
                    id=job,
                    group_id=group,
                    pipeline=pipeline,
                    pipeline_id=pipeline_id,
                    name=job_name(closed.called_ae_title, pipeline, closed.closed_at, job),
                    priority=priority,
                    retry_delay=retry_delay,
                    state=JobState.QUEUED,
                    due_at=now(),
                    created_at=now(),
                    updated_at=now(),
                )
            )
            created.append(job)
        events.record(
            connection,
            "group-closed",
            group=group,
            reason=closed.close_reason,
            instances=closed.instances,
            jobs=len(created),
        )
    return Closing(GroupState.CLOSED, tuple(created), conflict)


def _mark_conflict(connection: Connection, group: str) -> bool:
    """Mark a group if a study of it has instances of several patients, and tell whether it has."""
    mine = and_(arrivals.c.group_id == group, arrivals.c.state == ArrivalState.REGISTERED)
    study = arrivals.c.study_instance_uid
    studies = list(
        connection.execute(
            select(study)
            .where(
                study.in_(select(study).where(mine)), arrivals.c.state == ArrivalState.REGISTERED
            )
            .group_by(study)
            .having(several_patients())
            .order_by(study)
        ).scalars()
    )
    if studies:
        connection.execute(update(groups).where(groups.c.id == group).values(patient_conflict=True))
        events.record(connection, PATIENT_CONFLICT, group=group, studies=studies[:_MOST_STUDIES])
    return bool(studies)


def _hold(connection: Connection, group: str) -> None:
    connection.execute(
        update(groups)
        .where(groups.c.id == group)
        .values(
            state=GroupState.PARKED, closed_at=None, close_reason=None, **_SEVERAL_PATIENTS.facts
        )
    )
    events.record(connection, "group-parked", group=group, **_SEVERAL_PATIENTS.facts)


def defeat(ledger: Ledger, lease: Lease, group: Any, why: Defeat, maximum: int) -> str:
    """Count that a group defeated its worker; the last of `maximum` times parks it.

    A fault of its job processor parks it at once.

    Returns
    -------
    str
        ``"parked"`` or ``"failed"``.
    """
    count = group.lease_expiries + 1
    if why.is_final or count >= maximum:
        return park(ledger, lease, group, why)
    with ledger.write() as connection:
        attempts.rest(connection, lease, group.id, count, lease_expiries=count, **why.facts)
        events.record(connection, "group-failed-try", group=group.id, tries=count, **why.facts)
    return "failed"


def park(ledger: Ledger, lease: Lease, group: Any, why: Defeat) -> str:
    """Park a group until an operator retries or discards it; return ``"parked"``."""
    with ledger.write() as connection:
        leases.finish(connection, lease, group.id, state=GroupState.PARKED, **why.facts)
        events.record(connection, "group-parked", group=group.id, **why.facts)
    return GroupState.PARKED


# -- what an operator asks for -------------------------------------------------------------------


def retry(ledger: Ledger, group: str) -> GroupState:
    """Let a parked group be closed, or one whose files could not be deleted be reclaimed, at once.

    Returns
    -------
    GroupState
        Where it stands now.

    Raises
    ------
    PermanentError
        If there is no such group, or nothing holds it up.
    """
    anew = {
        "reason": None,
        "message": None,
        "lease_token": None,
        "lease_until": None,
        "lease_expiries": 0,
    }
    stuck = and_(groups.c.state == GroupState.RECLAIMING, groups.c.reason.is_not(None))
    with ledger.write() as connection:
        for where, values in (
            (groups.c.state == GroupState.PARKED, {"state": GroupState.CLOSING, "look_at": now()}),
            (stuck, {}),
        ):
            row = connection.execute(
                update(groups)
                .where(groups.c.id == group, where)
                .values(**anew, **values)
                .returning(groups.c.state)
            ).first()
            if row is not None:
                events.record(connection, "group-retried", group=group, state=row.state)
                return GroupState(row.state)
        raise _refusal(connection, group, "only a group that is held up can be retried")


def discard(ledger: Ledger, group: str) -> str:
    """Give a parked group up for good; its files are deleted, and may be sent again.

    Returns
    -------
    str
        ``"discarded"``; its state is `reclaiming` until its files are deleted.

    Raises
    ------
    PermanentError
        If there is no such group, or it is not parked.
    """
    with ledger.write() as connection:
        done = connection.execute(
            update(groups)
            .where(groups.c.id == group, groups.c.state == GroupState.PARKED)
            .values(state=GroupState.RECLAIMING, reason=None, message=None)
        )
        if done.rowcount != 1:
            raise _refusal(connection, group, "only a parked group can be discarded")
        connection.execute(
            update(arrivals)
            .where(arrivals.c.group_id == group, arrivals.c.state == ArrivalState.REGISTERED)
            .values(state=ArrivalState.DISCARDED, reason=BY_OPERATOR)
        )
        events.record(connection, "group-discarded", group=group)
    return "discarded"


def _refusal(connection: Connection, group: str, rule: str) -> PermanentError:
    state = connection.execute(select(groups.c.state).where(groups.c.id == group)).scalar()
    if state is None:
        return PermanentError(f"there is no group {group}", "no-such-group")
    return PermanentError(f"group {group} is {state}: {rule}", "wrong-state")


def job_name(called_ae_title: str, pipeline: str, at: float, job: str) -> str:
    """Return ``<aet>-<pipeline>-<UTC yyyyMMddHHmmss>-<8 digits of the job's id>``.

    At most 63 characters of a-z, 0-9 and single hyphens: a name that is too long is cut before the
    time, so that it stays unique and carries no PHI.
    """
    stamp = f"{datetime.fromtimestamp(at, UTC):%Y%m%d%H%M%S}-{job[:8]}"
    plain = re.sub(r"[^a-z0-9]+", "-", f"{called_ae_title}-{pipeline}".lower()).strip("-")
    return f"{plain[: 62 - len(stamp)].rstrip('-')}-{stamp}"
