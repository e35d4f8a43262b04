# SPDX-License-Identifier: Apache-2.0
"""The metrics of ledger, spool and broker, for Prometheus and for whoever scales the pools.

They are asked for in one place, here, and at most once in `FRESH_SECONDS` however many ask: every
replica of every other role would ask the ledger the same.  They are found out by a thread of their
own, so that a ledger that hangs holds up one thread, and the caller for a moment.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from pydantic import Field
from sqlalchemy.exc import SQLAlchemyError

from adapter import heartbeat, stages
from adapter.api.opening import AdapterOpening, NotOpen
from adapter.core import Adapter
from adapter.errors import SpoolError
from adapter.ledger import configuration, queries
from adapter.ledger.queries.facts import Attention, Facts, Unfinished
from adapter.models import EntityKind
from adapter.settings import Settings
from adapter.spool import Spool

#: Seconds that metrics are kept before they are read again.
FRESH_SECONDS = 3.0
#: Seconds that whoever asks waits for them.
PATIENCE_SECONDS = 5.0
#: Destinations that are told apart; more are not told.
MOST_DESTINATIONS = 200
#: The roles that beat.
ROLES = ("scp", "worker", "api", "operator")

V = TypeVar("V")


class Away(Exception):
    """There are no metrics: what they are asked of does not answer."""


class Scaling(Facts):
    """The work that there is for the workers of one stage."""

    stage: str
    unfinished: int = Field(
        description="Work that could be done now or is being done; what waits for its time, a "
        "destination or an operator is not counted."
    )
    oldest_seconds: float = Field(
        description="How long work that nobody does has been due, in seconds; 0 if there is none."
    )


@dataclass(frozen=True)
class LedgerMetrics:
    """What the ledger tells."""

    due: dict[str, Unfinished]
    unfinished: dict[str, Unfinished]
    states: dict[str, dict[str, int]]
    retrying: dict[str, int]
    attention: Attention
    destinations: list[str]


@dataclass(frozen=True)
class SpoolMetrics:
    """What the spool tells."""

    incoming: Unfinished
    quarantined_bytes: int
    size: int
    free: int
    reserved: int
    processes: dict[str, int]
    workers: dict[str, int]


class Fresh(Generic[V]):
    """Something that is found out when it is asked for, but not too often, and by one thread.

    Parameters
    ----------
    find : callable
        Finds it out.
    """

    def __init__(self, find: Callable[[], V]) -> None:
        self._find = find
        self._lock = threading.Lock()
        self._found: Future[V] | None = None
        self._at = 0.0

    def get(self) -> V:
        """Return it.

        Raises
        ------
        Away
            If it cannot be found out now.
        """
        with self._lock:
            old = time.monotonic() > self._at + FRESH_SECONDS
            if self._found is None or (self._found.done() and old):
                self._found = Future()
                # A daemon, unlike an executor's: one that hangs must not hold up the end.
                threading.Thread(
                    target=self._look, args=(self._found,), name="metrics", daemon=True
                ).start()
            found = self._found
        try:
            return found.result(PATIENCE_SECONDS)
        except (TimeoutError, NotOpen, SQLAlchemyError, SpoolError, OSError) as error:
            raise Away(type(error).__name__) from None

    def _look(self, found: Future[V]) -> None:
        try:
            value = self._find()
        except Exception as error:  # noqa: BLE001 - raised again where it is asked for
            self._at = time.monotonic()
            found.set_exception(error)
        else:
            self._at = time.monotonic()
            found.set_result(value)


class Metrics:
    """What is told, for one adapter.

    Parameters
    ----------
    opening : AdapterOpening
        The adapter, once it is open, and its broker.
    """

    def __init__(self, opening: AdapterOpening) -> None:
        self._settings = opening.settings
        self.ledger = Fresh(lambda: read_ledger(opening.adapter))
        self.spool = Fresh(lambda: read_spool(Spool(self._settings.spool_path), self._settings))
        self.queues = Fresh(opening.queues.lengths)

    def scaling(self, stage: str) -> Scaling:
        """Return the work that there is for a stage's workers.

        Raises
        ------
        Away
            If the ledger (for notification: the spool) does not answer.
        """
        if stage == stages.NOTIFICATION:
            work = self.spool.get().incoming
        else:
            work = self.ledger.get().due[stage]
        return Scaling(
            stage=stage, unfinished=work.amount, oldest_seconds=work.oldest_seconds or 0.0
        )


def read_ledger(adapter: Adapter) -> LedgerMetrics:
    """Ask the ledger for everything that is told of it."""
    ledger, settings = adapter.ledger, adapter.settings
    lease = settings.workers.lease_seconds
    known = configuration.current(ledger, EntityKind.DESTINATION)
    return LedgerMetrics(
        due=queries.due(ledger, stages.due_questions(settings), lease),
        unfinished=queries.unfinished(ledger, settings),
        states=queries.count_states(ledger),
        retrying=queries.count_retrying(ledger),
        attention=queries.attention(ledger),
        destinations=sorted(found.entity.key for found in known)[:MOST_DESTINATIONS],
    )


def read_spool(spool: Spool, settings: Settings) -> SpoolMetrics:
    """Ask the spool for everything that is told of it."""
    space = spool.space(settings.storage)
    processes, workers = dict.fromkeys(ROLES, 0), dict.fromkeys(stages.STAGES, 0)
    for beat in heartbeat.read_all(spool):
        if beat["age"] >= heartbeat.SILENCE_SECONDS or beat.get("role") not in processes:
            continue
        processes[beat["role"]] += 1
        for stage in beat.get("stages", ()):
            if stage in workers:
                workers[stage] += 1
    return SpoolMetrics(
        incoming=incoming(spool),
        quarantined_bytes=quarantined_bytes(spool),
        size=space.total,
        free=space.free,
        reserved=space.reserved,
        processes=processes,
        workers=workers,
    )


def incoming(spool: Spool) -> Unfinished:
    """Return what waits in incoming/ for its registration."""
    times = [arrival.received_at for arrival in spool.list_incoming()]
    age = max(0.0, time.time() - min(times)) if times else None
    return Unfinished(amount=len(times), oldest_seconds=age)


def quarantined_bytes(spool: Spool) -> int:
    """Return the bytes in quarantine/: the ledger knows a size only if the header was readable."""
    size = 0
    for arrival in spool.list_quarantine():
        with suppress(OSError):
            size += spool.quarantine_path(str(arrival)).stat().st_size
    return size


class ApiCollector(Collector):
    """Exposes the metrics to Prometheus; those that cannot be had are left out.

    Parameters
    ----------
    metrics : Metrics
        What is told.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Return the metrics, as of a few seconds ago at most."""
        spool = _or_none(self._metrics.spool)
        ledger = _or_none(self._metrics.ledger)
        queues = _or_none(self._metrics.queues)
        yield _gauge("ledger_up", "Whether the ledger answers.", ledger is not None)
        yield _gauge("broker_up", "Whether the broker (Redis) answers.", queues is not None)
        yield _gauge("spool_up", "Whether the spool is there.", spool is not None)
        if queues is not None:
            yield _family("queue_length", "Wake-ups that wait in the broker.", "stage", queues)
        if spool is not None:
            yield from _spool(spool)
        if ledger is not None:
            yield from _ledger(ledger)
        yield from _work(ledger, spool)
        yield from _kept(ledger, spool)


def _or_none(fresh: Fresh[V]) -> V | None:
    try:
        return fresh.get()
    except Away:
        return None


def _spool(spool: SpoolMetrics) -> Iterator[Metric]:
    yield _gauge("spool_size_bytes", "Size of the spool's disk.", spool.size)
    yield _gauge("spool_free_bytes", "Free bytes of the spool's disk.", spool.free)
    yield _gauge("spool_reserved_bytes", "Free bytes at which nothing is received.", spool.reserved)
    yield _family("processes", "Processes that were heard of lately.", "role", spool.processes)
    yield _family("workers", "Workers that were heard of lately.", "stage", spool.workers)


def _ledger(ledger: LedgerMetrics) -> Iterator[Metric]:
    for name, amounts in ledger.states.items():
        yield _family(name, f"{name.capitalize()} that the ledger knows.", "state", amounts)
    yield _family(
        "retrying", "Jobs and exports that failed and are tried again.", "kind", ledger.retrying
    )
    held = {hold.destination.casefold() for hold in ledger.attention.holds}
    on_hold = {name: int(name.casefold() in held) for name in ledger.destinations}
    yield _family(
        "destination_on_hold",
        "Whether a destination could not be reached and is waited for.",
        "destination",
        on_hold,
    )


def _work(ledger: LedgerMetrics | None, spool: SpoolMetrics | None) -> Iterator[Metric]:
    waiting = {stages.NOTIFICATION: spool.incoming} if spool is not None else {}
    unfinished = waiting | (ledger.unfinished if ledger is not None else {})
    due = waiting | (ledger.due if ledger is not None else {})
    for name, text, age, work in (
        ("unfinished", "Work that is not done.", "Age of the oldest of it", unfinished),
        (
            "due",
            "Work that could be done now or is being done.",
            "Time for which work that nobody does has been due",
            due,
        ),
    ):
        amounts = {stage: work[stage].amount for stage in work}
        ages = {stage: work[stage].oldest_seconds or 0.0 for stage in work}
        yield _family(name, text, "stage", amounts)
        yield _family(f"{name}_oldest_seconds", f"{age}, in seconds; 0 if none.", "stage", ages)


def _kept(ledger: LedgerMetrics | None, spool: SpoolMetrics | None) -> Iterator[Metric]:
    if ledger is None:
        return
    attention = ledger.attention
    kept = {
        "parked-jobs": attention.parked_jobs,
        "parked-exports": attention.parked_exports,
        "partial-exports": attention.partial_exports,
        "quarantined": attention.quarantined,
    }
    sizes = {kind: one.size for kind, one in kept.items()}
    if spool is not None:
        sizes["quarantined"] = spool.quarantined_bytes
    amounts = {kind: one.amount for kind, one in kept.items()}
    yield _family("kept", "What waits for an operator's decision.", "kind", amounts)
    yield _family("kept_bytes", "Bytes of the spool that it keeps.", "kind", sizes)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"dicom_adapter_{name}", text, float(value))


def _family(name: str, text: str, label: str, values: dict[str, int] | dict[str, float]) -> Metric:
    family = GaugeMetricFamily(f"dicom_adapter_{name}", text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], float(number))
    return family
