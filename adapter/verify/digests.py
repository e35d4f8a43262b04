# SPDX-License-Identifier: Apache-2.0
"""The bytes themselves: the digest of every file, compared with the one in the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import select

from adapter.core import Adapter
from adapter.dicom.part10 import digest_data_set, read_file_meta
from adapter.errors import UnreadableInstance
from adapter.ledger.schema import arrivals, groups, jobs, task_files, tasks
from adapter.models import ArrivalState
from adapter.verify.difference import Difference
from adapter.verify.steps import GOING

_REMEDY = "check the disk; restore the file from a backup"


def compare(adapter: Adapter) -> set[Difference]:
    """Return the files whose bytes differ from those that were acknowledged or published.

    A missing file is not reported here: it may have been reclaimed in the meantime.
    """
    return {
        Difference(kind, which, problem, _REMEDY)
        for kind, which, name, path, digest in _files(adapter)
        if (problem := _problem(name, path, digest)) is not None
    }


def _problem(name: str, path: Path, digest: str) -> str | None:
    try:
        with path.open("rb") as file:
            found = digest_data_set(file, read_file_meta(file).get(0x0010, ""))
    except FileNotFoundError:
        return None
    except UnreadableInstance:
        return f"{name} is not a DICOM file any more"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    return None if found == digest else f"the bytes of {name} have changed"


def _files(adapter: Adapter) -> Iterator[tuple[str, str, str, Path, str]]:
    """Yield the files that have a digest: kind, id, name, path and digest."""
    with adapter.ledger.read() as connection:
        received = connection.execute(
            select(arrivals.c.id, arrivals.c.digest).where(
                arrivals.c.state == ArrivalState.REGISTERED,
                arrivals.c.deleted_at.is_(None),
                arrivals.c.digest.is_not(None),
            )
        ).all()
        produced = connection.execute(
            select(tasks.c.job_id, task_files.c.path, task_files.c.digest)
            .select_from(
                task_files.join(tasks, task_files.c.task_id == tasks.c.id)
                .join(jobs, tasks.c.job_id == jobs.c.id)
                .join(groups, jobs.c.group_id == groups.c.id)
            )
            .where(
                ~tasks.c.remote,
                groups.c.state.not_in(GOING),
                task_files.c.digest.is_not(None),
            )
        ).all()
    for arrival, digest in received:
        yield "arrival", arrival, "its file", adapter.spool.instance_path(arrival), digest
    for job, name, digest in produced:
        yield "results", job, f"its file {name}", adapter.spool.result_folder(job) / name, digest
