# SPDX-License-Identifier: Apache-2.0
"""The results of queries: the models behind REST and the command line's tables.

They contain UIDs, AE titles, counts, sizes, states and times; never patient data.  In JSON, keys
are camelCase and times are ISO 8601 in UTC.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

#: Most rows on one page.
LARGEST_PAGE = 1000


def _alias(name: str) -> str:
    return to_camel(name).replace("Uid", "UID")


class Facts(BaseModel):
    """The base of all models: immutable, camelCase in JSON."""

    model_config = ConfigDict(alias_generator=_alias, populate_by_name=True, frozen=True)


F = TypeVar("F")


class Page(Facts, Generic[F]):
    """Some rows of a longer list, newest first.

    Attributes
    ----------
    next : str or None
        The value of `after` for the next page; None on the last page.
    """

    items: list[F]
    next: str | None = None


_PATIENT_CONFLICT = "Whether its instances in groups are of several patients."


class Study(Facts):
    """A study, as far as it was received."""

    study_instance_uid: str
    instances: int = Field(description="Different SOP instances in groups.")
    series: int
    size: int = Field(description="Bytes of those instances.")
    called_ae_titles: list[str]
    first_received_at: AwareDatetime
    last_received_at: AwareDatetime
    arrivals: dict[str, int] = Field(description="Acknowledged files, by state.")
    groups: dict[str, int] = Field(description="Groups, by state.")
    jobs: dict[str, int] = Field(description="Jobs, by state.")
    exports: dict[str, int] = Field(description="Exports, by state.")
    patient_conflict: bool = Field(description=_PATIENT_CONFLICT)


class ReceivedAssociation(Facts):
    """The instances of a study that one association brought."""

    association: str
    calling_ae_title: str | None
    called_ae_title: str | None
    peer: str | None = Field(description="Address of the peer, if an event has recorded it.")
    arrivals: int
    size: int
    first_received_at: AwareDatetime
    last_received_at: AwareDatetime
    unidentified: int = Field(
        description="Files of the association whose study is unknown: unregistered or unreadable."
    )


class Group(Facts):
    """A group with instances of a study."""

    id: str
    called_ae_title: str
    version: int
    generation: int
    state: str
    opened_at: AwareDatetime
    due_at: AwareDatetime
    closed_at: AwareDatetime | None
    close_reason: str | None
    reason: str | None = Field(description="Why it is parked, or cannot be reclaimed: a code.")
    message: str | None = Field(description="The same as a sentence.")
    instances: int
    patient_conflict: bool = Field(
        description="Whether a study of it had instances of several patients when it closed."
    )
    reclaimed_at: AwareDatetime | None


class JobFacts(Facts):
    """A job: the run of one pipeline on one group."""

    id: str
    name: str
    group_id: str
    called_ae_title: str
    generation: int
    instances: int
    in_quarantine: int = Field(
        description="Acknowledged instances of the group's associations that it lacks: those of "
        "its studies, and those whose study is unknown, that are in quarantine."
    )
    studies: list[str]
    pipeline: str
    pipeline_id: str
    priority: str
    state: str
    parked_in: str | None
    outcome: str | None
    message: str | None
    exit_code: int | None
    tries: int
    working: bool = Field(description="Whether a worker holds it now.")
    platform: str = Field(description="Who runs it: our own workers (`embedded`), or another.")
    platform_job_id: str | None
    run: int = Field(description="Which run of the job it is, at another platform.")
    failed_runs: int = Field(description="Runs that failed there.")
    handed_over_at: AwareDatetime | None = Field(
        description="Since when another platform has the run."
    )
    running_since: AwareDatetime | None = Field(description="Since when it runs there.")
    due_at: AwareDatetime
    created_at: AwareDatetime
    updated_at: AwareDatetime


class DestinationHold(Facts):
    """A destination hold: exports to an unreachable destination wait until `until`."""

    destination: str
    since: AwareDatetime
    until: AwareDatetime
    failures: int
    reason: str


class Unconfirmed(Facts):
    """A file that a destination has not confirmed."""

    number: int
    sop_instance_uid: str | None
    outcome: str | None = Field(description="Of the last try; null if it was not tried yet.")
    status: int | None = Field(
        description="Of the last answer, if its protocol has one: a C-STORE's status, for instance."
    )
    reason: str | None
    tries: int


class ExportFacts(Facts):
    """An export: a task's results for one destination."""

    id: str
    task_id: str
    job_id: str | None
    studies: list[str]
    destination: str
    priority: str
    state: str
    reason: str | None
    message: str | None
    tries: int
    working: bool = Field(description="Whether a worker holds it now.")
    files: int
    stored: int
    failed: int = Field(description="Files that were tried and are not stored.")
    due_at: AwareDatetime
    waiting_since: AwareDatetime | None
    hold: DestinationHold | None
    report: str = Field(description="State of the report to a remote Results Service.")
    created_at: AwareDatetime
    updated_at: AwareDatetime


class ExportDetail(ExportFacts):
    """An export, and the files that its destination has not confirmed."""

    unconfirmed: list[Unconfirmed]


class EventFacts(Facts):
    """An event of a study's timeline."""

    at: AwareDatetime
    kind: str
    association: str | None
    group_id: str | None
    job_id: str | None
    export_id: str | None
    detail: dict[str, Any]


class Timeline(Facts):
    """The timeline of a study, from its associations to its exports."""

    study_instance_uid: str
    instances: int
    series: int
    size: int
    first_received_at: AwareDatetime
    last_received_at: AwareDatetime
    registered: int
    received: int = Field(description="Acknowledged files that are being registered again.")
    discarded: dict[str, int] = Field(description="Files that no group took, by reason.")
    quarantined: dict[str, int] = Field(description="Files in quarantine, by reason.")
    patient_conflict: bool = Field(description=_PATIENT_CONFLICT)
    associations: list[ReceivedAssociation]
    groups: list[Group]
    jobs: list[JobFacts]
    exports: list[ExportDetail]
    events: list[EventFacts]


class QuarantinedFile(Facts):
    """An acknowledged file that could not be processed."""

    id: str
    reason: str | None
    message: str | None
    association: str
    calling_ae_title: str | None
    called_ae_title: str | None
    sop_class_uid: str | None
    sop_instance_uid: str | None
    study_instance_uid: str | None
    series_instance_uid: str | None
    transfer_syntax_uid: str | None
    size: int | None
    received_at: AwareDatetime
    quarantined_at: AwareDatetime | None


class Unfinished(Facts):
    """Unfinished work of one stage."""

    amount: int
    oldest_seconds: float | None = Field(description="Age of the oldest, in seconds.")


class Kept(Facts):
    """Work that is kept until an operator retries or discards it."""

    amount: int
    size: int = Field(description="Bytes that it occupies in the spool.")


class Attention(Facts):
    """Work that needs an operator, and destination holds."""

    parked_groups: Kept = Field(description="Groups that cannot be closed.")
    stuck_groups: Kept = Field(description="Groups whose files cannot be deleted (yet).")
    parked_jobs: Kept
    parked_exports: Kept
    partial_exports: Kept
    quarantined: Kept
    holds: list[DestinationHold]
