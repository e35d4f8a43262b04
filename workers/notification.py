# SPDX-License-Identifier: Apache-2.0
"""Notification: an acknowledged file becomes an instance of a group, exactly once.

Lease and count the attempt; read the headers under limits; ask the AE title's job processor; tell
the observers; link into instances/; one transaction for the rows; unlink from incoming/.  A run
that died anywhere is done again from the start: a file leaves incoming/ after its row is there, and
a row is written after the observers were told.

A batch that fails is registered one by one, so that an error stays with the arrival that it came
from; the rule for that arrival stands in `adapter.ledger.attempts`.  An arrival whose header takes
long is left alone: what comes before it is recorded, and what comes after it is given back.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Self

from adapter.core import Adapter
from adapter.dicom.instance import Instance, PartialHeader
from adapter.dicom.partial_header import partial_header
from adapter.errors import (
    ConfigurationError,
    LeaseLost,
    NotYetVisible,
    ProcessorError,
    UnreadableInstance,
)
from adapter.ledger import arrivals, attempts, leases
from adapter.ledger.arrivals import Decision, Discarded, Grouped, Quarantined
from adapter.ledger.attempts import ARRIVAL_ATTEMPTS, Defeat
from adapter.ledger.configuration import ae_title_version, first_version
from adapter.ledger.hashes import group_key, patient_mark
from adapter.ledger.leases import Lease
from adapter.log import get_logger
from adapter.models import AETitle, ArrivalId, ArrivalState
from adapter.processors.base import InstanceObserver, JobProcessor
from adapter.processors.registry import create_observers, create_processor
from adapter.stages import NOTIFICATION, RECLAMATION
from workers import defeats
from workers.clients.headers import HeaderReader
from workers.stage import Work

log = get_logger(__name__)

#: Arrivals that one look into the ledger asks for.
_LOOK = 500

#: Seconds between looks for an arrival's file that is listed but not there (yet).
_VISIBILITY_PAUSE = 1.0


def register_batch(work: Work, lease: Lease, rows: Sequence[Any]) -> dict[str, str]:
    """Take leased arrivals all the way, and return the state of each that was settled.

    Raises
    ------
    Exception
        What is no single arrival's fault; those that were not settled are leased still.
    """
    batch = Batch(work, lease)
    with leases.kept(work.adapter.ledger, lease), work.headers.borrow() as reader:
        batch.decide(rows, Deciding(work, reader))
        batch.record()
    return batch.settled


class Batch:
    """Leased arrivals on their way to their rows.

    Parameters
    ----------
    work : Work
        What the stage works with.
    lease : Lease
        The arrivals' lease.

    Attributes
    ----------
    settled : dict of str to str
        The states of the arrivals that are given back or at their end.
    """

    def __init__(self, work: Work, lease: Lease) -> None:
        self._work = work
        self._ledger = work.adapter.ledger
        self._spool = work.adapter.spool
        self._lease = lease
        self._decided: list[tuple[Any, Decision]] = []
        self._began = time.monotonic()
        self.settled: dict[str, str] = {}

    def decide(self, rows: Sequence[Any], deciding: Deciding) -> None:
        """Decide what becomes of each arrival, and tell the observers of it."""
        observers = create_observers()
        left = list(reversed(rows))
        while left:
            row = left.pop()
            try:
                decision, instance = deciding.decide(row, slow=partial(self._leave_alone, left))
            except Exception as error:  # noqa: BLE001 - the rule is in adapter.ledger.attempts
                self._failed(row, error)
                continue
            self._decided.append((row, decision))
            if instance is not None:
                notify_observers(observers, instance)

    def _leave_alone(self, left: list[Any]) -> None:
        """Let none of the others wait for the arrival at hand: it takes long."""
        self.record()
        if left:
            arrivals.give_back(self._ledger, self._lease, [row.id for row in left])
            left.clear()
            self._work.queues.wake(NOTIFICATION)

    def record(self) -> None:
        """Record the decisions in one transaction; if that fails, in one for each arrival."""
        decided, self._decided = self._decided, []
        if not decided:
            return
        try:
            states = self._register([decision for _, decision in decided])
        except Exception as error:
            if attempts.is_nobodys(error):
                raise
            log.warning("a batch is registered one by one", error=type(error).__name__)
        else:
            self._settle(states)
            return
        for row, decision in decided:
            try:
                states = self._register([decision])
            except Exception as error:  # noqa: BLE001 - the rule is in adapter.ledger.attempts
                self._failed(row, error)
            else:
                self._settle(states)

    def _register(self, decisions: Sequence[Decision]) -> dict[str, str]:
        self._spool.link_instances(
            d.instance.arrival for d in decisions if not isinstance(d, Quarantined)
        )
        return arrivals.register(self._ledger, self._lease, decisions)

    def _settle(self, states: dict[str, str]) -> None:
        self.settled |= states
        settle(self._work.adapter, states)

    def _failed(self, row: Any, error: Exception) -> None:
        """Give an arrival back that could not be registered, counted if it is its own fault."""
        workers = self._work.adapter.settings.workers
        self._spool.check_whole(self._began)
        age = self._ledger.now() - row.received_at
        if isinstance(error, NotYetVisible) and age < workers.visibility_seconds:
            arrivals.wait_for(self._ledger, self._lease, row.id, _VISIBILITY_PAUSE)
            return
        why = defeats.blame(
            self._work, NOTIFICATION, row.id, error, arrival=row.id, since=self._began
        )
        known = partial_header(self._spool.incoming_path(row.id))
        state = arrivals.defeat(self._ledger, self._lease, row, why, known)
        if state != ArrivalState.RECEIVED:
            self._settle({row.id: state})


class Deciding:
    """Decides on the arrivals of one batch: reads headers, asks job processors.

    Parameters
    ----------
    work : Work
        What the stage works with.
    reader : HeaderReader
        Reads the headers.
    """

    def __init__(self, work: Work, reader: HeaderReader) -> None:
        self._work = work
        self._adapter = work.adapter
        self._reader = reader
        self._hash_key = work.adapter.spool.hash_key()
        self._owners: dict[int, _Owner | Defeat] = {}

    def decide(self, row: Any, *, slow: Callable[[], None]) -> tuple[Decision, Instance | None]:
        """Return what becomes of an arrival, and its header if it could be read.

        `slow` is called if the header takes long, before it is waited for.

        What its job processor does wrong is a decision too: the file goes to quarantine at once, so
        that it neither rests while its group waits, nor is read again for the same answer.

        Raises
        ------
        NotYetVisible
            If the file is not there (yet).
        OSError
            If the disk or the file's owner refuses to have it read.
        """
        arrival: str = row.id
        path = self._adapter.spool.incoming_path(arrival)
        if row.attempts > ARRIVAL_ATTEMPTS:
            why = Defeat(attempts.KILLS, f"{ARRIVAL_ATTEMPTS} attempts on it died")
            return self._refused(arrival, why, partial_header(path)), None
        owner = self._owner(row.version)
        instance = None
        try:
            tags = () if isinstance(owner, Defeat) else owner.tags
            instance = self._reader.read(path, tags, slow=slow)
            mark = patient_mark(instance, self._hash_key)
            instance = replace(instance, patient=None)  # nobody else is told
            if isinstance(owner, Defeat):
                return self._refused(arrival, owner, PartialHeader.of(instance)), instance
            value = owner.processor.group_value(instance)
        except UnreadableInstance as error:
            known = partial_header(path) if instance is None else PartialHeader.of(instance)
            return Quarantined(arrival, error.code, str(error), known), instance
        except ProcessorError as error:
            assert instance is not None, "only a job processor raises it"
            known = PartialHeader.of(instance)
            return self._refused(arrival, attempts.why(error), known), instance
        if value is None:
            return Discarded(instance), instance
        return Grouped(
            instance,
            key=group_key(instance, value, self._hash_key),
            first_version=owner.first_version,
            timeout=owner.timeout,
            maximum_wait=owner.maximum_wait,
            overwrite=owner.ae_title.overwrite_same_instance,
            rerun=owner.ae_title.resend == "rerun",
            patient=mark,
        ), instance

    def _refused(self, arrival: str, why: Defeat, known: PartialHeader) -> Quarantined:
        defeats.log_and_count(self._work, NOTIFICATION, arrival, why)
        return Quarantined(arrival, why.reason, why.message, known)

    def _owner(self, version: int) -> _Owner | Defeat:
        """Return who owns the arrivals of a version, read from the ledger, or why nobody does."""
        if version not in self._owners:
            with self._adapter.ledger.read() as connection:
                ae_title = ae_title_version(connection, version)
                first = first_version(connection, version)
            try:
                self._owners[version] = _UNKNOWN if ae_title is None else _Owner.of(first, ae_title)
            except (ConfigurationError, ProcessorError) as error:
                self._owners[version] = attempts.why(error)
        return self._owners[version]


@dataclass(frozen=True, slots=True)
class _Owner:
    """An AE title's version with its job processor, asked once for a batch."""

    first_version: int
    ae_title: AETitle
    processor: JobProcessor
    tags: Sequence[int]
    timeout: float
    maximum_wait: float

    @classmethod
    def of(cls, first_version: int, ae_title: AETitle) -> Self:
        processor = create_processor(ae_title)
        return cls(
            first_version,
            ae_title,
            processor,
            processor.tags,
            processor.timeout,
            processor.maximum_wait,
        )


_UNKNOWN = Defeat(
    attempts.UNKNOWN_VERSION,
    "the ledger does not know the AE title's version that it was accepted under",
)


def notify_observers(observers: Sequence[InstanceObserver], instance: Instance) -> None:
    """Tell every observer of an instance; one that fails holds nothing up."""
    for observer in observers:
        try:
            observer.instance_stored(instance)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a plug-in may raise anything
            log.error(
                "an observer failed",
                observer=type(observer).__name__,
                error=type(error).__name__,
                sop_instance_uid=instance.sop_instance_uid,
            )


def settle(adapter: Adapter, states: dict[str, str]) -> None:
    """Take arrivals' files out of incoming/: the last step, done again if it was lost.

    A file that cannot be moved stays where it is, and its row says what it is: it is not taken
    again, and it moves as soon as it can be.
    """
    for arrival, state in states.items():
        try:
            if state == ArrivalState.QUARANTINED:
                adapter.spool.settle_quarantined(arrival)
            elif state != ArrivalState.RECEIVED:
                adapter.spool.settle_registered([arrival])
        except OSError as error:
            log.debug("a settled file stays in incoming/", arrival=arrival, errno=error.errno)


def claimed_batches(work: Work) -> Iterator[tuple[Lease, list[Any]]]:
    """Yield leased batches, oldest arrivals first, until nothing in incoming/ is free."""
    adapter = work.adapter
    while not work.stopping.is_set():
        adapter.spool.check_whole()
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
        except Exception as error:
            # No arrival's fault: none of them is counted, and the stage pauses.
            if not isinstance(error, LeaseLost) or lease.excused.is_set():
                ids = [row.id for row in rows]
                work.owe(partial(arrivals.excuse, work.adapter.ledger, lease, ids))
            raise
        counts.update(settled.values())
    if counts[ArrivalState.DISCARDED]:
        work.queues.wake(RECLAMATION)
    return dict(counts)
