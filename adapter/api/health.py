# SPDX-License-Identifier: Apache-2.0
"""Health: what runs, what waits, what an operator has to look at; green, yellow or red, and why.

=======  ==========================================================================================
red      instances are refused or will be, or nothing is processed: the spool is missing, belongs
         to another ledger, cannot be written, or its disk is above the watermark; a receiver
         refuses instances, or every receiver is silent; the ledger does not answer, takes no
         transaction, or has another schema
yellow   something waits for an operator (parked, partial, quarantined), a destination is on hold,
         an AE title's job processor cannot be used, Redis is down, all processes of another role
         are silent, a process reports a problem or a background loop that fails, or several hosts
         work on a spool whose ledger serves one (hosts that start at the same moment do not see
         each other); something has not answered in time, and is unknown
green    none of these
=======  ==========================================================================================

Each part is looked at by a thread of its own (`adapter.api.fresh`): what hangs is "unknown", and
the answer comes within a second.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError
from sqlalchemy.exc import SQLAlchemyError

from adapter import heartbeat
from adapter.api import fresh
from adapter.api.fresh import Fresh, NotAvailable
from adapter.api.metrics import incoming, quarantined_bytes
from adapter.api.opening import AdapterOpening
from adapter.core import Adapter
from adapter.errors import SpoolError
from adapter.ledger import configuration, queries
from adapter.ledger.engines import NoConnection
from adapter.ledger.queries.facts import Attention, Facts, Kept, Unfinished
from adapter.models import EntityKind
from adapter.processors.registry import problems_of
from adapter.spool import DiskSpace, Spool
from adapter.stages import NOTIFICATION, STAGES

#: What a heartbeat says of its process, and not of its role.
_ABOUT_THE_PROCESS = {"role", "host", "pid", "at", "age", "loops"}
#: The role whose silence means that nothing is received.
RECEIVER = "scp"
#: Seconds without a transaction after which the ledger counts as locked.
_LOCKED_SECONDS = 10.0

V = TypeVar("V")

_OTHER_SCHEMA = "the ledger has the schema of another release"

Colour = Literal["green", "yellow", "red"]


class Loop(Facts):
    """One background loop of a process."""

    state: Literal["running", "failing", "dead"]
    since: float = Field(description="When this state began (seconds since 1970, UTC).")
    failures: int = Field(description="Runs that failed since the process started.")
    error: str | None = Field(description="The type of the last error.")


class Process(Facts):
    """One process of a role, as its heartbeat reports it."""

    host: str
    pid: int
    alive: bool = Field(description="Whether its last heartbeat is recent.")
    silent_seconds: float
    facts: dict[str, Any] = Field(description="What the role says about itself.")
    loops: dict[str, Loop] = Field(description="Its background loops, by name.")


class Disk(Facts):
    """The spool's disk."""

    total: int = Field(description="Bytes.")
    free: int = Field(description="Bytes.")
    low: bool = Field(description="Whether it is above the watermark: nothing is received.")


class Health(Facts):
    """The state of the whole adapter; what is unknown at the moment is null."""

    status: Colour
    reasons: list[str] = Field(description="Why it is not green.")
    spool: str | None = Field(description="The id of the adapter's spool.")
    services: dict[str, list[Process]] = Field(description="Processes, by role.")
    active_dimse_connections: int = Field(description="Associations that the receivers serve.")
    ledger: bool
    broker: bool
    disk: Disk | None
    queues: dict[str, int] | None = Field(description="Wake-ups that wait, by stage.")
    unfinished: dict[str, Unfinished] | None = Field(description="Work not done, by stage.")
    attention: Attention | None


@dataclass(frozen=True)
class _SpoolFacts:
    """What is read of the spool without listing its files."""

    disk: DiskSpace | None
    services: dict[str, list[Process]]


@dataclass
class _Report:
    """The findings so far."""

    red: list[str] = field(default_factory=list)
    yellow: list[str] = field(default_factory=list)


class HealthCheck:
    """Finds out how an adapter is, within `fresh.ANSWER_SECONDS`.

    Parameters
    ----------
    opening : AdapterOpening
        The adapter, once it is open, and its broker.
    """

    def __init__(self, opening: AdapterOpening) -> None:
        self._opening = opening
        self._belonging = Fresh(lambda: _belonging(opening.adapter))
        self._spool = Fresh(lambda: _read_spool(opening.adapter))
        self._files = Fresh(lambda: _read_files(opening.adapter.spool))
        self._ledger = Fresh(lambda: _read_ledger(opening.adapter))
        self._processors = Fresh(lambda: _read_processors(opening.adapter))
        self._queues = Fresh(opening.queues.lengths)

    def unready(self) -> list[str]:
        """Return the reasons why the adapter cannot work; an empty list if it is ready."""
        return self._unready(time.monotonic() + fresh.ANSWER_SECONDS)

    def examine(self) -> Health:
        """Return the health of the adapter."""
        until = time.monotonic() + fresh.ANSWER_SECONDS
        for part in (
            self._belonging,
            self._spool,
            self._files,
            self._ledger,
            self._processors,
            self._queues,
        ):
            part.begin(0)
        report = _Report(red=self._unready(until))
        queues = self._get(self._queues, until, report, "Redis")
        if queues is None:
            report.yellow.append("Redis is down: work goes on with some delay")
        spool = files = ledger = None
        if self._opening.is_open:
            spool = self._get(self._spool, until, report, "the spool")
            files = self._get(self._files, until, report, "the spool's list of files")
            ledger = self._get(self._ledger, until, report, "the ledger")
            processors = self._get(self._processors, until, report, "the ledger")
            report.yellow += processors or []
        if spool is not None:
            _judge_spool(report, spool, shared=self._opening.adapter.ledger.is_shared)
        if (problem := self._opening.heart.problem) is not None:
            report.red.append(f"the spool cannot be written ({problem}): instances are refused")
        if (seconds := self._opening.locked_seconds) > _LOCKED_SECONDS:
            report.red.append(f"the ledger has taken no transaction for {seconds:.0f} s")
        unfinished, attention = _judge_ledger(report, ledger, files)
        services = {} if spool is None else spool.services
        disk = None if spool is None else spool.disk
        return Health(
            status="red" if report.red else "yellow" if report.yellow else "green",
            reasons=list(dict.fromkeys(report.red + report.yellow)),
            spool=self._opening.spool_id,
            services=services,
            active_dimse_connections=sum(
                int(process.facts.get("active_associations", 0))
                for process in services.get("scp", [])
                if process.alive
            ),
            ledger=ledger is not None,
            broker=queues is not None,
            disk=None if disk is None else Disk(total=disk.total, free=disk.free, low=disk.low),
            queues=queues,
            unfinished=unfinished,
            attention=attention,
        )

    def _unready(self, until: float) -> list[str]:
        if not self._opening.is_open:
            return [self._opening.problem]
        try:
            return self._belonging.get(keep=0, until=until, last=False)
        except NotAvailable as error:
            cause = error.__cause__
            if isinstance(cause, (SpoolError, OSError)):
                away = isinstance(cause, SpoolError)
                return [str(cause) if away else "the spool cannot be read"]
            if isinstance(cause, NoConnection):
                return [f"the ledger does not answer: {cause}"]
            if isinstance(cause, SQLAlchemyError):
                return ["the ledger does not answer"]
            return [] if error.late else ["ledger or spool have not answered for a while"]

    def _get(self, part: Fresh[V], until: float, report: _Report, name: str) -> V | None:
        try:
            return part.get(keep=0, until=until, last=False)
        except NotAvailable as error:
            if error.__cause__ is None:
                report.yellow.append(f"unknown: {name} has not answered in time")
            return None


def _belonging(adapter: Adapter) -> list[str]:
    """Return what is wrong with the schema, and with spool and ledger as a pair."""
    adapter.spool.check_whole()
    problems = [] if adapter.ledger.is_usable() else [_OTHER_SCHEMA]
    if adapter.ledger.spool_id != adapter.spool.id:
        problems.append("the ledger belongs to another spool")
    return problems


def _read_spool(adapter: Adapter) -> _SpoolFacts:
    disk = None
    with suppress(OSError, SpoolError):
        disk = adapter.spool.space(adapter.settings.storage)
    return _SpoolFacts(disk, _services(adapter.spool))


def _read_files(spool: Spool) -> tuple[Unfinished, int]:
    return incoming(spool), quarantined_bytes(spool)


def _read_ledger(adapter: Adapter) -> tuple[dict[str, Unfinished], Attention]:
    ledger = adapter.ledger
    return queries.unfinished(ledger, adapter.settings), queries.attention(ledger)


def _read_processors(adapter: Adapter) -> list[str]:
    """Return what is wrong with the job processors of the AE titles."""
    known = configuration.current(adapter.ledger, EntityKind.AE_TITLE)
    return problems_of(found.entity for found in known)


def _judge_spool(report: _Report, spool: _SpoolFacts, *, shared: bool) -> None:
    if spool.disk is not None and spool.disk.low:
        report.red.append(f"the spool's disk {spool.disk.problem}: nothing is received")
    for role, processes in spool.services.items():
        alive = [process for process in processes if process.alive]
        if not alive:
            where = report.red if role == RECEIVER else report.yellow
            where.append(f"{role} is silent")
        for process in alive:
            process_name = f"{role} of {process.host}"
            if refuses := process.facts.get("refuses"):
                report.red.append(f"{process_name} refuses instances: {refuses}")
            report.yellow += [
                f"{process_name}: {one}" for one in process.facts.get("problem") or []
            ]
    report.yellow += _failing_loops(spool.services)
    hosts = {p.host for processes in spool.services.values() for p in processes if p.alive}
    if len(hosts) > 1 and not shared:
        report.yellow.append(
            f"SQLite serves one host, and {', '.join(sorted(hosts))} work on this spool: "
            "stop all but one, or name a PostgreSQL database for all of them"
        )


def _judge_ledger(
    report: _Report,
    ledger: tuple[dict[str, Unfinished], Attention] | None,
    files: tuple[Unfinished, int] | None,
) -> tuple[dict[str, Unfinished] | None, Attention | None]:
    if ledger is None:
        return None, None
    by_stage, attention = ledger
    if files is not None:
        by_stage[NOTIFICATION], size = files
        quarantined = Kept(amount=attention.quarantined.amount, size=size)
        attention = attention.model_copy(update={"quarantined": quarantined})
    report.yellow += [
        f"{kept.amount} {one if kept.amount == 1 else more}"
        for one, more, kept in (
            ("group is parked", "groups are parked", attention.parked_groups),
            ("group cannot be reclaimed", "groups cannot be reclaimed", attention.stuck_groups),
            ("job is parked", "jobs are parked", attention.parked_jobs),
            ("export is parked", "exports are parked", attention.parked_exports),
            ("export is partial", "exports are partial", attention.partial_exports),
            ("file is in quarantine", "files are in quarantine", attention.quarantined),
        )
        if kept.amount
    ]
    report.yellow += [f"destination {hold.destination} is on hold" for hold in attention.holds]
    return {stage: by_stage[stage] for stage in STAGES if stage in by_stage}, attention


def _failing_loops(services: dict[str, list[Process]]) -> list[str]:
    """Return what to say of background loops that fail; processes of one host say it once."""
    found = [
        f"{role} of {process.host}: the background loop {name} is {loop.state} ({loop.error})"
        for role, processes in services.items()
        for process in processes
        for name, loop in process.loops.items()
        if process.alive and loop.state != "running"
    ]
    return list(dict.fromkeys(found))


def _services(spool: Spool) -> dict[str, list[Process]]:
    found: dict[str, list[Process]] = {}
    for beat in heartbeat.read_all(spool):
        process = Process(
            host=str(beat.get("host")),
            pid=int(beat.get("pid", 0)),
            alive=beat["age"] < heartbeat.SILENCE_SECONDS,
            silent_seconds=beat["age"],
            facts={key: beat[key] for key in beat.keys() - _ABOUT_THE_PROCESS},
            loops=_loops(beat),
        )
        found.setdefault(str(beat.get("role")), []).append(process)
    return found


def _loops(beat: dict[str, Any]) -> dict[str, Loop]:
    try:
        return {name: Loop(**loop) for name, loop in (beat.get("loops") or {}).items()}
    except (AttributeError, TypeError, ValidationError):  # written by another release
        return {}
