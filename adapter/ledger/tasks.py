# SPDX-License-Identifier: Apache-2.0
"""Tasks: a job's results, as the Results Service hands them to the Storage SCU.

A task of a job of ours is made in the transaction that makes the job `succeeded`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, insert

from adapter.ledger.schema import exports, now, task_files, tasks
from adapter.models import ExportState, ReportState, export_id, task_id


@dataclass(frozen=True, slots=True)
class TaskFile:
    """One file of a task.

    Attributes
    ----------
    path : str
        Its name in the job's result folder.
    size : int
        Bytes of the whole file.
    digest : str
        SHA-256 of the transfer syntax and the data set's bytes, in hexadecimal.
    """

    path: str
    size: int
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    digest: str


def create_task(
    connection: Connection,
    job: str,
    files: Sequence[TaskFile],
    destinations: Sequence[str],
    *,
    agent: str,
    priority: int,
) -> str:
    """Create the task of a job's results and its export to each destination; return its id.

    Parameters
    ----------
    job : str
        The id of the job whose results they are.
    files : sequence of TaskFile
        What to send, in order.
    destinations : sequence of str
        Names of destinations; none if the results are not exported.
    agent : str
        The agent that exports it: the Storage SCU's AE title.
    priority : int
        Order among the exports that wait.
    """
    task = task_id(job)
    connection.execute(
        insert(tasks).values(
            id=task,
            job_id=job,
            agent=agent,
            remote=False,
            report=ReportState.NONE,
            created_at=now(),
        )
    )
    for number, file in enumerate(files, start=1):
        connection.execute(
            insert(task_files).values(
                task_id=task,
                number=number,
                path=file.path,
                size=file.size,
                sop_class_uid=file.sop_class_uid,
                sop_instance_uid=file.sop_instance_uid,
                transfer_syntax_uid=file.transfer_syntax_uid,
                digest=file.digest,
            )
        )
    for destination in dict.fromkeys(destinations):
        connection.execute(
            insert(exports).values(
                id=export_id(task, destination),
                task_id=task,
                destination=destination,
                state=ExportState.PENDING,
                priority=priority,
                failed=False,
                due_at=now(),
                created_at=now(),
                updated_at=now(),
            )
        )
    return task
