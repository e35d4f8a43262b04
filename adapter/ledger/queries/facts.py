# SPDX-License-Identifier: Apache-2.0
"""What the ledger tells those who only read: the shapes behind REST and the command line's tables.

UIDs, AE titles, counts, sizes, states and times; never patient data.  Outside, the keys are
camelCase and times are ISO 8601 in UTC.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

#: Rows on one page, at the most.
LARGEST_PAGE = 1000


def _alias(name: str) -> str:
    return to_camel(name).replace("Uid", "UID")


class Facts(BaseModel):
    """The base of all of them: frozen, camelCase outside."""

    model_config = ConfigDict(alias_generator=_alias, populate_by_name=True, frozen=True)


F = TypeVar("F")


class Page(Facts, Generic[F]):
    """Some rows of a longer list, newest first.

    Attributes
    ----------
    next : str or None
        What to ask for `after` to get the following page; None on the last one.
    """

    items: list[F]
    next: str | None = None


class Study(Facts):
    """A study, as far as it was received: one row of the list."""

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


class ReceivedAssociation(Facts):
    """What one association brought of a study."""

    association: str
    calling_ae_title: str | None
    called_ae_title: str | None
    peer: str | None = Field(description="Address of the peer, where an event tells it.")
    arrivals: int
    size: int
    first_received_at: AwareDatetime
    last_received_at: AwareDatetime
    unidentified: int = Field(
        description="Files of the association whose study is unknown: unregistered or unreadable."
    )


class Group(Facts):
    """A group that holds instances of a study."""

    id: str
    called_ae_title: str
    version: int
    generation: int
    state: str
    opened_at: AwareDatetime
    due_at: AwareDatetime
    closed_at: AwareDatetime | None
    close_reason: str | None
    instances: int
    reclaimed_at: AwareDatetime | None


class Job(Facts):
    """One pipeline's work on one group."""

    id: str
    name: str
    group_id: str
    called_ae_title: str
    generation: int
    instances: int
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


class Hold(Facts):
    """A destination that cannot be reached."""

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


class Export(Facts):
    """A task's way to one destination."""

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
    hold: Hold | None
    report: str = Field(description="What the task owes to a remote Results Service.")
    created_at: AwareDatetime
    updated_at: AwareDatetime


class ExportDetail(Export):
    """An export, and what its destination has not confirmed."""

    unconfirmed: list[Unconfirmed]


class Event(Facts):
    """Something that happened."""

    at: AwareDatetime
    kind: str
    association: str | None
    group_id: str | None
    job_id: str | None
    export_id: str | None
    detail: dict[str, Any]


class Timeline(Facts):
    """Everything that happened to a study, from its associations to its exports."""

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
    associations: list[ReceivedAssociation]
    groups: list[Group]
    jobs: list[Job]
    exports: list[ExportDetail]
    events: list[Event]


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
    transfer_syntax_uid: str | None
    size: int | None
    received_at: AwareDatetime
    quarantined_at: AwareDatetime | None


class Unfinished(Facts):
    """Work of one stage that is not done."""

    amount: int
    oldest_seconds: float | None = Field(description="Age of the oldest, in seconds.")


class Kept(Facts):
    """Things that stay until an operator retries or discards them."""

    amount: int
    size: int = Field(description="Bytes that they keep in the spool.")


class Attention(Facts):
    """What an operator has to look at."""

    parked_jobs: Kept
    parked_exports: Kept
    partial_exports: Kept
    quarantined: Kept
    holds: list[Hold]
