# SPDX-License-Identifier: Apache-2.0
"""Helpers for tests of the stages: instances, arrivals without a network, queues that count."""

from __future__ import annotations

import secrets
import time
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.filebase import DicomFileLike
from pydicom.filewriter import write_dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from sqlalchemy import Table, select

from adapter.core import Adapter
from adapter.dicom.part10 import part10_header
from adapter.ledger import configuration
from adapter.ledger.schema import groups
from adapter.models import AETitle, ArrivalId, EntityKind
from adapter.settings import Notification
from workers.clients.headers import HeaderReaders
from workers.stage import Work


class CountingQueues:
    """Queues that note who was woken."""

    def __init__(self) -> None:
        self.woken: list[str] = []

    def wake(self, stage: str, *_ids: str) -> bool:
        """Note the stage."""
        self.woken.append(stage)
        return True


class KeptReaders(HeaderReaders):
    """Readers whose children are kept from test to test: each takes half a second to start."""

    def close(self) -> None:
        """Leave the children to the next test; they end with this process."""


@cache
def _kept_readers(limits: str) -> KeptReaders:
    return KeptReaders(Notification.model_validate_json(limits))


def make_work(adapter: Adapter) -> Work:
    """Return what a stage works with, without a broker."""
    work = Work(adapter, CountingQueues())  # type: ignore[arg-type]
    limits = adapter.settings.notification.model_dump_json(by_alias=True)
    object.__setattr__(work, "headers", _kept_readers(limits))
    return work


def write_file(folder: Path, data: bytes, syntax: str) -> Path:
    """Write a file whose data set is these bytes, whatever they are."""
    path = folder / "one.dcm"
    meta = part10_header(
        sop_class_uid="1.2.3",
        sop_instance_uid="1.2.3.4",
        transfer_syntax_uid=syntax,
        calling_ae_title="MODALITY",
        called_ae_title="BRAIN",
    )
    path.write_bytes(meta + data)
    return path


def add_ae_title(adapter: Adapter, title: str = "BRAIN", **changes: Any) -> int:
    """Configure an AE title with one pipeline and return its version."""
    settings = changes.pop("processor_settings", {"pipeline-lung": "lung-1"})
    entity = AETitle(ae_title=title, processor_settings=settings, **changes)
    replace = configuration.find(adapter.ledger, EntityKind.AE_TITLE, title) is not None
    return configuration.put(adapter.ledger, EntityKind.AE_TITLE, entity, replace=replace)


def make_instance(**changes: Any) -> Dataset:
    """Return a small valid CT instance with UIDs of its own."""
    ds = Dataset()
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = generate_uid()
    ds.StudyInstanceUID = generate_uid()
    ds.SeriesInstanceUID = generate_uid()
    ds.PatientID = "CANARY-ID"
    ds.PatientName = "CANARY^NAME"
    ds.Modality = "CT"
    for keyword, value in changes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def encode(ds: Dataset, *, implicit: bool = False) -> bytes:
    """Return a data set's bytes in Explicit or Implicit VR Little Endian."""
    buffer = BytesIO()
    file = DicomFileLike(buffer)
    file.is_little_endian, file.is_implicit_VR = True, implicit
    write_dataset(file, ds)
    return buffer.getvalue()


class IncomingAssociation:
    """Puts instances into incoming/ as the SCP does, without a socket.

    Parameters
    ----------
    adapter : Adapter
        Whose spool it is.
    version : int
        The AE title's version that the association was accepted under.
    """

    def __init__(self, adapter: Adapter, version: int, called: str = "BRAIN") -> None:
        self._adapter = adapter
        self._version = version
        self._called = called
        self._id = secrets.token_hex(6)
        self._number = 0

    def store(
        self,
        data: Dataset | bytes,
        *,
        sop_instance_uid: str | None = None,
        transfer_syntax_uid: str = ExplicitVRLittleEndian,
        received_at: float | None = None,
    ) -> str:
        """Store one instance, durably, and return its arrival's id."""
        body = data if isinstance(data, bytes) else encode(data)
        uid = sop_instance_uid or (
            generate_uid() if isinstance(data, bytes) else data.SOPInstanceUID
        )
        file = self._adapter.spool.receive(self._id)
        file.write(
            part10_header(
                sop_class_uid=CTImageStorage,
                sop_instance_uid=uid,
                transfer_syntax_uid=transfer_syntax_uid,
                calling_ae_title="MODALITY",
                called_ae_title=self._called,
            )
        )
        file.write(body)
        file.sync()
        self._number += 1
        at = time.time() if received_at is None else received_at
        arrival = ArrivalId(at, self._id, self._number, self._version)
        file.publish(arrival)
        return str(arrival)


def rows(adapter: Adapter, table: Table, *where: Any) -> list[Any]:
    """Return a table's rows."""
    with adapter.ledger.read() as connection:
        return list(connection.execute(select(table).where(*where)).all())


def end_rests(adapter: Adapter, table: Table) -> None:
    """Let rows that rest after a defeat be due now."""
    with adapter.ledger.write() as connection:
        connection.execute(
            table.update().where(table.c.lease_token.is_(None)).values(lease_until=0)
        )


def let_time_pass(adapter: Adapter, seconds: float) -> None:
    """Move every open group's clocks into the past, as if so many seconds had gone by."""
    with adapter.ledger.write() as connection:
        connection.execute(
            groups.update().values(
                due_at=groups.c.due_at - seconds,
                look_at=groups.c.look_at - seconds,
                maximum_at=groups.c.maximum_at - seconds,
                newest_at=groups.c.newest_at - seconds,
            )
        )
