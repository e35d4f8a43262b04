# SPDX-License-Identifier: Apache-2.0
"""The contract of a kind of platform, which runs pipelines on payloads, and how one is found.

A kind of platform is a class, found by the entry point group ``dicom_adapter.platforms``; a
pipeline names it as its `platform`.  The submission stage hands each job over by four verbs, in
this order, and records each before the next::

    create -> describe -> upload -> start

The embedded platform's jobs are then run by our own `pipeline` stage.  A `PolledPlatform` runs its
jobs by itself: the submission stage asks it for the `state` of a run when that is due, takes its
output with `collect`, and tells it by `cancel` to end and forget a run that nobody wants any more.

**Every verb is repeatable.**  The adapter may die between any two instructions; the verb is then
called again with the same run.  `Job.run_id` is the idempotency key: it is new for each run of a
job, and the same for each call about that run, also when the ledger was lost and rebuilt.  Two
verbs of one run are called at the same time only if a worker lost its lease and does not know yet.

**Errors.**  `TemporaryError` for what may pass, `NotYetVisible` for a file that the shared volume
does not show yet, `PermanentError` for what will not pass, `RunLost` if the platform does not know
the run (any more).  Other exceptions count as temporary.  No text of an error holds patient data.
A verb bounds its own time, and a platform may be used by several threads at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError

from adapter import plugins
from adapter.core import Adapter
from adapter.errors import AdapterError, PermanentError, TemporaryError
from adapter.ledger.jobs import Failure, Job
from adapter.log import get_logger
from adapter.settings import Pipeline, Settings

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PayloadFile:
    """One file of a job's payload: where it is, what the platform may call it, and its bytes."""

    path: Path
    name: str
    size: int


class RunLost(TemporaryError):
    """The platform does not know the run (any more): another run takes its place."""


class Phase(StrEnum):
    """How a run at a platform is."""

    WAITING = "waiting"  #: the platform has it and has not begun it; takes no time of the run's
    RUNNING = "running"
    SUCCEEDED = "succeeded"  #: its output can be collected
    FAILED = "failed"  #: `RunState.failure` says why


@dataclass(frozen=True, slots=True)
class RunState:
    """What a platform says of a run.

    Attributes
    ----------
    failure : Failure, optional
        Why it failed.
    may_pass : bool
        Whether another run may do better.
    """

    phase: Phase
    failure: Failure | None = None
    may_pass: bool = True


class NoSettings(BaseModel):
    """The settings of a platform that has none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Platform(ABC):
    """Runs pipelines on payloads.

    Parameters
    ----------
    adapter : Adapter
        Whose jobs they are.
    settings : BaseModel
        What stands under ``platforms > <kind>``.

    Attributes
    ----------
    Settings, PipelineSettings : type of BaseModel
        Validate what stands under ``platforms > <kind>``, and under ``platformSettings`` of each of
        its pipelines, when the settings are read; they refuse unknown keys.
    """

    Settings: ClassVar[type[BaseModel]] = NoSettings
    PipelineSettings: ClassVar[type[BaseModel]] = NoSettings

    def __init__(self, adapter: Adapter, settings: Any) -> None:
        self.adapter = adapter
        self.settings = settings

    def pipeline_settings(self, job: Job) -> Any:
        """Return what the job's pipeline says under ``platformSettings``.

        Raises
        ------
        PermanentError
            If the settings define no such pipeline, or it is for another platform now.
        """
        pipeline = find_pipeline(self.adapter.settings, job)
        try:
            return self.PipelineSettings.model_validate(pipeline.platform_settings)
        except ValidationError:
            raise PermanentError(
                f"the pipeline's platformSettings are not those of platform {job.platform!r}",
                "unknown-pipeline",
            ) from None

    @abstractmethod
    def create(self, job: Job) -> str:
        """Create a run, and return the platform's id for it."""

    @abstractmethod
    def describe(self, job: Job, metadata: Mapping[str, str]) -> None:
        """Add metadata to a created run; its values may be patient data."""

    @abstractmethod
    def upload(self, job: Job, files: Sequence[PayloadFile]) -> Iterable[None]:
        """Give a described run its files; yield after each, so that it can be stopped there.

        After a crash it is called anew with all files, and should find out what is there already.
        """

    @abstractmethod
    def start(self, job: Job) -> None:
        """Start a run that has all its files."""


class PolledPlatform(Platform):
    """A platform that runs its jobs by itself and is asked for their end."""

    @abstractmethod
    def state(self, job: Job) -> RunState:
        """Say how a run is that was started.

        Raises
        ------
        RunLost
            If the platform does not know it (any more).
        """

    @abstractmethod
    def collect(self, job: Job, folder: Path) -> Iterable[None]:
        """Put the output of a run that succeeded into an empty folder; yield after each file.

        Files may lie in folders below it.  Whatever it is, it is checked as the output of an
        embedded run is.  What the run printed may be kept beside it, as ``stdout.txt`` and
        ``stderr.txt`` in the job's `Spool.work_folder`.

        Raises
        ------
        PermanentError
            If there is no output that could be used: the run counts as failed for good.
        """

    @abstractmethod
    def cancel(self, job: Job) -> None:
        """End a run that nobody wants any more, in whatever state, and forget what is kept of it.

        A run that the platform does not know is none to cancel.  The pipeline may have been taken
        out of the settings.
        """


class Platforms:
    """The platforms of one adapter, made when they are asked for.

    Parameters
    ----------
    adapter : Adapter
        Whose.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._made: dict[str, Platform] = {}

    def named(self, kind: str) -> Platform:
        """Return the platform of a kind.

        Raises
        ------
        PermanentError
            If no such kind is installed, or its settings cannot be used.
        """
        if kind not in self._made:
            found = plugins.find(plugins.PLATFORMS, kind)
            if found is None:
                raise PermanentError(f"there is no platform {kind!r} (any more)", "no-platform")
            section = self._adapter.settings.platforms.get(kind, {})
            try:
                plugin: type[Platform] = found.load()
                self._made[kind] = plugin(self._adapter, plugin.Settings.model_validate(section))
            except Exception as error:  # noqa: BLE001 - a plug-in may raise anything
                raise PermanentError(
                    f"platform {kind!r} cannot be used ({type(error).__name__}): see "
                    "`dicom-adapter check-config`",
                    "no-platform",
                ) from None
        return self._made[kind]

    def polled(self, kind: str) -> PolledPlatform:
        """Return the platform of a kind that runs its jobs by itself.

        Raises
        ------
        PermanentError
            As `named`, or if it does not.
        """
        platform = self.named(kind)
        if not isinstance(platform, PolledPlatform):
            raise PermanentError(f"platform {kind!r} reports no end of its jobs", "no-platform")
        return platform


def find_pipeline(settings: Settings, job: Job) -> Pipeline:
    """Return the pipeline that a job is for.

    Raises
    ------
    PermanentError
        If the settings define none of that id.
    """
    pipeline = settings.pipelines.get(job.pipeline_id)
    if pipeline is None:
        raise PermanentError(
            f"there is no pipeline {job.pipeline_id!r}: define it in appsettings.json under "
            f"DicomAdapter > pipelines, restart, and retry the job",
            "unknown-pipeline",
        )
    return pipeline


@contextmanager
def asking(job: Job) -> Iterator[None]:
    """Ask a job's platform for something in the block; what nobody foresaw counts as temporary."""
    try:
        yield
    except (AdapterError, OSError):
        raise
    except Exception as error:  # noqa: BLE001 - a plug-in may raise anything, with any text
        name = type(error).__name__
        log.error("a platform raised an error", platform=job.platform, job=job.id, error=name)
        raise TemporaryError(f"platform {job.platform!r} raised {name}") from None
