# SPDX-License-Identifier: Apache-2.0
"""Tasks to export: files in the spool, their rows, and an adapter that does not wait for long."""

from __future__ import annotations

import uuid
from dataclasses import replace

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from sqlalchemy import select

from adapter.dicom.part10 import part10_header
from adapter.ledger import configuration, tasks
from adapter.ledger.schema import events, exports, receipts, task_files
from adapter.models import DicomDestination, EntityKind
from tests.support_stages import CountingQueues, encode, make_instance
from tests.support_waiting import eventually
from workers import export
from workers.stage import Work, take_all

EXPORT = {
    "retry_delay_seconds": 0.05,
    "hold_minimum_seconds": 0.2,
    "hold_maximum_seconds": 0.5,
    "poll_frequency_ms": 50,
}
SCU = {"connect_seconds": 1.0, "association_seconds": 2.0, "response_seconds": 2.0}


def hasten(adapter, *, export=None, services=None, workers=None, **scu):
    """Return an adapter with short delays and changed settings."""
    settings = adapter.settings
    policy = settings.dicom.scu.export.model_copy(update={**EXPORT, **(export or {})})
    changed = settings.dicom.scu.model_copy(update={**SCU, **scu, "export": policy})
    results = settings.services.results_service.model_copy(update=services or {})
    updates = {
        "dicom": settings.dicom.model_copy(update={"scu": changed}),
        "services": settings.services.model_copy(update={"results_service": results}),
        "workers": settings.workers.model_copy(update=workers or {}),
    }
    return replace(adapter, settings=settings.model_copy(update=updates))


def add_destination(adapter, port, name="PACS", *, replace=False):
    entity = DicomDestination(name=name, ae_title="PACS", host_ip="127.0.0.1", port=port)
    configuration.put(adapter.ledger, EntityKind.DESTINATION, entity, replace=replace)


def instance_file():
    """Return a small DICOM file's SOP Instance UID and bytes."""
    ds = make_instance()
    head = part10_header(
        sop_class_uid=CTImageStorage,
        sop_instance_uid=ds.SOPInstanceUID,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        calling_ae_title="T",
        called_ae_title="T",
    )
    return str(ds.SOPInstanceUID), head + encode(ds)


def add_task(adapter, files=3, destinations=("PACS",), priority=2):
    """Publish a job's results and create their task; return the SOP Instance UIDs in order.

    Parameters
    ----------
    files : int or list of bytes
        How many small instances, or the contents of the files.
    """
    job = str(uuid.uuid4())
    folder = adapter.spool.result_folder(job)
    folder.mkdir()
    described, uids = [], []
    for number in range(files if isinstance(files, int) else len(files)):
        uid, content = (
            instance_file() if isinstance(files, int) else (f"1.2.{number}", files[number])
        )
        name = f"{number:04d}.dcm"
        (folder / name).write_bytes(content)
        uids.append(uid)
        described.append(
            tasks.TaskFile(name, len(content), CTImageStorage, uid, ExplicitVRLittleEndian, "0")
        )
    with adapter.ledger.write() as connection:
        tasks.create_task(
            connection, job, described, destinations, agent="ClaraSCU", priority=priority
        )
    return uids


def make_work(adapter):
    return Work(adapter, CountingQueues())


def run(adapter):
    """Let one worker export what is due now."""
    return take_all(make_work(adapter), export.take)


def run_until(adapter, check, seconds=20.0):
    """Let a worker export, again and again, until something holds."""
    return eventually(lambda: (run(adapter), check())[1], seconds)


def rows(adapter, table, *where, order=None):
    with adapter.ledger.read() as connection:
        return list(connection.execute(select(table).where(*where).order_by(order)).all())


def one_export(adapter, destination="PACS"):
    [row] = rows(adapter, exports, exports.c.destination == destination)
    return row


def outcomes(adapter):
    """Return the outcomes of all receipts by SOP Instance UID."""
    with adapter.ledger.read() as connection:
        found = connection.execute(
            select(task_files.c.sop_instance_uid, receipts.c.outcome).select_from(
                receipts.join(exports, receipts.c.export_id == exports.c.id).join(
                    task_files,
                    (task_files.c.task_id == exports.c.task_id)
                    & (task_files.c.number == receipts.c.number),
                )
            )
        )
        return {row.sop_instance_uid: row.outcome for row in found}


def kinds(adapter):
    """Return the kinds of the events so far, in order, without those of the configuration."""
    found = rows(adapter, events, order=events.c.id)
    return [row.kind for row in found if not row.kind.startswith("configuration")]
