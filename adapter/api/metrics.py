# SPDX-License-Identifier: Apache-2.0
"""The metrics of ledger, spool and broker, for Prometheus and for autoscaling.

Only the API collects them, because every replica of every other role would ask the ledger for the
same numbers.  They are collected once in a few seconds at most, whatever the number of callers, and
no caller waits for what hangs (`adapter.api.fresh`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from pydantic import Field

from adapter import heartbeat, stages
from adapter.api import fresh
from adapter.api.fresh import Fresh, NotAvailable
from adapter.api.opening import AdapterOpening
from adapter.core import Adapter
from adapter.ledger import configuration, queries
from adapter.ledger.queries.facts import Attention, Facts, Unfinished
from adapter.models import EntityKind
from adapter.settings import Settings
from adapter.spool import Spool

#: Most destinations that get a series of their own; the others get none.
MOST_DESTINATIONS = 200
#: The roles that write heartbeats.
ROLES = ("scp", "worker", "api", "operator")

V = TypeVar("V")


#: What the due work of each stage is counted in.
UNITS = {
    stages.NOTIFICATION: "files",
    stages.GROUPING: "groups",
    stages.SUBMISSION: "jobs",
    stages.PIPELINE: "jobs",
    stages.EXPORT: "exports",
    stages.RECLAMATION: "groups and files",
}


class Scaling(Facts):
    """The due work of one stage."""

    stage: str
    unit: str = Field(description="What is counted.")
    unfinished: int = Field(
        description="Work that could be done now or is being done; work that waits for a time, a "
        "destination or an operator is not counted."
    )
    oldest_seconds: float = Field(
        description="Seconds for which the oldest unclaimed work has been due; 0 if there is none."
    )


@dataclass(frozen=True)
class LedgerMetrics:
    """Metrics of the ledger."""

    due: dict[str, Unfinished]
    unfinished: dict[str, Unfinished]
    states: dict[str, dict[str, int]]
    retrying: dict[str, int]
    attention: Attention
    destinations: list[str]


@dataclass(frozen=True)
class SpoolMetrics:
    """Metrics of the spool."""

    incoming: Unfinished
    quarantined_bytes: int
    size: int
    free: int
    reserved: int
    processes: dict[str, int]
    workers: dict[str, int]


class ApiMetrics:
    """The API's metrics of one adapter.

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
        """Return the due work of a stage.

        Raises
        ------
        NotAvailable
            If the ledger (for notification: the spool) does not answer.
        """
        if stage == stages.NOTIFICATION:
            work = self.spool.get().incoming
        else:
            work = self.ledger.get().due[stage]
        return Scaling(
            stage=stage,
            unit=UNITS[stage],
            unfinished=work.amount,
            oldest_seconds=work.oldest_seconds or 0.0,
        )


def read_ledger(adapter: Adapter) -> LedgerMetrics:
    """Read the ledger's metrics."""
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
    """Read the spool's metrics."""
    spool.check_whole()
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
    """Return the files in incoming/ that wait for registration."""
    times = [arrival.received_at for arrival in spool.list_incoming()]
    age = max(0.0, time.time() - min(times)) if times else None
    return Unfinished(amount=len(times), oldest_seconds=age)


def quarantined_bytes(spool: Spool) -> int:
    """Return the bytes in quarantine/: the ledger lacks sizes of files with unreadable headers."""
    size = 0
    for arrival in spool.list_quarantine():
        with suppress(OSError):
            size += spool.quarantine_path(str(arrival)).stat().st_size
    return size


class ApiCollector(Collector):
    """Exposes the metrics to Prometheus, without those that are not available.

    Parameters
    ----------
    metrics : ApiMetrics
        The metrics.
    """

    def __init__(self, metrics: ApiMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Return the metrics, which are a few seconds old at most."""
        until = time.monotonic() + fresh.ANSWER_SECONDS
        for value in (self._metrics.spool, self._metrics.ledger, self._metrics.queues):
            value.begin()
        spool = _or_none(self._metrics.spool, until)
        ledger = _or_none(self._metrics.ledger, until)
        queues = _or_none(self._metrics.queues, until)
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


def _or_none(value: Fresh[V], until: float) -> V | None:
    try:
        return value.get(until=until)
    except NotAvailable:
        return None


def _spool(spool: SpoolMetrics) -> Iterator[Metric]:
    yield _gauge("spool_size_bytes", "Size of the spool's disk.", spool.size)
    yield _gauge("spool_free_bytes", "Free bytes of the spool's disk.", spool.free)
    yield _gauge("spool_reserved_bytes", "Free bytes at which nothing is received.", spool.reserved)
    yield _family("processes", "Processes with a recent heartbeat.", "role", spool.processes)
    yield _family("workers", "Workers with a recent heartbeat.", "stage", spool.workers)


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
        "Whether a destination cannot be reached and its exports wait.",
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
            "Time for which the oldest unclaimed work has been due",
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
        "parked-groups": attention.parked_groups,
        "stuck-groups": attention.stuck_groups,
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
    yield _family("kept_bytes", "Bytes of the spool that it occupies.", "kind", sizes)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"dicom_adapter_{name}", text, float(value))


def _family(name: str, text: str, label: str, values: dict[str, int] | dict[str, float]) -> Metric:
    family = GaugeMetricFamily(f"dicom_adapter_{name}", text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], float(number))
    return family
