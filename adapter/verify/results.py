# SPDX-License-Identifier: Apache-2.0
"""The output of pipelines: folders of jobs, and the rows of the files in them."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, and_, select

from adapter.core import Adapter
from adapter.ledger.housekeeping import without_row
from adapter.ledger.schema import groups, jobs, now, task_files, tasks
from adapter.models import GroupState, JobState
from adapter.verify.difference import Difference
from adapter.verify.listing import Listing
from adapter.verify.steps import GOING, expected_jobs


def compare(adapter: Adapter, listing: Listing) -> Iterator[Difference]:
    """Yield the differences between jobs' folders and their rows."""
    with adapter.ledger.read() as connection:
        known = {
            row.id: row
            for row in connection.execute(
                select(jobs.c.id, jobs.c.state, groups.c.state.label("group_state")).join(
                    groups, jobs.c.group_id == groups.c.id
                )
            )
        }
        to_come = _jobs_to_come(connection)
        files = _files_of_tasks(connection)
        young = _young_jobs(connection, adapter.settings.lag_seconds)
    rebuilding = _is_rebuilding(adapter, listing)
    for kind, folders in (("results", set(listing.results)), ("work", listing.work)):
        for job in folders:
            row = known.get(job)
            if row is None and not rebuilding and job not in to_come:
                problem = f"the ledger does not know the job that {kind}/ has a folder of"
                remedy = "copy the folder elsewhere if it is needed, and delete it by hand"
                yield Difference(kind, job, problem, remedy)
            elif row is not None and row.group_state == GroupState.RECLAIMED:
                problem = f"its group is reclaimed but it has a folder in {kind}/"
                yield Difference(kind, job, problem, "delete the folder by hand")
    for job, expected in files.items():
        if job not in young:
            yield from _files(adapter, listing, job, expected)
    for job, row in known.items():
        if row.state == JobState.SUCCEEDED and row.group_state not in GOING:
            for name in sorted(listing.results.get(job, {}).keys() - files.get(job, {}).keys()):
                problem = f"the ledger does not know its result {name}"
                yield Difference("results", job, problem, "move the file to another place by hand")


def _files(
    adapter: Adapter, listing: Listing, job: str, expected: dict[str, int | None]
) -> Iterator[Difference]:
    there = listing.results.get(job, {})
    remedy = (
        f"restore the file from a backup, or `exports discard` what cannot be sent of job {job}"
    )
    for name, size in expected.items():
        path = adapter.spool.result_folder(job) / name
        if name not in there and not path.exists():
            yield Difference("results", job, f"its file {name} is missing", remedy)
        elif size is not None and there.get(name, size) != size:
            problem = f"its file {name} has {there[name]} bytes instead of {size}"
            yield Difference("results", job, problem, remedy)


def _young_jobs(connection: Connection, lag_seconds: float) -> set[str]:
    """Return the jobs whose results are so new that this host may not see them yet."""
    young = tasks.c.created_at > now() - lag_seconds
    return set(connection.execute(select(tasks.c.job_id).where(~tasks.c.remote, young)).scalars())


def _files_of_tasks(connection: Connection) -> dict[str, dict[str, int | None]]:
    """Return the files that each job of ours should have in results/, with their sizes."""
    rows = connection.execute(
        select(tasks.c.job_id, task_files.c.path, task_files.c.size)
        .select_from(
            task_files.join(tasks, task_files.c.task_id == tasks.c.id)
            .join(jobs, tasks.c.job_id == jobs.c.id)
            .join(groups, jobs.c.group_id == groups.c.id)
        )
        .where(and_(~tasks.c.remote, groups.c.state.not_in(GOING)))
    )
    found: dict[str, dict[str, int | None]] = {}
    for row in rows:
        found.setdefault(row.job_id, {})[row.path] = row.size
    return found


def _jobs_to_come(connection: Connection) -> set[str]:
    """Return the ids of the jobs that open groups will get: their results may exist already."""
    to_close = groups.c.state.in_((GroupState.OPEN, GroupState.PARKED, GroupState.CLOSING))
    opened = connection.execute(select(groups).where(to_close)).all()
    return {job for of_group in expected_jobs(connection, opened).values() for job in of_group}


def _is_rebuilding(adapter: Adapter, listing: Listing) -> bool:
    """Return whether a rebuild is still in progress: then no job counts as unknown yet."""
    both = listing.incoming.keys() & listing.instances.keys()
    return any(True for _ in without_row(adapter.ledger, both))
