# SPDX-License-Identifier: Apache-2.0
"""Payload: the instances of a job, and their origin.  Reads only."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select

from adapter.ledger.configuration import ae_title_version
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
    """

    called_ae_title: str
    ae_title: AETitle | None
    generation: int
    earlier_jobs: tuple[str, ...]


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
                groups.c.version == group.version,
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
        )
