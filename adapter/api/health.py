# SPDX-License-Identifier: Apache-2.0
"""Health: what runs, what waits, what an operator has to look at; green, yellow or red, and why.

=======  ==========================================================================================
red      the ledger does not answer or has another schema, the spool is missing or belongs to
         another ledger, or its disk is above the watermark: nothing is received or processed
yellow   something waits for an operator (parked, partial, quarantined), a destination is on hold,
         Redis is down, all processes of a role are silent, a process reports a problem or a
         background loop that fails, or several hosts work on a spool whose ledger serves one
         (hosts that start at the same moment do not see each other)
green    none of these
=======  ==========================================================================================
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, ValidationError
from sqlalchemy.exc import SQLAlchemyError

from adapter import heartbeat
from adapter.api.metrics import incoming, quarantined_bytes
from adapter.api.opening import AdapterOpening, NotOpen
from adapter.core import Adapter
from adapter.errors import SpoolError
from adapter.ledger import queries
from adapter.ledger.queries.facts import Attention, Facts, Kept, Unfinished
from adapter.spool import DiskSpace, Spool
from adapter.stages import NOTIFICATION, STAGES

#: What a heartbeat says of its process, and not of its role.
_ABOUT_THE_PROCESS = {"role", "host", "pid", "at", "age", "loops"}
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
    services: dict[str, list[Process]] = Field(description="Processes, by role.")
    active_dimse_connections: int = Field(description="Associations that the receivers serve.")
    ledger: bool
    broker: bool
    disk: Disk | None
    queues: dict[str, int] | None = Field(description="Wake-ups that wait, by stage.")
    unfinished: dict[str, Unfinished] | None = Field(description="Work not done, by stage.")
    attention: Attention | None


def unready(opening: AdapterOpening) -> list[str]:
    """Return the reasons why the adapter cannot work; an empty list if it is ready."""
    try:
        adapter = opening.adapter
        problems = [] if adapter.ledger.is_usable() else [_OTHER_SCHEMA]
        if adapter.ledger.spool_id != adapter.spool.id:
            problems.append("the ledger belongs to another spool")
    except NotOpen as error:
        return [str(error)]
    except SQLAlchemyError:
        return ["the ledger does not answer"]
    except (SpoolError, OSError):
        return ["the spool is not there"]
    return problems


@dataclass
class _Report:
    """The findings so far."""

    red: list[str] = field(default_factory=list)
    yellow: list[str] = field(default_factory=list)
    services: dict[str, list[Process]] = field(default_factory=dict)
    disk: DiskSpace | None = None
    unfinished: dict[str, Unfinished] | None = None
    attention: Attention | None = None


def examine(opening: AdapterOpening) -> Health:
    """Return the health of the adapter."""
    report = _Report(red=unready(opening))
    queues = opening.queues.lengths()
    if queues is None:
        report.yellow.append("Redis is down: work goes on with some delay")
    with suppress(NotOpen):
        _look_at_spool(report, opening.adapter)
        _look_at_ledger(report, opening.adapter)
    status: Colour = "red" if report.red else "yellow" if report.yellow else "green"
    return Health(
        status=status,
        reasons=report.red + report.yellow,
        services=report.services,
        active_dimse_connections=sum(
            int(process.facts.get("active_associations", 0))
            for process in report.services.get("scp", [])
            if process.alive
        ),
        ledger=report.attention is not None,
        broker=queues is not None,
        disk=None
        if report.disk is None
        else Disk(total=report.disk.total, free=report.disk.free, low=report.disk.low),
        queues=queues,
        unfinished=report.unfinished,
        attention=report.attention,
    )


def _look_at_spool(report: _Report, adapter: Adapter) -> None:
    with suppress(OSError):
        report.disk = adapter.spool.space(adapter.settings.storage)
        if report.disk.low:
            report.red.append("the spool's disk is above the watermark: nothing is received")
    report.services = _services(adapter.spool)
    report.yellow += [
        f"{role} is silent"
        for role, processes in report.services.items()
        if not any(process.alive for process in processes)
    ]
    report.yellow += [
        f"{role} of {process.host}: {problem}"
        for role, processes in report.services.items()
        for process in processes
        for problem in process.facts.get("problem") or []
        if process.alive
    ]
    report.yellow += _failing_loops(report.services)
    hosts = {p.host for processes in report.services.values() for p in processes if p.alive}
    if len(hosts) > 1 and not adapter.ledger.is_shared:
        report.yellow.append(
            f"SQLite serves one host, and {', '.join(sorted(hosts))} work on this spool: "
            "stop all but one, or name a PostgreSQL database for all of them"
        )


def _look_at_ledger(report: _Report, adapter: Adapter) -> None:
    try:
        by_stage = queries.unfinished(adapter.ledger, adapter.settings)
        attention = queries.attention(adapter.ledger)
    except SQLAlchemyError:
        return  # `unready` has reported it
    by_stage[NOTIFICATION] = incoming(adapter.spool)
    report.unfinished = {stage: by_stage[stage] for stage in STAGES}
    quarantined = Kept(amount=attention.quarantined.amount, size=quarantined_bytes(adapter.spool))
    report.attention = attention.model_copy(update={"quarantined": quarantined})
    report.yellow += [
        f"{kept.amount} {one if kept.amount == 1 else more}"
        for one, more, kept in (
            ("group is parked", "groups are parked", attention.parked_groups),
            ("group cannot be reclaimed", "groups cannot be reclaimed", attention.stuck_groups),
            ("job is parked", "jobs are parked", attention.parked_jobs),
            ("export is parked", "exports are parked", attention.parked_exports),
            ("export is partial", "exports are partial", attention.partial_exports),
            ("file is in quarantine", "files are in quarantine", quarantined),
        )
        if kept.amount
    ]
    report.yellow += [f"destination {hold.destination} is on hold" for hold in attention.holds]


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
