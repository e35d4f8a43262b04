# SPDX-License-Identifier: Apache-2.0
"""Payload: the instances of a job, what it lacks, and their origin.  Reads only."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, distinct, exists, func, literal, or_, select

from adapter.ledger.configuration import ae_title_version, first_version, is_of_life
from adapter.ledger.database import Ledger
from adapter.ledger.jobs import Job
from adapter.ledger.schema import arrivals, groups, jobs
from adapter.models import AETitle, ArrivalState


@dataclass(frozen=True, slots=True)
class GroupFile:
    """One instance of a job's group: its arrival, SOP Instance UID and size in bytes."""

    arrival: str
    sop_instance_uid: str
    size: int


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a job's instances.

    Attributes
    ----------
    called_ae_title : str
        The AE title that they were sent to.
    ae_title : AETitle or None
        Its configuration, in the version that the group was opened with.
    generation : int
        Number of the group among those of its key: 1 for the first, more for late instances.
    earlier_jobs : tuple of str
        The jobs of the same pipeline for earlier generations.
    in_quarantine : int
        How many instances it lacks, as `in_quarantine` counts them.
    patient_conflict : bool
        Whether a study of it has instances of several patients.
    """

    called_ae_title: str
    ae_title: AETitle | None
    generation: int
    earlier_jobs: tuple[str, ...]
    in_quarantine: int
    patient_conflict: bool


def files_of(ledger: Ledger, job: Job) -> list[GroupFile]:
    """Return the instances of a job's group, oldest first."""
    with ledger.read() as connection:
        rows = connection.execute(
            select(arrivals.c.id, arrivals.c.sop_instance_uid, arrivals.c.size)
            .where(arrivals.c.group_id == job.group_id, arrivals.c.state == ArrivalState.REGISTERED)
            .order_by(arrivals.c.id)
        ).all()
    return [GroupFile(row.id, row.sop_instance_uid, row.size) for row in rows]


def origin_of(ledger: Ledger, job: Job) -> Origin:
    """Return the origin of a job's instances."""
    with ledger.read() as connection:
        group = connection.execute(select(groups).where(groups.c.id == job.group_id)).one()
        earlier = connection.execute(
            select(jobs.c.id)
            .join(groups, jobs.c.group_id == groups.c.id)
            .where(
                is_of_life(groups.c.version, literal(first_version(connection, group.version))),
                groups.c.key == group.key,
                groups.c.generation < group.generation,
                jobs.c.pipeline == job.pipeline,
            )
            .order_by(groups.c.generation)
        ).scalars()
        return Origin(
            group.called_ae_title,
            ae_title_version(connection, group.version),
            group.generation,
            tuple(earlier),
            in_quarantine(connection, [group.id]).get(group.id, 0),
            group.patient_conflict,
        )


def in_quarantine(connection: Connection, group_ids: Collection[str]) -> dict[str, int]:
    """Return how many acknowledged instances each group lacks since they are in quarantine.

    Those count that came with an association of the group's instances, unless they are known to be
    of a study that the group has nothing of, or the group has the same SOP instance.  A group that
    lacks nothing is left out.
    """
    kept, mine, same = arrivals.alias("kept"), arrivals.alias("mine"), arrivals.alias("same")
    came_with = (
        select(arrivals.c.group_id, arrivals.c.association)
        .where(arrivals.c.group_id.in_(group_ids), arrivals.c.state == ArrivalState.REGISTERED)
        .distinct()
        .subquery()
    )
    of_its_studies = exists().where(
        mine.c.group_id == came_with.c.group_id,
        mine.c.study_instance_uid == kept.c.study_instance_uid,
    )
    is_there = exists().where(
        same.c.group_id == came_with.c.group_id,
        same.c.state == ArrivalState.REGISTERED,
        same.c.sop_instance_uid == kept.c.sop_instance_uid,
    )
    rows = connection.execute(
        select(came_with.c.group_id, func.count(distinct(kept.c.id)).label("amount"))
        .select_from(kept.join(came_with, kept.c.association == came_with.c.association))
        .where(
            kept.c.state == ArrivalState.QUARANTINED,
            kept.c.deleted_at.is_(None),
            or_(kept.c.study_instance_uid.is_(None), of_its_studies),
            ~is_there,
        )
        .group_by(came_with.c.group_id)
    )
    return {row.group_id: row.amount for row in rows}
