# SPDX-License-Identifier: Apache-2.0
"""Notification: an acknowledged file becomes an instance of a group, exactly once.

Lease and count the attempt; read the headers under limits; ask the AE title's job processor; tell
the observers; link into instances/; one transaction for the rows; unlink from incoming/.  A run
that died anywhere is done again from the start: a file leaves incoming/ after its row is there, and
a row is written after the observers were told.
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from adapter.core import Adapter
from adapter.dicom.instance import Instance
from adapter.dicom.part10 import read_file_meta
from adapter.dicom.uids import check_uid
from adapter.errors import ConfigurationError, NotYetVisible, UnreadableInstance
from adapter.ledger import arrivals, leases
from adapter.ledger.arrivals import DEADLY_ATTEMPTS, Decision, Discarded, Grouped, Quarantined
from adapter.ledger.configuration import ae_title_version
from adapter.ledger.engines import AWAY
from adapter.ledger.leases import Lease
from adapter.log import get_logger
from adapter.models import AETitle, ArrivalId, ArrivalState
from adapter.processors.base import InstanceObserver, JobProcessor
from adapter.processors.registry import create_observers, create_processor
from adapter.stages import RECLAMATION
from workers.clients.headers import HeaderReader
from workers.stage import Work

log = get_logger(__name__)

#: Arrivals that one look into the ledger asks for.
_LOOK = 500


def register_batch(work: Work, lease: Lease, rows: Sequence[Any]) -> dict[str, str]:
    """Take leased arrivals all the way, and return the state of each."""
    ledger, spool = work.adapter.ledger, work.adapter.spool
    with leases.kept(ledger, lease), work.headers.borrow() as reader:
        deciding = Deciding(work.adapter, reader)
        decided = [deciding.decide(row) for row in rows]
        observers = create_observers()
        for _, instance in decided:
            if instance is not None:
                notify_observers(observers, instance)
        decisions = [decision for decision, _ in decided]
        spool.link_instances(
            d.instance.arrival for d in decisions if not isinstance(d, Quarantined)
        )
        settled = arrivals.register(ledger, lease, decisions)
    settle(work.adapter, settled)
    return settled


class Deciding:
    """Decides on the arrivals of one batch: reads headers, asks job processors.

    Parameters
    ----------
    adapter : Adapter
        Settings, spool and ledger.
    reader : HeaderReader
        Reads the headers.
    """

    def __init__(self, adapter: Adapter, reader: HeaderReader) -> None:
        self._adapter = adapter
        self._reader = reader
        self._hash_key = adapter.spool.hash_key()
        self._processors: dict[int, tuple[AETitle, JobProcessor] | None] = {}

    def decide(self, row: Any) -> tuple[Decision, Instance | None]:
        """Return what becomes of an arrival, and its header if it could be read."""
        arrival: str = row.id
        if row.attempts > DEADLY_ATTEMPTS:
            message = f"{DEADLY_ATTEMPTS} attempts to register it died"
            return Quarantined(arrival, "kills-its-worker", message), None
        found = self._processor(row.version)
        if found is None:
            message = "the AE title's configuration it was accepted under cannot be used"
            return Quarantined(arrival, "unknown-version", message), None
        ae_title, processor = found
        instance = None
        path = self._adapter.spool.incoming_path(arrival)
        try:
            instance = self._reader.read(path, processor.tags)
            value = processor.group_value(instance)
        except UnreadableInstance as error:
            return Quarantined(arrival, error.code, str(error), *parties(path)), instance
        if value is None:
            return Discarded(instance), instance
        return Grouped(
            instance,
            key=group_key(value, self._hash_key),
            timeout=processor.timeout,
            maximum_wait=processor.maximum_wait,
            overwrite=ae_title.overwrite_same_instance,
            rerun=ae_title.resend == "rerun",
        ), instance

    def _processor(self, version: int) -> tuple[AETitle, JobProcessor] | None:
        """Return a version's AE title and processor, read from the ledger; None if unusable."""
        if version not in self._processors:
            self._processors[version] = None
            with self._adapter.ledger.read() as connection:
                ae_title = ae_title_version(connection, version)
            try:
                if ae_title is not None:
                    self._processors[version] = ae_title, create_processor(ae_title)
            except ConfigurationError as error:
                log.error("a job processor cannot be used", version=version, error=str(error))
        return self._processors[version]


def parties(path: Path) -> tuple[str | None, str | None]:
    """Return the calling and the called AE title of a file, as its receiver wrote them."""
    try:
        with path.open("rb") as file:
            meta = read_file_meta(file)
    except (UnreadableInstance, OSError):
        return None, None
    return meta.get(0x0017), meta.get(0x0018)


def group_key(value: str, hash_key: bytes) -> str:
    """Return a grouping value if it is a UID, else its keyed hash: it may be patient data."""
    try:
        return check_uid(value)
    except ValueError:
        return hmac.new(hash_key, value.encode("utf-8"), "sha256").hexdigest()


def notify_observers(observers: Sequence[InstanceObserver], instance: Instance) -> None:
    """Tell every observer of an instance; one that fails holds nothing up."""
    for observer in observers:
        try:
            observer.instance_stored(instance)
        except Exception as error:  # noqa: BLE001 - a plug-in may raise anything
            log.error(
                "an observer failed",
                observer=type(observer).__name__,
                error=type(error).__name__,
                sop_instance_uid=instance.sop_instance_uid,
            )


def settle(adapter: Adapter, states: dict[str, str]) -> None:
    """Take arrivals' files out of incoming/: the last step, done again if it was lost."""
    for arrival, state in states.items():
        if state == ArrivalState.QUARANTINED:
            adapter.spool.settle_quarantined(arrival)
        elif state != ArrivalState.RECEIVED:
            adapter.spool.settle_registered([arrival])


def claimed_batches(work: Work) -> Iterator[tuple[Lease, list[Any]]]:
    """Yield leased batches, oldest arrivals first, until nothing in incoming/ is free."""
    adapter = work.adapter
    while not work.stopping.is_set():
        waiting = iter(sorted(adapter.spool.list_incoming()))
        while look := list(islice(waiting, _LOOK)):
            known = arrivals.states(adapter.ledger, [str(arrival) for arrival in look])
            settle(adapter, known)
            fresh = [a for a in look if known.get(str(a), ArrivalState.RECEIVED) == "received"]
            lease, rows = _lease(adapter, fresh)
            if lease is not None:
                yield lease, rows
                break
        else:
            return


def _lease(adapter: Adapter, fresh: Sequence[ArrivalId]) -> tuple[Lease | None, list[Any]]:
    if not fresh:
        return None, []
    settings = adapter.settings
    return arrivals.lease_batch(
        adapter.ledger,
        fresh,
        limit=settings.notification.batch_size,
        seconds=settings.workers.lease_seconds,
    )


def run(work: Work) -> dict[str, Any]:
    """Register everything that waits in incoming/."""
    counts: Counter[str] = Counter()
    for lease, rows in claimed_batches(work):
        try:
            settled = register_batch(work, lease, rows)
        except NotYetVisible:
            # Settled by another worker between our look and our lease, or not visible here yet.
            arrivals.give_back(work.adapter.ledger, lease)
            break
        except (*AWAY, OSError):  # the ledger is away, or the disk is full or failing
            # No attempt that died: the arrivals are not to be taken for what kills their reader.
            with suppress(*AWAY):
                arrivals.give_back(work.adapter.ledger, lease)
            raise
        counts.update(settled.values())
    if counts[ArrivalState.DISCARDED]:
        work.queues.wake(RECLAMATION)
    return dict(counts)
