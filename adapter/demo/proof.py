# SPDX-License-Identifier: Apache-2.0
"""The demo's proof: the PACS received, bit for bit, what the pipeline wrote."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from sqlalchemy import select

from adapter.dicom.part10 import digest_data_set, read_file_meta
from adapter.ledger import Ledger
from adapter.ledger.schema import task_files, tasks


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of transfer syntax and data set of each file, by SOP Instance UID."""
    found = {}
    for path in sorted(folder.rglob("*.dcm")):
        with path.open("rb") as file:
            meta = read_file_meta(file)
            found[meta[3]] = digest_data_set(file, meta[0x10])
    return found


def published(ledger: Ledger, jobs: Collection[str]) -> dict[str, str]:
    """Return the same for the files that pipelines wrote, as recorded before they were sent."""
    query = select(task_files.c.sop_instance_uid, task_files.c.digest).select_from(
        task_files.join(tasks, task_files.c.task_id == tasks.c.id)
    )
    with ledger.read() as connection:
        rows = connection.execute(query.where(tasks.c.job_id.in_(jobs)))
        return {row.sop_instance_uid: row.digest for row in rows}


def compare(written: Mapping[str, str], arrived: Mapping[str, str]) -> tuple[int, list[str]]:
    """Compare what pipelines wrote with what the PACS received.

    Returns
    -------
    tuple of int and list of str
        The number of identical files, and every difference.
    """
    problems = [f"{uid}: the PACS has not received it" for uid in written.keys() - arrived.keys()]
    problems += [f"{uid}: no pipeline wrote it" for uid in arrived.keys() - written.keys()]
    both = written.keys() & arrived.keys()
    problems += [
        f"{uid}: its data set differs from what the pipeline wrote"
        for uid in both
        if written[uid] != arrived[uid]
    ]
    same = sum(written[uid] == arrived[uid] for uid in both)
    return same, sorted(problems)
