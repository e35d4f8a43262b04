# SPDX-License-Identifier: Apache-2.0
"""Queries about jobs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, select

from adapter.ledger.database import Ledger
from adapter.ledger.payload import in_quarantine
from adapter.ledger.queries.facts import JobFacts, Page
from adapter.ledger.queries.ids import row_before, whole_id
from adapter.ledger.queries.paging import newest_first, split
from adapter.ledger.schema import arrivals, groups, jobs, now
from adapter.models import JobState, Priority


def list_jobs(
    ledger: Ledger,
    *,
    state: JobState | None = None,
    outcome: str | None = None,
    limit: int = 100,
    after: str | None = None,
) -> Page[JobFacts]:
    """Return a page of jobs, newest first.

    Parameters
    ----------
    state : JobState, optional
        Only jobs in this state.
    outcome : str, optional
        Only jobs whose last try ended so.
    limit : int
        Jobs on the page.
    after : str, optional
        The last job of the previous page.
    """
    query = _jobs()
    if state is not None:
        query = query.where(jobs.c.state == state)
    if outcome is not None:
        query = query.where(jobs.c.outcome == outcome)
    with ledger.read() as connection:
        page = newest_first(query, jobs, limit, row_before(connection, after, jobs.c.id))
        rows, following = split(connection.execute(page).all(), limit)
        return Page[JobFacts](items=_facts(connection, rows), next=following)


def find_job(ledger: Ledger, job: str) -> JobFacts | None:
    """Return the job whose id is, or begins with, `job`; None if there is none."""
    with ledger.read() as connection:
        rows = connection.execute(
            _jobs().where(jobs.c.id == whole_id(connection, job, jobs.c.id))
        ).all()
        return next(iter(_facts(connection, rows)), None)


def jobs_where(connection: Connection, condition: ColumnElement[bool]) -> list[JobFacts]:
    """Return the jobs that meet a condition, oldest first."""
    rows = connection.execute(_jobs().where(condition).order_by(jobs.c.created_at, jobs.c.name))
    return _facts(connection, rows.all())


def studies_of_groups(connection: Connection, ids: Collection[str]) -> dict[str, list[str]]:
    """Return the Study Instance UIDs of each group."""
    found: dict[str, list[str]] = defaultdict(list)
    rows = connection.execute(
        select(arrivals.c.group_id, arrivals.c.study_instance_uid)
        .where(arrivals.c.group_id.in_(ids), arrivals.c.study_instance_uid.is_not(None))
        .distinct()
        .order_by(arrivals.c.study_instance_uid)
    )
    for group, study in rows:
        found[group].append(study)
    return found


def _jobs() -> Select[Any]:
    return select(
        jobs,
        groups.c.called_ae_title,
        groups.c.generation,
        groups.c.instances,
        and_(jobs.c.lease_token.is_not(None), jobs.c.lease_until > now()).label("working"),
    ).join(groups, jobs.c.group_id == groups.c.id)


def _facts(connection: Connection, rows: Collection[Any]) -> list[JobFacts]:
    group_ids = {row.group_id for row in rows}
    studies = studies_of_groups(connection, group_ids)
    lacking = in_quarantine(connection, group_ids)
    return [
        JobFacts.model_validate(
            {
                **row._asdict(),
                "priority": Priority(row.priority).name.lower(),
                "studies": studies.get(row.group_id, []),
                "in_quarantine": lacking.get(row.group_id, 0),
            }
        )
        for row in rows
    ]
