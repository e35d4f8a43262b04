# SPDX-License-Identifier: Apache-2.0
"""Queries about exports: the files that each destination has confirmed, or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, func, or_, select

from adapter.ledger.database import Ledger
from adapter.ledger.queries.facts import (
    DestinationHold,
    ExportDetail,
    ExportFacts,
    Page,
    Unconfirmed,
)
from adapter.ledger.queries.ids import row_before, whole_id
from adapter.ledger.queries.jobs import studies_of_groups
from adapter.ledger.queries.paging import newest_first, split
from adapter.ledger.schema import exports, holds, jobs, now, receipts, task_files, tasks
from adapter.models import ExportState, Outcome, Priority


def list_exports(
    ledger: Ledger,
    *,
    state: ExportState | None = None,
    destination: str | None = None,
    reason: str | None = None,
    limit: int = 100,
    after: str | None = None,
) -> Page[ExportFacts]:
    """Return a page of exports, newest first.

    Parameters
    ----------
    state : ExportState, optional
        Only exports in this state.
    destination : str, optional
        Only exports to the destination of this name.
    reason : str, optional
        Only exports whose last try ended for this reason (its code).
    limit : int
        Exports on the page.
    after : str, optional
        The last export of the previous page.
    """
    query = _exports()
    if state is not None:
        query = query.where(exports.c.state == state)
    if destination is not None:
        query = query.where(exports.c.destination == destination)
    if reason is not None:
        query = query.where(exports.c.reason == reason)
    with ledger.read() as connection:
        page = newest_first(query, exports, limit, row_before(connection, after, exports.c.id))
        rows, following = split(connection.execute(page).all(), limit)
        items = [ExportFacts.model_validate(facts) for facts in _facts(connection, rows)]
        return Page[ExportFacts](items=items, next=following)


def find_export(ledger: Ledger, export: str) -> ExportDetail | None:
    """Return the export whose id is, or begins with, `export`, with its unconfirmed files."""
    with ledger.read() as connection:
        whole = whole_id(connection, export, exports.c.id)
        return next(iter(exports_where(connection, exports.c.id == whole)), None)


def exports_where(connection: Connection, condition: ColumnElement[bool]) -> list[ExportDetail]:
    """Return the exports that meet a condition, oldest first, with their unconfirmed files."""
    rows = connection.execute(
        _exports().where(condition).order_by(exports.c.created_at, exports.c.destination)
    ).all()
    return [
        ExportDetail.model_validate(
            {**facts, "unconfirmed": _unconfirmed(connection, facts["id"], facts["task_id"])}
        )
        for facts in _facts(connection, rows)
    ]


def of_job() -> ColumnElement[bool]:
    """Return the SQL condition on `tasks` and `jobs` that a task has a job's results."""
    return or_(
        tasks.c.job_id == jobs.c.id,
        and_(tasks.c.remote, tasks.c.job_id == jobs.c.platform_job_id),
    )


def hold_facts(row: Any) -> DestinationHold:
    """Return a row of `holds` as a model."""
    return DestinationHold.model_validate(row._asdict())


def _exports() -> Select[Any]:
    return select(
        exports,
        tasks.c.job_id,
        tasks.c.report,
        and_(exports.c.lease_token.is_not(None), exports.c.lease_until > now()).label("working"),
    ).join(tasks, exports.c.task_id == tasks.c.id)


def _facts(connection: Connection, rows: Collection[Any]) -> list[dict[str, Any]]:
    files, receipts_by = _counts(connection, rows)
    on_hold = {
        row.destination: hold_facts(row)
        for row in connection.execute(
            select(holds).where(
                holds.c.destination.in_({row.destination for row in rows}), holds.c.until > now()
            )
        )
    }
    studies = _studies(connection, {row.task_id for row in rows})
    return [
        {
            **row._asdict(),
            "priority": Priority(row.priority).name.lower(),
            "files": files[row.task_id],
            "stored": receipts_by[row.id, Outcome.STORED],
            "failed": receipts_by[row.id, Outcome.RETRY] + receipts_by[row.id, Outcome.REFUSED],
            "hold": on_hold.get(row.destination),
            "studies": studies.get(row.task_id, []),
        }
        for row in rows
    ]


def _counts(
    connection: Connection, rows: Collection[Any]
) -> tuple[Counter[str], Counter[tuple[str, str]]]:
    """Count the files of each task, and each export's receipts by outcome."""
    files = Counter(
        {
            row.task_id: row.amount
            for row in connection.execute(
                select(task_files.c.task_id, func.count().label("amount"))
                .where(task_files.c.task_id.in_({row.task_id for row in rows}))
                .group_by(task_files.c.task_id)
            )
        }
    )
    outcomes = Counter(
        {
            (export, outcome): amount
            for export, outcome, amount in connection.execute(
                select(receipts.c.export_id, receipts.c.outcome, func.count())
                .where(receipts.c.export_id.in_({row.id for row in rows}))
                .group_by(receipts.c.export_id, receipts.c.outcome)
            )
        }
    )
    return files, outcomes


def _studies(connection: Connection, task_ids: Collection[str]) -> dict[str, list[str]]:
    """Return the studies of each task's job."""
    rows = connection.execute(
        select(tasks.c.id, jobs.c.group_id).join(jobs, of_job()).where(tasks.c.id.in_(task_ids))
    ).all()
    by_group = studies_of_groups(connection, {row.group_id for row in rows})
    return {row.id: by_group.get(row.group_id, []) for row in rows}


def _unconfirmed(connection: Connection, export: str, task: str) -> list[Unconfirmed]:
    receipt = and_(receipts.c.export_id == export, receipts.c.number == task_files.c.number)
    rows = connection.execute(
        select(
            task_files.c.number,
            task_files.c.sop_instance_uid,
            receipts.c.outcome,
            receipts.c.status,
            func.coalesce(receipts.c.reason, task_files.c.problem).label("reason"),
            func.coalesce(receipts.c.tries, 0).label("tries"),
        )
        .select_from(task_files.outerjoin(receipts, receipt))
        .where(
            task_files.c.task_id == task,
            or_(receipts.c.outcome.is_(None), receipts.c.outcome != Outcome.STORED),
        )
        .order_by(task_files.c.number)
    )
    return [Unconfirmed.model_validate(row._asdict()) for row in rows]
