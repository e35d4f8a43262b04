# SPDX-License-Identifier: Apache-2.0
"""The progress of the demo's studies: read from the ledger, shown in five lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from adapter.core import Adapter
from adapter.ledger import quarantine
from adapter.ledger.queries import find_timeline, list_studies
from adapter.ledger.queries.facts import ExportDetail, Group, JobFacts, Timeline
from adapter.models import ExportState, GroupState, JobState
from adapter.timeline import count

#: A study may share a group, and so jobs and exports, with another study.
F = TypeVar("F", Group, JobFacts, ExportDetail)

_JOB_ENDS = {JobState.SUCCEEDED, JobState.PARKED, JobState.DISCARDED}
_EXPORT_ENDS = {
    ExportState.SUCCEEDED,
    ExportState.PARTIAL,
    ExportState.PARKED,
    ExportState.DISCARDED,
}


@dataclass(frozen=True)
class Line:
    """One line of the display; `transient` changes constantly and is for live displays only."""

    name: str
    text: str
    transient: str = ""


@dataclass(frozen=True)
class DemoProgress:
    """The state of ledger and spool at one moment.

    Attributes
    ----------
    waiting : int
        Acknowledged files that are not registered yet.
    quarantined : int
        Acknowledged files that could not be processed.
    now : datetime
        The ledger's time.
    since : datetime
        Older groups, jobs and exports do not belong to this demo.
    """

    timelines: list[Timeline]
    waiting: int
    quarantined: int
    now: datetime
    since: datetime

    @property
    def groups(self) -> list[Group]:
        """The groups, each once."""
        found = (group for timeline in self.timelines for group in timeline.groups)
        return _unique(group for group in found if group.opened_at >= self.since)

    @property
    def jobs(self) -> list[JobFacts]:
        """The jobs, each once."""
        found = (job for timeline in self.timelines for job in timeline.jobs)
        return _unique(job for job in found if job.created_at >= self.since)

    @property
    def exports(self) -> list[ExportDetail]:
        """The exports, each once."""
        found = (export for timeline in self.timelines for export in timeline.exports)
        return _unique(export for export in found if export.created_at >= self.since)

    @property
    def accounted(self) -> int:
        """Acknowledged files that are registered, discarded or in quarantine."""
        known = sum(line.registered + sum(line.discarded.values()) for line in self.timelines)
        return known + self.quarantined

    def is_over(self, acknowledged: int) -> bool:
        """Return whether all acknowledged files are processed as far as possible."""
        return (
            not self.waiting
            and self.accounted >= acknowledged
            and all(group.state != GroupState.OPEN for group in self.groups)
            and all(job.state in _JOB_ENDS for job in self.jobs)
            and all(export.state in _EXPORT_ENDS for export in self.exports)
        )

    def lines(self) -> list[Line]:
        """Return the states of groups, jobs and exports."""
        registered = sum(timeline.registered for timeline in self.timelines)
        series = sum(timeline.series for timeline in self.timelines)
        studies = count(len(self.timelines), "study").replace("studys", "studies")
        text = f"{count(registered, 'instance')} of {series} series, {studies}"
        if self.quarantined:
            text += f"; {self.quarantined} in quarantine"
        found = [Line("registered", text)]
        left = [
            (group.due_at - self.now).total_seconds()
            for group in self.groups
            if group.state == GroupState.OPEN
        ]
        transient = f"quiet time ends in {max(0.0, *left):.0f} s" if left else ""
        found.append(Line("groups", _states(group.state for group in self.groups), transient))
        running = sum(job.working for job in self.jobs)
        found.append(
            Line("jobs", _states(job.state for job in self.jobs), "at work" if running else "")
        )
        stored = sum(export.stored for export in self.exports)
        files = sum(export.files for export in self.exports)
        text = _states(export.state for export in self.exports)
        if files:
            text += f"; {stored} of {count(files, 'file')} stored by the PACS"
        return [*found, Line("exports", text)]


def look(adapter: Adapter, since: datetime | None = None) -> DemoProgress:
    """Read the progress; without `since`, only groups, jobs and exports from now on count."""
    now = datetime.fromtimestamp(adapter.ledger.now(), UTC)
    page = list_studies(adapter.ledger, limit=1000)
    timelines = [find_timeline(adapter.ledger, study.study_instance_uid) for study in page.items]
    return DemoProgress(
        timelines=[timeline for timeline in timelines if timeline is not None],
        waiting=sum(1 for _ in adapter.spool.list_incoming()),
        quarantined=len(quarantine.list_quarantined(adapter.ledger, limit=1000).items),
        now=now,
        since=since or now,
    )


def _states(states: Iterable[str]) -> str:
    counts = Counter(states)
    return ", ".join(f"{amount} {state}" for state, amount in counts.items()) or "none yet"


def _unique(items: Iterable[F]) -> list[F]:
    return list({item.id: item for item in items}.values())
