# SPDX-License-Identifier: Apache-2.0
"""Groups: closed by grouping, once, together with the jobs that they become.

``open -> closed -> submitted -> reclaiming -> reclaimed``.  Registration opens and pushes them
(`adapter.ledger.arrivals`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, insert, or_, update

from adapter.ledger import events, leases
from adapter.ledger.database import Ledger
from adapter.ledger.leases import Lease, due, free
from adapter.ledger.schema import groups, jobs, now
from adapter.models import GroupState, JobState, Priority, job_id

#: The longest a group legally stays open (seconds).
LONGEST_WAIT = 7 * 86400.0

#: Which group is looked at first.
ORDER = (groups.c.look_at,)

#: Why a group was closed.
QUIET, MAXIMUM_WAIT = "quiet", "maximum-wait"

#: Seconds between looks at a group that waits for older instances to be registered.
GUARD_SECONDS = 1.0


def close_due(lease_seconds: float) -> ColumnElement[bool]:
    """Return the condition that the grouping stage should look at a group."""
    look = or_(due(groups.c.look_at, LONGEST_WAIT), groups.c.maximum_at <= now())
    return and_(groups.c.state == GroupState.OPEN, look, free(groups, lease_seconds))


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
) -> list[str]:
    """Close a group and create its jobs, in one transaction.

    Parameters
    ----------
    requests : sequence of tuple
        Pipeline name, pipeline id, priority and retry delay (seconds) of each job.
    reason : str
        ``QUIET`` if the quiet time has passed, ``MAXIMUM_WAIT`` if the maximum wait has.

    Returns
    -------
    list of str
        The jobs' ids; empty if an instance came in the meantime and the group stays open.
    """
    time_has_come = due(groups.c.due_at, LONGEST_WAIT)
    if reason == MAXIMUM_WAIT:
        time_has_come = groups.c.maximum_at <= now()
    with ledger.write() as connection:
        closed = connection.execute(
            update(groups)
            .where(
                groups.c.id == group,
                groups.c.lease_token == lease.token,
                groups.c.state == GroupState.OPEN,
                time_has_come,
            )
            .values(
                state=GroupState.CLOSED,
                closed_at=now(),
                close_reason=reason,
                lease_token=None,
                lease_until=None,
                lease_expiries=0,
            )
            .returning(groups)
        ).first()
        if closed is None:
            leases.finish(connection, lease, group)
            return []
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
    return created


def job_name(called_ae_title: str, pipeline: str, at: float, job: str) -> str:
    """Return ``<aet>-<pipeline>-<UTC yyyyMMddHHmmss>-<8 digits of the job's id>``.

    At most 63 characters of a-z, 0-9 and single hyphens: what is too long is cut in front of the
    time, so that a name is unique and carries no PHI.
    """
    stamp = f"{datetime.fromtimestamp(at, UTC):%Y%m%d%H%M%S}-{job[:8]}"
    plain = re.sub(r"[^a-z0-9]+", "-", f"{called_ae_title}-{pipeline}".lower()).strip("-")
    return f"{plain[: 62 - len(stamp)].rstrip('-')}-{stamp}"
