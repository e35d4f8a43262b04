# SPDX-License-Identifier: Apache-2.0
"""The vocabulary: what stands in the ledger, and the state machines.

::

    arrival  received -> registered | discarded | quarantined
             quarantined -> received | discarded, when an operator says so
    group    open -> closed -> submitted -> reclaiming -> reclaimed
             open -> parked -> closing -> closed | parked;  parked -> reclaiming, given up
    job      queued -> created -> described -> uploaded -> started -> succeeded
                                                        -> handed-over -> succeeded
             handed-over -> queued (another run);  any of these -> parked -> (where it stood)
             any of these, parked -> discarded
    export   pending -> sending -> succeeded | partial
             sending -> pending (a retry);  pending, sending -> parked -> pending | discarded
    task     an export's report to a remote Results Service: none | open -> due -> reported

Nothing here reads a file, a clock or a socket.
"""

from __future__ import annotations

import ipaddress
import re
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from typing import Annotated, Any, Final, Generic, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from adapter.addresses import peer_address
from adapter.dicom.ae_titles import check_ae_title
from adapter.dicom.uids import check_uid

#: The namespace of every id that is made from its key, so that it can be made again.
ID_NAMESPACE = uuid.UUID("5b0f4a52-6a0b-5f0e-9d3c-0f6c9e0c7a11")


class ArrivalState(StrEnum):
    """What became of an acknowledged file."""

    RECEIVED = "received"  #: seen in incoming/, being registered
    REGISTERED = "registered"  #: an instance of a group
    DISCARDED = "discarded"  #: its processor does not want it, or the same was here before
    QUARANTINED = "quarantined"  #: could not be processed; waits for an operator


class GroupState(StrEnum):
    """Where a group stands."""

    OPEN = "open"  #: takes instances
    PARKED = "parked"  #: it cannot be closed; waits for an operator, and takes no instances
    CLOSING = "closing"  #: an operator has it closed: tried again, and takes no instances
    CLOSED = "closed"  #: complete; its jobs exist
    SUBMITTED = "submitted"  #: every job has been handed to the platform
    RECLAIMING = "reclaiming"  #: its files are being deleted
    RECLAIMED = "reclaimed"  #: its files are gone


class JobState(StrEnum):
    """Where a job stands; the first four are steps of the submission still to take."""

    QUEUED = "queued"
    CREATED = "created"
    DESCRIBED = "described"
    UPLOADED = "uploaded"
    STARTED = "started"  #: for a worker of ours to run (embedded platform)
    HANDED_OVER = "handed-over"  #: another platform has it, and is asked for its end
    SUCCEEDED = "succeeded"
    PARKED = "parked"
    DISCARDED = "discarded"


#: The platform whose jobs our own `pipeline` stage runs.
EMBEDDED = "embedded"

#: The states of a job that the submission stage hands over, in order.
SUBMISSION_STATES = (JobState.QUEUED, JobState.CREATED, JobState.DESCRIBED, JobState.UPLOADED)


class ExportState(StrEnum):
    """Where a task stands for one destination."""

    PENDING = "pending"
    SENDING = "sending"
    SUCCEEDED = "succeeded"  #: every file is confirmed
    PARTIAL = "partial"  #: within the failure threshold, but not every file is confirmed
    PARKED = "parked"
    DISCARDED = "discarded"


class ReportState(StrEnum):
    """What a task still owes to the Results Service it came from."""

    NONE = "none"  #: the ledger is the Results Service: nothing to report
    OPEN = "open"  #: not decided yet
    DUE = "due"  #: decided, not taken by the Results Service yet ("unreported")
    REPORTED = "reported"


class Outcome(StrEnum):
    """What a destination did with one file."""

    STORED = "stored"
    RETRY = "retry"  #: may pass: the file is sent again while tries remain
    REFUSED = "refused"  #: will not pass


class Priority(IntEnum):
    """A job's priority; the numbers order the ledger's claims."""

    LOWER = 1
    NORMAL = 2
    HIGHER = 3
    IMMEDIATE = 4


class EntityKind(StrEnum):
    """The kinds of dynamic configuration."""

    AE_TITLE = "aet"
    SOURCE = "source"
    DESTINATION = "destination"


#: The kind of a destination that does not say which it is.
DICOM: Final = "dicom"

AETitleText = Annotated[str, AfterValidator(check_ae_title)]
UIDText = Annotated[str, AfterValidator(check_uid)]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f/\\]+$")]
PipelineId = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f]+$")]
ProcessorSettings = dict[
    Annotated[str, Field(max_length=128)], Annotated[str, Field(max_length=4096)]
]


def _networks(value: object) -> list[str]:
    items = re.split(r"[,\s]+", value) if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise ValueError("an address, or a list of addresses")  # noqa: TRY004 - pydantic's protocol
    networks = []
    for item in filter(None, items):
        try:
            network = ipaddress.ip_network(str(item), strict=False)
        except ValueError:
            raise ValueError(
                f"{str(item)[:64]!r} is not an IP address or network; host names are not looked up"
            ) from None
        single = network.num_addresses == 1
        networks.append(str(network.network_address) if single else str(network))
    if not networks:
        raise ValueError("at least one IP address or network is needed")
    return networks


class Entity(BaseModel):
    """The base of AE titles, sources and destinations: frozen, camelCase outside, strict keys."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True
    )


class AETitle(Entity):
    """An AE title that modalities send to, and what becomes of the instances it is sent."""

    name: Name = ""
    ae_title: AETitleText
    processor: Annotated[str, Field(min_length=1, max_length=128)] = "ae-title"
    processor_settings: ProcessorSettings = Field(default_factory=dict, max_length=100)
    overwrite_same_instance: bool = False
    ignored_sop_classes: list[UIDText] = Field(default_factory=list, max_length=200)
    resend: Literal["ignore", "rerun"] = "ignore"
    on_patient_conflict: Literal["warn", "hold"] = "warn"

    @model_validator(mode="before")
    @classmethod
    def _name_is_the_ae_title(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("name"):
            title = data.get("aeTitle", data.get("ae_title"))
            return {**data, "name": title} if title else data
        return data

    @property
    def key(self) -> str:
        """The name that the entity is addressed by."""
        return self.name


class Source(Entity):
    """A calling AE title, and the addresses it may call from."""

    ae_title: AETitleText
    host_ip: Annotated[list[str], BeforeValidator(_networks)] = Field(max_length=256)

    @property
    def key(self) -> str:
        """The name that the entity is addressed by."""
        return self.ae_title

    def allows(self, address: str) -> bool:
        """Tell whether a peer's address is one of the source's."""
        peer = peer_address(address)
        return any(peer in ipaddress.ip_network(item) for item in self.host_ip)


class Destination(Entity):
    """Where results are sent to; what else has to be known of it depends on its kind."""

    name: Name
    kind: Name

    @property
    def key(self) -> str:
        """The name that the entity is addressed by."""
        return self.name


class DicomDestination(Destination):
    """A DICOM application entity that results are sent to by C-STORE."""

    kind: Literal["dicom"] = DICOM
    ae_title: AETitleText
    host_ip: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9_.:%-]+$")]
    port: Annotated[int, Field(ge=1, le=65535)]
    reencode_uncompressed: bool = False


E = TypeVar("E")

#: The kinds of destinations; `workers.clients.destinations` has a client for each.
DESTINATIONS: dict[str, type[Destination]] = {DICOM: DicomDestination}


def entity_model(kind: EntityKind, body: Any) -> type[AETitle | Source | Destination]:
    """Return the model of an entity: a destination's is that of its own kind, `dicom` by default.

    Raises
    ------
    ValueError
        If there is no such kind of destination.
    """
    if kind is EntityKind.AE_TITLE:
        return AETitle
    if kind is EntityKind.SOURCE:
        return Source
    named = body.get("kind", DICOM) if isinstance(body, dict) else DICOM
    if not isinstance(named, str) or named not in DESTINATIONS:
        raise ValueError(f"kind: one of {', '.join(DESTINATIONS)}")
    return DESTINATIONS[named]


@dataclass(frozen=True, slots=True)
class Versioned(Generic[E]):
    """One version of an entity, as it stands in the ledger."""

    version: int
    entity: E
    owner: str = "operator"


_ARRIVAL = re.compile(r"(\d{8}T\d{6}\.\d{6}Z)-([0-9a-f]{12})-(\d{6,})-v(\d+)")


@dataclass(frozen=True, slots=True, order=True)
class ArrivalId:
    """The id that the SCP gives to an acknowledged file; its text is the file's name.

    ``20261124T031753.123456Z-3f9a2c71d0aa-000017-v12``: receive time (UTC), association, number
    within it, and the version of the AE title's configuration it was accepted under.  Sorted as
    text it is sorted by receive time.
    """

    received_at: float
    association: str
    number: int
    version: int

    def __str__(self) -> str:
        seconds, micros = divmod(round(self.received_at * 1_000_000), 1_000_000)
        year, month, day, hour, minute, second, *_ = time.gmtime(seconds)
        stamp = f"{year:04d}{month:02d}{day:02d}T{hour:02d}{minute:02d}{second:02d}.{micros:06d}Z"
        return f"{stamp}-{self.association}-{self.number:06d}-v{self.version}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the arrival that `text` names.

        Raises
        ------
        ValueError
            If it is not the text of an arrival id.
        """
        match = _ARRIVAL.fullmatch(text)
        if match is None:
            raise ValueError("not an arrival id")
        seconds = datetime.strptime(match[1][:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC).timestamp()
        micros = int(match[1][16:22])
        return cls(seconds + micros / 1_000_000, match[2], int(match[3]), int(match[4]))


def group_id(first_version: int, key: str, generation: int) -> str:
    """Return the id of a group: made again from the same key, it is the same.

    Parameters
    ----------
    first_version : int
        The version that the AE title was created with.
    key : str
        The grouping value, or its hash.
    generation : int
        Number of the group among those of the same value.
    """
    return str(uuid.uuid5(ID_NAMESPACE, f"group|{first_version}|{key}|{generation}"))


def job_id(group: str, pipeline: str) -> str:
    """Return the id of a group's job for one pipeline: made again, it is the same."""
    return str(uuid.uuid5(ID_NAMESPACE, f"job|{group}|{pipeline}"))


def run_id(job: str, run: int) -> str:
    """Return the id of a job's run at a platform: the idempotency key of all its verbs."""
    return f"{job}-{run}"


def task_id(job: str) -> str:
    """Return the id of the Results Service task that a job's results make."""
    return str(uuid.uuid5(ID_NAMESPACE, f"task|{job}"))


def export_id(task: str, destination: str) -> str:
    """Return the id of a task's export to one destination."""
    return str(uuid.uuid5(ID_NAMESPACE, f"export|{task}|{destination}"))
