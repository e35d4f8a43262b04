# SPDX-License-Identifier: Apache-2.0
"""Rows of a ledger as the stages leave them, with the files that belong to them."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Table, insert, select, text, update

from adapter.core import Adapter
from adapter.files import write_durably
from adapter.ledger import configuration, schema
from adapter.models import (
    AETitle,
    ArrivalId,
    EntityKind,
    Priority,
    export_id,
    group_id,
    job_id,
    task_id,
)


def everything_in(adapter: Adapter) -> bytes:
    """Return all that the ledger holds, as far as it can be got at."""
    adapter.ledger.close()
    files = b"".join(p.read_bytes() for p in adapter.settings.data.glob("ledger.sqlite*"))
    with adapter.ledger.read() as connection:
        rows = [connection.execute(select(t)).all() for t in schema.metadata.sorted_tables]
    return files + repr(rows).encode()


def lose_ledger(adapter: Adapter) -> None:
    """Lose the ledger for good: an empty one takes its place."""
    with adapter.ledger.write() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
    adapter.close()
    for path in adapter.settings.data.glob("ledger.sqlite*"):
        path.unlink()


STUDY = "1.2.826.0.1.3680043.8.498.1"
#: An hour ago: what was written then is not in flight now.
LONG_AGO = time.time() - 3600


def add_row(adapter: Adapter, table: Table, **values: Any) -> None:
    """Insert a row."""
    with adapter.ledger.write() as connection:
        connection.execute(insert(table).values(**values))


def change_rows(adapter: Adapter, table: Table, *where: Any, **values: Any) -> None:
    """Change rows behind the stages' back."""
    with adapter.ledger.write() as connection:
        connection.execute(update(table).where(*where).values(**values))


def add_ae_title(adapter: Adapter, title: str = "BRAIN") -> int:
    """Configure an AE title with one pipeline, `lung`, and return its version."""
    entity = AETitle(ae_title=title, processor_settings={"pipeline-lung": "lung-1"})
    return configuration.put(adapter.ledger, EntityKind.AE_TITLE, entity, replace=False)


def add_arrival(
    adapter: Adapter,
    version: int,
    number: int = 1,
    *,
    data: bytes | None = b"twelve bytes",
    association: str = "0123456789ab",
    at: float = LONG_AGO,
    state: str = "registered",
    study: str | None = STUDY,
    **values: Any,
) -> str:
    """Add an acknowledged file, with its bytes unless `data` is None; return its id."""
    arrival = str(ArrivalId(at + number, association, number, version))
    described = state in {"registered", "discarded"} or study is not None
    row: dict[str, Any] = {
        "id": arrival,
        "state": state,
        "version": version,
        "association": association,
        "received_at": at + number,
        "study_instance_uid": study if described else None,
    }
    if state != "received":
        row["registered_at"] = at + number + 1
    if described:
        row |= {
            "calling_ae_title": "MODALITY",
            "called_ae_title": "BRAIN",
            "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
            "sop_instance_uid": f"{study}.{association[:2].strip('0') or 0}.{number}",
            "series_instance_uid": f"{study}.0",
            "transfer_syntax_uid": "1.2.840.10008.1.2.1",
            "size": len(data or b""),
            "digest": "0" * 64,
        }
    add_row(adapter, schema.arrivals, **(row | values))
    if data is not None:
        paths = {
            "received": adapter.spool.incoming_path(arrival),
            "registered": adapter.spool.instance_path(arrival),
            "discarded": adapter.spool.instance_path(arrival),
            "quarantined": adapter.spool.quarantine_path(arrival),
        }
        write_durably(paths[state], data)
    return arrival


def add_group(
    adapter: Adapter, version: int, *, generation: int = 1, state: str = "open", **values: Any
) -> str:
    """Add a group of the study and return its id."""
    group = group_id(version, STUDY, generation)
    closed = {} if state == "open" else {"closed_at": LONG_AGO + 65, "close_reason": "quiet"}
    row = {
        "id": group,
        "version": version,
        "called_ae_title": "BRAIN",
        "key": STUDY,
        "generation": generation,
        "state": state,
        "opened_at": LONG_AGO + 1,
        "newest_at": LONG_AGO + 60,
        "due_at": LONG_AGO + 65,
        "maximum_at": LONG_AGO + 3660,
        "look_at": LONG_AGO + 65,
        "instances": 1,
        **closed,
    }
    add_row(adapter, schema.groups, **(row | values))
    return group


def add_job(
    adapter: Adapter,
    group: str,
    *,
    pipeline: str = "lung",
    state: str = "queued",
    at: float = LONG_AGO + 65,
    **values: Any,
) -> str:
    """Add a job of a group and return its id."""
    job = job_id(group, pipeline)
    row = {
        "id": job,
        "group_id": group,
        "pipeline": pipeline,
        "pipeline_id": f"{pipeline}-1",
        "name": f"brain-{pipeline}-{job[:8]}",
        "priority": Priority.NORMAL,
        "retry_delay": 5.0,
        "state": state,
        "due_at": at,
        "created_at": at,
        "updated_at": at,
    }
    add_row(adapter, schema.jobs, **(row | values))
    return job


def add_task(adapter: Adapter, job: str, files: int = 2, **values: Any) -> str:
    """Add the task of a job's results, with their files of eight bytes each; return its id."""
    task = task_id(job)
    row = {
        "id": task,
        "job_id": job,
        "agent": "ClaraSCU",
        "remote": False,
        "report": "none",
        "created_at": LONG_AGO + 70,
    }
    add_row(adapter, schema.tasks, **(row | values))
    folder = adapter.spool.result_folder(job)
    folder.mkdir()
    for number in range(1, files + 1):
        (folder / f"{number}.dcm").write_bytes(b"8 bytes.")
        add_row(
            adapter,
            schema.task_files,
            task_id=task,
            number=number,
            path=f"{number}.dcm",
            size=8,
            sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
            sop_instance_uid=f"{STUDY}.9.{number}",
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            digest="0" * 64,
        )
    return task


def add_export(
    adapter: Adapter,
    task: str,
    destination: str = "PACS",
    *,
    state: str = "pending",
    receipts: dict[int, str] | None = None,
    at: float = LONG_AGO + 70,
    **values: Any,
) -> str:
    """Add a task's export to a destination, with receipts (outcomes by file); return its id."""
    export = export_id(task, destination)
    row = {
        "id": export,
        "task_id": task,
        "destination": destination,
        "state": state,
        "priority": Priority.NORMAL,
        "due_at": at,
        "failed": False,
        "created_at": at,
        "updated_at": at,
    }
    add_row(adapter, schema.exports, **(row | values))
    for number, outcome in (receipts or {}).items():
        add_row(
            adapter,
            schema.receipts,
            export_id=export,
            number=number,
            outcome=outcome,
            status=0 if outcome == "stored" else 0xA700,
            reason=None if outcome == "stored" else "out of resources",
            tries=1,
            updated_at=at,
        )
    return export
