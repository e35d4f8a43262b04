# SPDX-License-Identifier: Apache-2.0
"""Jobs as grouping leaves them: real files in the spool, and their rows."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pydicom.data
from pydicom import dcmread
from sqlalchemy import insert, select, update

from adapter.dicom.element_search import HeaderLimits
from adapter.dicom.header import read_header
from adapter.dicom.part10 import part10_header
from adapter.ledger import configuration, schema
from adapter.models import (
    AETitle,
    ArrivalId,
    ArrivalState,
    EntityKind,
    GroupState,
    JobState,
    group_id,
    job_id,
)
from adapter.settings import Pipeline
from workers import submission
from workers.stage import Work, take_all

TEST_FILES = Path(pydicom.data.__file__).parent / "test_files"

#: A small real CT series of one study: four slices.
CT_SERIES = sorted((TEST_FILES / "dicomdirtests" / "77654033" / "CT2").iterdir())


class Woken(list):
    """Queues that remember what was woken, and the rows that were named."""

    def __init__(self):
        super().__init__()
        self.named = []

    def wake(self, stage, *ids):
        self.append(stage)
        self.named += ids
        return True


def submit_due(work, platform):
    """Take every step that is due of submissions to a platform."""
    return take_steps(work, SimpleNamespace(named=lambda _kind: platform))


def take_steps(work, platforms):
    """Take every step that is due of submissions to platforms."""
    return take_all(work, lambda work, first: submission.take_step(work, platforms, first))


def make_work(adapter, *, pipelines=None, **sections):
    """Return work for a stage, with pipelines defined and sections of the settings changed."""
    changes = {
        name: getattr(adapter.settings, name).model_copy(update=values)
        for name, values in sections.items()
    }
    if pipelines is not None:
        changes["pipelines"] = {
            key: Pipeline.model_validate({"name": key, "destinations": ["PACS"], **value})
            for key, value in pipelines.items()
        }
    settings = adapter.settings.model_copy(update=changes)
    return Work(replace(adapter, settings=settings), Woken())


def add_ae_title(adapter, name="BRAIN"):
    """Return the version of an AE title, created if it is not there yet."""
    known = configuration.find(adapter.ledger, EntityKind.AE_TITLE, name)
    if known is not None:
        return known.version
    entity = AETitle(ae_title=name, processor_settings={"pipeline-one": "one"})
    return configuration.put(adapter.ledger, EntityKind.AE_TITLE, entity, replace=False)


def receive(adapter, path, version):
    """Put a DICOM file into the spool as the SCP and registration do, and return its header."""
    ds = dcmread(path)
    meta = part10_header(
        sop_class_uid=ds.SOPClassUID,
        sop_instance_uid=ds.SOPInstanceUID,
        transfer_syntax_uid=ds.file_meta.TransferSyntaxUID,
        calling_ae_title="SENDER",
        called_ae_title="BRAIN",
    )
    raw = Path(path).read_bytes()
    arrival = ArrivalId(time.time(), "0123456789ab", 1, version)
    file = adapter.spool.receive(arrival.association)
    file.write(meta + raw[raw.index(b"DICM") + 16 + ds.file_meta.FileMetaInformationGroupLength :])
    file.sync()
    file.publish(arrival)
    adapter.spool.link_instances([str(arrival)])
    adapter.spool.settle_registered([str(arrival)])
    return read_header(adapter.spool.instance_path(str(arrival)), (), HeaderLimits())


def add_group(adapter, files=CT_SERIES, *, pipelines=("one",), key="1.2.3", generation=1, **job):
    """Return the ids of the jobs of a closed group of files, one for each pipeline."""
    version = add_ae_title(adapter)
    headers = [receive(adapter, path, version) for path in files]
    group = group_id(version, key, generation)
    now = schema.now()
    times = {"opened_at": now, "newest_at": now, "due_at": now, "maximum_at": now, "look_at": now}
    ids = [job_id(group, pipeline) for pipeline in pipelines]
    with adapter.ledger.write() as connection:
        connection.execute(
            insert(schema.groups).values(
                id=group,
                version=version,
                called_ae_title="BRAIN",
                key=key,
                generation=generation,
                state=GroupState.CLOSED,
                instances=len(headers),
                **times,
            )
        )
        for header in headers:
            connection.execute(
                insert(schema.arrivals).values(
                    id=header.arrival,
                    state=ArrivalState.REGISTERED,
                    version=version,
                    association="0123456789ab",
                    received_at=now,
                    registered_at=now,
                    sop_class_uid=header.sop_class_uid,
                    sop_instance_uid=header.sop_instance_uid,
                    study_instance_uid=header.study_instance_uid,
                    size=header.size,
                    digest=header.digest,
                    group_id=group,
                )
            )
        for pipeline, id_ in zip(pipelines, ids, strict=True):
            values = {
                "id": id_,
                "group_id": group,
                "pipeline": pipeline,
                "pipeline_id": pipeline,
                "name": f"brain-{pipeline}",
                "priority": 2,
                "retry_delay": 1000.0,
                "state": JobState.QUEUED,
                "due_at": now,
                "created_at": now,
                "updated_at": now,
            }
            connection.execute(insert(schema.jobs).values(values | job))
    return ids


def row(adapter, job):
    """Return a job's row."""
    with adapter.ledger.read() as connection:
        return connection.execute(select(schema.jobs).where(schema.jobs.c.id == job)).one()


def rows(adapter, table):
    """Return all rows of a table."""
    with adapter.ledger.read() as connection:
        return connection.execute(select(table)).all()


def change(adapter, job, **values):
    """Change a job's row directly, without a verb."""
    with adapter.ledger.write() as connection:
        connection.execute(update(schema.jobs).where(schema.jobs.c.id == job).values(**values))


def kinds(adapter, job):
    """Return the kinds of a job's events, in order."""
    return [e.kind for e in rows(adapter, schema.events) if e.job_id == job]


def gone(pid):
    """Return whether a process is no more (a zombie that waits for its parent is none)."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True
