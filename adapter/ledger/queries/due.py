# SPDX-License-Identifier: Apache-2.0
"""How much work there is for workers now: what pools are scaled by.

Unlike what is unfinished (`adapter.ledger.queries.progress`) it leaves out what no worker could do
now: groups in their quiet time, retries whose delay runs, runs that a platform is at, destinations
on hold.
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

#: What may be claimed, by stage: a table, and the condition that a row of it is due and free.
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
#: Which rows a worker of the stage may hold.
_HELD: dict[str, tuple[Table, ColumnElement[bool]]] = {
    "grouping": (groups, groups.c.state == GroupState.OPEN),
    "submission": (jobs, jobs.c.state.in_((*SUBMISSION_STATES, JobState.HANDED_OVER))),
    "pipeline": (jobs, jobs.c.state == JobState.STARTED),
    "export": (exports, exports.c.state.in_((ExportState.PENDING, ExportState.SENDING))),
    "reclamation": (groups, groups.c.state == GroupState.RECLAIMING),
}


def due(ledger: Ledger, questions: Questions, lease_seconds: float) -> dict[str, Unfinished]:
    """Return the work that could be done now or is being done, by stage.

    `oldest_seconds` is how long work that nobody does has been due; None if there is none.  What
    waits in incoming/ is the spool's to tell.

    Parameters
    ----------
    ledger : Ledger
        The ledger.
    questions : mapping
        What may be claimed, by stage.
    lease_seconds : float
        How long a lease holds.
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
    table, held = _HELD[stage]
    rows = [
        select(cast(null(), Double).label("since"))
        .select_from(table)
        .where(held, table.c.lease_token.is_not(None), ~free(table, lease_seconds))
    ]
    rows += [
        select(_SINCE[stage, candidate.name].label("since")).select_from(candidate).where(condition)
        for candidate, condition in candidates
    ]
    work = union_all(*rows).subquery()
    amount, age = connection.execute(select(func.count(), now() - func.min(work.c.since))).one()
    return Unfinished(amount=amount, oldest_seconds=None if age is None else max(0.0, age))
