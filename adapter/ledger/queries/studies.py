# SPDX-License-Identifier: Apache-2.0
"""The list of studies: what was received of each, and the states of its jobs and exports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Select, case, distinct, exists, func, select

from adapter.ledger.database import Ledger
from adapter.ledger.hashes import several_patients
from adapter.ledger.queries.exports import of_job
from adapter.ledger.queries.facts import Page, Study
from adapter.ledger.queries.ids import arrival_before
from adapter.ledger.queries.paging import bounded, split
from adapter.ledger.schema import arrivals, exports, groups, jobs, tasks
from adapter.models import ArrivalState


def list_studies(ledger: Ledger, *, limit: int = 100, after: str | None = None) -> Page[Study]:
    """Return a page of studies; the study of the newest instance comes first.

    Parameters
    ----------
    limit : int
        Studies on the page.
    after : str, optional
        The `next` of the previous page.

    Notes
    -----
    Instances without a Study Instance UID belong to no study and are not listed.
    """
    query = _newest(bounded(limit), arrival_before(after))
    with ledger.read() as connection:
        rows, following = split(connection.execute(query).all(), limit)
        return Page[Study](
            items=_facts(connection, [row.study_instance_uid for row in rows]), next=following
        )


def summary(uids: Collection[str]) -> Select[Any]:
    """Return the query for what was received of some studies, one row each."""
    in_group = arrivals.c.state == ArrivalState.REGISTERED
    return (
        select(
            arrivals.c.study_instance_uid,
            func.count(distinct(case((in_group, arrivals.c.sop_instance_uid)))).label("instances"),
            func.count(distinct(case((in_group, arrivals.c.series_instance_uid)))).label("series"),
            func.coalesce(func.sum(case((in_group, arrivals.c.size))), 0).label("size"),
            func.min(arrivals.c.received_at).label("first_received_at"),
            func.max(arrivals.c.received_at).label("last_received_at"),
            several_patients(in_group).label("patient_conflict"),
        )
        .where(arrivals.c.study_instance_uid.in_(uids))
        .group_by(arrivals.c.study_instance_uid)
    )


def _newest(limit: int, after: str | None) -> Select[Any]:
    """Read the arrivals backwards (their ids sort by receive time), one row for each study.

    The inner query is one index lookup, so the cost of a page depends on the arrivals of its
    studies and not on the whole history.
    """
    newer = arrivals.alias()
    query = (
        select(arrivals.c.id, arrivals.c.study_instance_uid)
        .where(
            arrivals.c.study_instance_uid.is_not(None),
            ~exists().where(
                newer.c.study_instance_uid == arrivals.c.study_instance_uid,
                newer.c.id > arrivals.c.id,
            ),
        )
        .order_by(arrivals.c.id.desc())
        .limit(limit + 1)
    )
    return query if after is None else query.where(arrivals.c.id < after)


def _facts(connection: Connection, uids: list[str]) -> list[Study]:
    study = arrivals.c.study_instance_uid
    mine = study.in_(uids)
    received = {row.study_instance_uid: row._asdict() for row in connection.execute(summary(uids))}
    titles: dict[str, list[str]] = defaultdict(list)
    for uid, title in connection.execute(
        select(study, arrivals.c.called_ae_title)
        .where(mine, arrivals.c.called_ae_title.is_not(None))
        .distinct()
        .order_by(arrivals.c.called_ae_title)
    ):
        titles[uid].append(title)
    member = (
        select(study, arrivals.c.group_id)
        .where(mine, arrivals.c.group_id.is_not(None))
        .distinct()
        .subquery()
    )
    of_group = member.join(groups, groups.c.id == member.c.group_id)
    of_jobs = member.join(jobs, jobs.c.group_id == member.c.group_id)
    of_exports = of_jobs.join(tasks, of_job()).join(exports, exports.c.task_id == tasks.c.id)
    counts = {
        "arrivals": _by_state(connection, study, arrivals.c.state, arrivals, mine),
        "groups": _by_state(connection, member.c.study_instance_uid, groups.c.state, of_group),
        "jobs": _by_state(connection, member.c.study_instance_uid, jobs.c.state, of_jobs),
        "exports": _by_state(connection, member.c.study_instance_uid, exports.c.state, of_exports),
    }
    return [
        Study.model_validate(
            {
                **received[uid],
                "called_ae_titles": titles[uid],
                **{name: by_study.get(uid, {}) for name, by_study in counts.items()},
            }
        )
        for uid in uids
    ]


def _by_state(
    connection: Connection, study: Any, state: Any, source: Any, *where: Any
) -> dict[str, dict[str, int]]:
    """Count rows of `source` for each study, by state."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for uid, name, amount in connection.execute(
        select(study, state, func.count()).select_from(source).where(*where).group_by(study, state)
    ):
        found[uid][name] = amount
    return found
