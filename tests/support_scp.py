# SPDX-License-Identifier: Apache-2.0
"""An SCP on an ephemeral port, and peers that talk to it."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import pydicom.data
from pydicom import dcmread
from pynetdicom import AE, build_context
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA
from sqlalchemy import select

from adapter.core import Adapter
from adapter.dicom.part10 import read_file_meta
from adapter.ledger import configuration
from adapter.ledger.schema import events
from adapter.models import EntityKind
from adapter.scp import Scp
from adapter.settings import Settings
from tests import peers
from tests.support_waiting import eventually


def with_scp(settings: Settings, **changes: Any) -> Settings:
    """Settings whose SCP listens on an ephemeral port of loopback, changed as given."""
    scp = settings.dicom.scp.model_copy(update={"host": "127.0.0.1", "port": 0, **changes})
    dicom = settings.dicom.model_copy(update={"scp": scp})
    return settings.model_copy(update={"dicom": dicom})


@contextmanager
def running(settings: Settings) -> Iterator[Scp]:
    scp = Scp(settings)
    scp.start()
    try:
        yield scp
    finally:
        scp.stop(grace=0)


def put(adapter: Adapter, kind: EntityKind, replace: bool = False, **body: Any) -> int:
    return configuration.put(adapter.ledger, kind, configuration.parse(kind, body), replace=replace)


def add_ae_title(adapter: Adapter, ae_title: str, **more: Any) -> int:
    settings = {"pipeline-chest": "chest"}
    return put(
        adapter, EntityKind.AE_TITLE, aeTitle=ae_title, **{"processorSettings": settings, **more}
    )


def add_source(adapter: Adapter, ae_title: str, address: str = "127.0.0.1") -> int:
    return put(adapter, EntityKind.SOURCE, aeTitle=ae_title, hostIp=address)


def add_fixture(adapter: Adapter) -> None:
    """The original's integration fixture (reference section 4)."""
    add_ae_title(adapter, "CECHOTEST")
    add_ae_title(adapter, "Clara1")
    add_source(adapter, "PACS1")
    add_source(adapter, "PACS2")


def call(program: str, scp: Scp, *arguments: str | Path) -> tuple[int, list[str]]:
    """Run a DCMTK program against the SCP and return its exit code and its lines."""
    peers.need("dcmtk")
    before, after = arguments, ()
    if "--" in arguments:
        at = arguments.index("--")
        before, after = arguments[:at], arguments[at + 1 :]
    command = [program, "-v", *before, "127.0.0.1", str(scp.port), *after]
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


def incoming(adapter: Adapter) -> list[Path]:
    return sorted(adapter.spool.incoming.glob("*/*.dcm"))


def leftovers(adapter: Adapter) -> list[Path]:
    return sorted(path for path in adapter.spool.incoming.glob("*/*") if path.suffix != ".dcm")


def recorded(adapter: Adapter, kind: str) -> list[Any]:
    with adapter.ledger.read() as connection:
        query = select(events).where(events.c.kind == kind).order_by(events.c.id)
        return list(connection.execute(query).all())


def connect(scp: Scp) -> socket.socket:
    return socket.create_connection(("127.0.0.1", scp.port), timeout=10)


class Peer:
    """A pynetdicom SCU that sends whatever a test wants, valid or not.

    A rejection that comes very soon it may take for an abort: ask whether it is established.
    """

    def __init__(
        self,
        scp: Scp,
        contexts: list[tuple[str, list[str]]],
        calling: str = "PACS1",
        called: str = "Clara1",
        address: str = "127.0.0.1",
    ) -> None:
        ae = AE(calling)
        ae.requested_contexts = [
            build_context(abstract, syntaxes) for abstract, syntaxes in contexts
        ]
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
        self.assoc = ae.associate(address, scp.port, ae_title=called)

    def __enter__(self) -> Self:
        assert self.assoc.is_established
        return self

    def __exit__(self, *_exception: object) -> None:
        if self.assoc.is_established:
            self.assoc.release()

    def _request(self, sop_class: str, sop_instance: str, data: bytes) -> C_STORE:
        request = C_STORE()
        request.MessageID = 1
        request.Priority = 2
        request.AffectedSOPClassUID = sop_class
        request.AffectedSOPInstanceUID = sop_instance
        request.DataSet = BytesIO(data)
        return request

    def store(
        self, sop_class: str, sop_instance: str, data: bytes, context: int | None = None
    ) -> int:
        """Send a data set as it is and return the status."""
        chosen = context or self.assoc.accepted_contexts[0].context_id
        self.assoc._reactor_checkpoint.clear()
        eventually(lambda: self.assoc._is_paused)
        self.assoc.dimse.send_msg(self._request(sop_class, sop_instance, data), chosen)
        if not data:  # pynetdicom would send no fragment at all
            last = P_DATA()
            last.presentation_data_value_list.append((chosen, b"\x02"))
            self.assoc.dul.send_pdu(last)
        _, response = self.assoc.dimse.get_msg(block=True)
        self.assoc._reactor_checkpoint.set()
        assert response is not None, "no answer"
        return int(response.Status)

    def store_half(self, sop_class: str, sop_instance: str, data: bytes) -> None:
        """Send all fragments of a message but the last."""
        message = C_STORE_RQ()
        message.primitive_to_message(self._request(sop_class, sop_instance, data))
        context = self.assoc.accepted_contexts[0].context_id
        fragments = list(message.encode_msg(context, 4096))
        assert len(fragments) > 2
        for fragment in fragments[:-1]:
            self.assoc.dul.send_pdu(fragment)


def wheel_file(name: str) -> Path:
    """A DICOM file of pydicom's wheel."""
    return next(Path(pydicom.data.__file__).parent.rglob(name))


@dataclass(frozen=True)
class RealFile:
    """A Part 10 file in two parts: its file meta information and the bytes of its data set."""

    sop_class: str
    sop_instance: str
    syntax: str
    data: bytes

    @classmethod
    def read(cls, path: Path) -> RealFile:
        with path.open("rb") as file:
            meta = read_file_meta(file)
            data = file.read()
        uids = dcmread(path, specific_tags=["SOPClassUID", "SOPInstanceUID"])
        return cls(uids.SOPClassUID, uids.SOPInstanceUID, meta[0x0010], data)
