# SPDX-License-Identifier: Apache-2.0
"""A study's timeline, from its associations to its exports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, func, or_, select

from adapter.ledger.database import Ledger
from adapter.ledger.queries.exports import exports_where, of_job
from adapter.ledger.queries.facts import EventFacts, Group, ReceivedAssociation, Timeline
from adapter.ledger.queries.ids import whole_id
from adapter.ledger.queries.jobs import jobs_where
from adapter.ledger.queries.studies import summary
from adapter.ledger.schema import arrivals, events, exports, groups, jobs, tasks
from adapter.models import ArrivalState

#: Most events of one timeline.
_MOST_EVENTS = 10_000


def find_timeline(ledger: Ledger, study_instance_uid: str) -> Timeline | None:
    """Return the timeline of a study, or None if no instance of it was ever received.

    Parameters
    ----------
    study_instance_uid : str
        Its UID, or a beginning that no other study has.

    Notes
    -----
    A group with another grouping value than the study may contain other studies too: its jobs and
    exports are shown completely.  Results of a remote platform are found by the platform's job id.
    """
    with ledger.read() as connection:
        study = whole_id(connection, study_instance_uid, arrivals.c.study_instance_uid)
        received = None if study is None else connection.execute(summary([study])).first()
        if study is None or received is None:
            return None
        parts = _parts(connection, study)
        group_rows = _groups(connection, study)
        group_ids = [row.id for row in group_rows]
        found_jobs = jobs_where(connection, jobs.c.group_id.in_(group_ids))
        export_ids = select(exports.c.id).join(tasks).join(jobs, of_job())
        found_exports = exports_where(
            connection, exports.c.id.in_(export_ids.where(jobs.c.group_id.in_(group_ids)))
        )
        happened = _events(
            connection,
            {part.association for part in parts},
            group_ids,
            [job.id for job in found_jobs],
            [export.id for export in found_exports],
        )
        by_state = Counter[str]()
        for part in parts:
            by_state[part.state] += part.amount
        return Timeline.model_validate(
            {
                **received._asdict(),
                "registered": by_state[ArrivalState.REGISTERED],
                "received": by_state[ArrivalState.RECEIVED],
                "discarded": _reasons(parts, ArrivalState.DISCARDED),
                "quarantined": _reasons(parts, ArrivalState.QUARANTINED),
                "associations": _associations(connection, parts, happened),
                "groups": [Group.model_validate(row._asdict()) for row in group_rows],
                "jobs": found_jobs,
                "exports": found_exports,
                "events": happened,
            }
        )


def _parts(connection: Connection, study: str) -> Sequence[Any]:
    """Count a study's arrivals by association, AE titles, state and reason."""
    columns = (
        arrivals.c.association,
        arrivals.c.calling_ae_title,
        arrivals.c.called_ae_title,
        arrivals.c.state,
        arrivals.c.reason,
    )
    return connection.execute(
        select(
            *columns,
            func.count().label("amount"),
            func.coalesce(func.sum(arrivals.c.size), 0).label("size"),
            func.min(arrivals.c.received_at).label("first"),
            func.max(arrivals.c.received_at).label("last"),
        )
        .where(arrivals.c.study_instance_uid == study)
        .group_by(*columns)
        .order_by(func.min(arrivals.c.received_at))
    ).all()


def _groups(connection: Connection, study: str) -> Sequence[Any]:
    ids = select(arrivals.c.group_id).where(arrivals.c.study_instance_uid == study)
    return connection.execute(
        select(groups)
        .where(groups.c.id.in_(ids))
        .order_by(groups.c.opened_at, groups.c.called_ae_title, groups.c.generation)
    ).all()


def _events(
    connection: Connection,
    associations: Collection[str],
    group_ids: Collection[str],
    job_ids: Collection[str],
    export_ids: Collection[str],
) -> list[EventFacts]:
    rows = connection.execute(
        select(events)
        .where(
            or_(
                events.c.association.in_(associations),
                events.c.group_id.in_(group_ids),
                events.c.job_id.in_(job_ids),
                events.c.export_id.in_(export_ids),
            )
        )
        .order_by(events.c.at, events.c.id)
        .limit(_MOST_EVENTS)
    )
    return [EventFacts.model_validate(row._asdict()) for row in rows]


def _reasons(parts: Sequence[Any], state: ArrivalState) -> dict[str, int]:
    found = Counter[str]()
    for part in parts:
        if part.state == state:
            found[part.reason or "unknown"] += part.amount
    return dict(found)


def _associations(
    connection: Connection, parts: Sequence[Any], happened: Sequence[EventFacts]
) -> list[ReceivedAssociation]:
    ids = list(dict.fromkeys(part.association for part in parts))
    unidentified: dict[str, int] = {
        row.association: row.amount
        for row in connection.execute(
            select(arrivals.c.association, func.count().label("amount"))
            .where(arrivals.c.association.in_(ids), arrivals.c.study_instance_uid.is_(None))
            .group_by(arrivals.c.association)
        )
    }
    peers = {
        event.association: str(event.detail["peer"]) for event in happened if "peer" in event.detail
    }
    found = []
    for association in ids:
        mine = [part for part in parts if part.association == association]
        found.append(
            ReceivedAssociation.model_validate(
                {
                    "association": association,
                    "calling_ae_title": mine[0].calling_ae_title,
                    "called_ae_title": mine[0].called_ae_title,
                    "peer": peers.get(association),
                    "arrivals": sum(part.amount for part in mine),
                    "size": sum(part.size for part in mine),
                    "first_received_at": min(part.first for part in mine),
                    "last_received_at": max(part.last for part in mine),
                    "unidentified": unidentified.get(association, 0),
                }
            )
        )
    return found
