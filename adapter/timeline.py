# SPDX-License-Identifier: Apache-2.0
"""A study's timeline as lines of text: when, about what, and what happened."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from adapter.ledger.queries.facts import EventFacts, ExportFacts, JobFacts, Timeline

HEADINGS = ("time (UTC)", "of", "what happened")


def timeline_lines(timeline: Timeline) -> list[tuple[str, str, str]]:
    """Return what happened to a study, oldest first, under `HEADINGS`."""
    lines: list[tuple[datetime, str, str]] = []
    for part in timeline.associations:
        peer = f" from {part.peer}" if part.peer else ""
        what = f"{part.calling_ae_title}{peer} begins to send to {part.called_ae_title}"
        of = f"association {part.association}"
        lines.append((part.first_received_at, of, what))
        what = f"the last of {count(part.arrivals, 'file')} is received ({part.size} bytes)"
        lines.append((part.last_received_at, of, what))
    lines += [(event.at, _of(event), sentence(event)) for event in timeline.events]
    lines.sort(key=lambda line: line[0])
    return [(f"{at:%H:%M:%S.%f}"[:12], of, what) for at, of, what in lines]


def sentence(event: EventFacts) -> str:
    """Return an event in words: its kind, and its facts."""
    facts = ", ".join(
        f"{key.replace('_', ' ')} {_value(value)}"
        for key, value in event.detail.items()
        if value not in (None, 0, "", [], {})
    )
    kind = event.kind.replace("-", " ")
    return f"{kind}: {facts}" if facts else kind


def job_line(job: JobFacts) -> str:
    """Return the state of a job, in words."""
    words = [word for word in (job.outcome, job.message) if word and job.state != "succeeded"]
    lacks = f"; {count(job.in_quarantine, 'instance')} of its association in quarantine"
    return (
        f"job {job.name} is {job.state}"
        + (f" ({': '.join(words)})" if words else "")
        + (lacks if job.in_quarantine else "")
    )


def export_line(export: ExportFacts) -> str:
    """Return the state of an export, in words."""
    hold = f"; on hold: {export.hold.reason}" if export.hold else ""
    reason = f" ({export.message})" if export.message and export.state != "succeeded" else ""
    return (
        f"{export.stored} of {count(export.files, 'file')} stored at {export.destination}, "
        f"{export.state}{reason}{hold}"
    )


def amount(instances: int, in_quarantine: int) -> str:
    """Return how many instances there are, and how many more are in quarantine, if any."""
    return f"{instances} (+ {in_quarantine} in quarantine)" if in_quarantine else str(instances)


def count(number: int, noun: str) -> str:
    """Return a number and its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def short(row: str) -> str:
    """Return the id of a group, job or export as it is shown to people; commands accept it so."""
    return row[:8]


def _of(event: EventFacts) -> str:
    for name, value in (
        ("export", event.export_id),
        ("job", event.job_id),
        ("group", event.group_id),
        ("association", event.association),
    ):
        if value:
            return f"{name} {value if name == 'association' else short(value)}"
    return ""


def _value(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " and ".join(map(str, value)) or "none"
    return str(value)
