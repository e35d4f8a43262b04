# SPDX-License-Identifier: Apache-2.0
"""Due work: what workers could do now, by which pools are scaled.

Unlike unfinished work (`adapter.ledger.queries.progress`), it excludes what no worker could do now:
groups in their quiet time, retries that wait for their delay, runs at another platform that need
not be asked about yet, exports to destinations on hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Double, Table, cast, func, null, select, union_all

from adapter.ledger.database import Ledger
from adapter.ledger.leases import free
from adapter.ledger.queries.facts import Unfinished
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
from adapter.models import SUBMISSION_STATES, ExportState, GroupState, JobState

#: What may be claimed, by stage: a table, and the SQL condition that a row is due and free.
Questions = Mapping[str, Sequence[tuple[Table, ColumnElement[bool]]]]

_SINCE: dict[tuple[str, str], ColumnElement[Any]] = {
    ("grouping", "groups"): groups.c.look_at,
    ("submission", "jobs"): jobs.c.due_at,
    ("submission", "cancellations"): cancellations.c.due_at,
    ("pipeline", "jobs"): jobs.c.due_at,
    ("export", "exports"): exports.c.due_at,
    ("export", "tasks"): func.coalesce(tasks.c.report_due_at, now()),
    ("reclamation", "arrivals"): arrivals.c.registered_at,
    ("reclamation", "groups"): groups.c.closed_at,
    ("reclamation", "meta"): cast(meta.c.value, Double),
}
#: The rows that a worker of the stage may have leased.
_LEASED: dict[str, tuple[Table, ColumnElement[bool]]] = {
    "grouping": (groups, groups.c.state.in_((GroupState.OPEN, GroupState.CLOSING))),
    "submission": (jobs, jobs.c.state.in_((*SUBMISSION_STATES, JobState.HANDED_OVER))),
    "pipeline": (jobs, jobs.c.state == JobState.STARTED),
    "export": (exports, exports.c.state.in_((ExportState.PENDING, ExportState.SENDING))),
    "reclamation": (groups, groups.c.state == GroupState.RECLAIMING),
}


def due(ledger: Ledger, questions: Questions, lease_seconds: float) -> dict[str, Unfinished]:
    """Return the work that could be done now or is being done, by stage.

    `oldest_seconds` is the time for which the oldest unclaimed work has been due; None if there is
    none.  Files in incoming/ are not included: the spool lists them.

    Parameters
    ----------
    ledger : Ledger
        The ledger.
    questions : mapping
        What may be claimed, by stage.
    lease_seconds : float
        Length of a lease.
    """
    with ledger.read() as connection:
        return {
            stage: _ask(connection, stage, candidates, lease_seconds)
            for stage, candidates in questions.items()
        }


def _ask(
    connection: Connection,
    stage: str,
    candidates: Sequence[tuple[Table, ColumnElement[bool]]],
    lease_seconds: float,
) -> Unfinished:
    table, leased = _LEASED[stage]
    rows = [
        select(cast(null(), Double).label("since"))
        .select_from(table)
        .where(leased, table.c.lease_token.is_not(None), ~free(table, lease_seconds))
    ]
    rows += [
        select(_SINCE[stage, candidate.name].label("since")).select_from(candidate).where(condition)
        for candidate, condition in candidates
    ]
    work = union_all(*rows).subquery()
    amount, age = connection.execute(select(func.count(), now() - func.min(work.c.since))).one()
    return Unfinished(amount=amount, oldest_seconds=None if age is None else max(0.0, age))
