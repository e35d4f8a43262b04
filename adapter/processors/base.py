# SPDX-License-Identifier: Apache-2.0
"""The contracts of the two kinds of plug-in that are told of instances.

A *job processor* owns the instances of the AE titles that name it: it says which of them it wants,
how they are grouped, and which jobs a closed group becomes.  An AE title has exactly one.  An
*observer* is told of every instance and owns none.  Both are found by entry point
(`adapter.processors.registry`) and run in the notification and grouping stages, not in the SCP.

A job processor that raises anything else than it may, or returns what cannot be used, fails for the
file or the group that it was asked about: that one is quarantined or parked at once, with the type
of the exception as the reason, until an operator has it tried again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel

from adapter.dicom.instance import Instance
from adapter.models import AETitle, Priority


@dataclass(frozen=True, slots=True)
class JobRequest:
    """One job that a closed group becomes.

    Attributes
    ----------
    pipeline : str
        The pipeline's name within the AE title; part of the job's id, so unique in a group.
    pipeline_id : str
        The pipeline's id at the platform.
    priority : Priority
        Order among the jobs that wait.
    retry_delay : float
        Seconds before a run that failed is tried again.
    """

    pipeline: str
    pipeline_id: str
    priority: Priority
    retry_delay: float


class JobProcessor(ABC):
    """What becomes of the instances that an AE title is sent.

    Attributes
    ----------
    title : str
        Name for people; part of a job's metadata.
    Settings : type of BaseModel
        Validates an AE title's ``processorSettings`` when it is created; refuses unknown keys.
    """

    title: ClassVar[str]
    Settings: ClassVar[type[BaseModel]]

    def __init__(self, ae_title: AETitle, settings: Any) -> None:
        self.ae_title = ae_title
        self.settings = settings

    @property
    def tags(self) -> Sequence[int]:
        """The tags whose values `group_value` wants to see, beside the UIDs."""
        return ()

    @property
    @abstractmethod
    def timeout(self) -> float:
        """Seconds without a new instance after which a group closes."""

    @property
    @abstractmethod
    def maximum_wait(self) -> float:
        """Seconds after its first instance by which a group closes in any case."""

    @abstractmethod
    def group_value(self, instance: Instance) -> str | None:
        """Return the value that an instance is grouped by, or None if it is not wanted.

        Raises
        ------
        UnreadableInstance
            If it should be grouped but cannot be: it goes to quarantine with the reason.
        """

    @abstractmethod
    def jobs(self) -> Sequence[JobRequest]:
        """Return the jobs that each closed group becomes: at least one."""


class InstanceObserver(Protocol):
    """Told of every stored instance, at least once each."""

    def instance_stored(self, instance: Instance) -> None:
        """Take note of an instance; an exception is logged and holds nothing up."""
