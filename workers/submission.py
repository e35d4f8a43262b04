# SPDX-License-Identifier: Apache-2.0
"""Submission: hands a job to the platform, step by step, each step recorded before the next.

``queued -create-> created -describe-> described -upload-> uploaded -start-> started``

A step that fails and may pass is tried ``1 + services > platform > maxRetries`` times, then the job
is parked where it stood.  A step that a crash interrupted is taken again with the same job id.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from adapter.core import Adapter
from adapter.errors import (
    ConfigurationError,
    NotYetVisible,
    PermanentError,
    ProcessorError,
    TemporaryError,
)
from adapter.ledger import jobs, payload
from adapter.ledger.jobs import Failure, Job
from adapter.ledger.leases import Lease
from adapter.ledger.payload import Origin
from adapter.log import get_logger
from adapter.models import JobState
from adapter.processors.registry import create_processor
from adapter.stages import PIPELINE, SUBMISSION
from workers import defeats
from workers.clients.embedded_platform import EmbeddedPlatform
from workers.clients.headers import HeaderReader
from workers.clients.platform import PayloadFile, Platform
from workers.stage import Parked, TaskResult, TryFailed, Work

log = get_logger(__name__)

#: Seconds between looks for a file that the shared volume does not show yet.
VISIBILITY_PAUSE = 2.0

#: Characters of a metadata value, as in the original.
METADATA_LENGTH = 256


def take(work: Work, first: str | None = None) -> TaskResult | None:
    """Submit a job that is due to the embedded platform, `first` if it is; None if none is due."""
    return submit(work, EmbeddedPlatform(work.adapter), first)


def submit(work: Work, platform: Platform, first: str | None = None) -> TaskResult | None:
    """Submit a job that is due to a platform."""
    ledger, workers = work.adapter.ledger, work.adapter.settings.workers
    claimed = jobs.claim_submission(ledger, workers.lease_seconds, first)
    if claimed is None:
        return None
    lease, job = claimed
    submission = Submission(work, platform, lease, job)
    count = partial(jobs.defeat, ledger, lease, job, maximum=workers.maximum_lease_expiries)
    with defeats.counted(work, SUBMISSION, lease, job.id, count) as attempt:
        attempt.outcome = submission.take()
        attempt.failure = submission.failure
    if attempt.outcome == JobState.STARTED:
        work.queues.wake(PIPELINE, job.id)
    return TaskResult(job.id, attempt.outcome, attempt.failure, {"pipeline": job.pipeline_id})


class Submission:
    """One claimed job on its way to the platform."""

    def __init__(self, work: Work, platform: Platform, lease: Lease, job: Job) -> None:
        self._work = work
        self._adapter = work.adapter
        self._platform = platform
        self._lease = lease
        self._job = job
        self.failure: TryFailed | Parked | None = None

    def take(self) -> str:
        """Take the job as far as it goes, and return where it stands then.

        Raises
        ------
        LeaseLost
            If the job is no longer ours; nothing more was recorded.
        """
        ledger, workers = self._adapter.ledger, self._adapter.settings.workers
        settings = self._adapter.settings.services.platform
        if failure := jobs.deadly(self._job, workers.maximum_lease_expiries):
            return self._park(failure)
        try:
            return self._steps()
        except NotYetVisible as error:
            # A try that failed is the latest change of the job, and no reason to wait anew.
            waited = ledger.now() - self._job.updated_at
            if not self._job.tries and waited < workers.visibility_seconds:
                return self._give_back(VISIBILITY_PAUSE)
            failure, delay = Failure("not-visible", str(error)), error.delay
        except PermanentError as error:
            return self._park(Failure(error.code, str(error)))
        except TemporaryError as error:
            failure, delay = Failure("failed", str(error)), error.delay
        except OSError as error:
            defeats.raise_if_nobodys(self._work, error)
            failure, delay = Failure("failed", f"file system: {error.strerror}"), None
        parked = jobs.fail_try(
            ledger,
            self._lease,
            self._job,
            failure,
            retries=settings.max_retries,
            delay=settings.retry_delay_seconds if delay is None else delay,
        )
        log.warning(
            "a job's submission failed",
            job=self._job.id,
            state=self._job.state,
            outcome=failure.outcome,
            parked=parked,
        )
        self.failure = (Parked if parked else TryFailed)(failure.text)
        return JobState.PARKED if parked else "failed"

    def _steps(self) -> str:
        """Take step after step; every one is recorded before the next."""
        steps: dict[str, tuple[Callable[[], None], JobState]] = {
            JobState.QUEUED: (self._create, JobState.CREATED),
            JobState.CREATED: (self._describe, JobState.DESCRIBED),
            JobState.DESCRIBED: (self._upload, JobState.UPLOADED),
            JobState.UPLOADED: (self._start, JobState.STARTED),
        }
        while self._job.state in steps:
            if self._work.stopping.is_set():
                return self._give_back(0)
            step, state = steps[self._job.state]
            step()
            self._job = jobs.advance(self._adapter.ledger, self._lease, self._job, state)
        return self._job.state

    def _create(self) -> None:
        self._job = replace(self._job, platform_job_id=self._platform.create(self._job))

    def _describe(self) -> None:
        self._platform.describe(self._job, describe(self._work, self._job))

    def _upload(self) -> None:
        self._platform.upload(self._job, payload_files(self._adapter, self._job))

    def _start(self) -> None:
        self._platform.start(self._job)

    def _give_back(self, delay: float) -> str:
        jobs.give_back(self._adapter.ledger, self._lease, self._job, delay=delay)
        return "waits"

    def _park(self, failure: Failure) -> str:
        jobs.park(self._adapter.ledger, self._lease, self._job, failure)
        log.error(
            "a job is parked", job=self._job.id, state=self._job.state, outcome=failure.outcome
        )
        self.failure = Parked(failure.text)
        return JobState.PARKED


def payload_files(adapter: Adapter, job: Job) -> list[PayloadFile]:
    """Return the files of a job's group, oldest first."""
    return [
        PayloadFile(
            adapter.spool.instance_path(file.arrival), f"{file.sop_instance_uid}.dcm", file.size
        )
        for file in payload.files_of(adapter.ledger, job)
    ]


def describe(work: Work, job: Job) -> dict[str, str]:
    """Return a job's metadata; its values may be patient data and are kept by the platform only."""
    adapter = work.adapter
    origin = payload.origin_of(adapter.ledger, job)
    files = payload_files(adapter, job)
    metadata = {
        "Source": f"{origin.called_ae_title} ({processor_title(origin)})",
        "Instances": str(len(files)),
        "Generation": str(origin.generation),
    }
    if origin.earlier_jobs:
        metadata["EarlierJobs"] = ",".join(origin.earlier_jobs)
    settings = adapter.settings.services.platform
    if settings.upload_metadata and settings.metadata_dicom_source:
        with work.headers.borrow() as reader:
            metadata |= tag_values(reader, files, settings.metadata_dicom_source)
    return metadata


def processor_title(origin: Origin) -> str:
    """Return the name for people of the job processor that made the group."""
    if origin.ae_title is None:
        return "unknown"
    try:
        return create_processor(origin.ae_title).title
    except (ConfigurationError, ProcessorError):  # it is not installed any more, or fails
        return origin.ae_title.processor


def tag_values(reader: HeaderReader, files: list[PayloadFile], tags: list[str]) -> dict[str, str]:
    """Return every unique value of each tag over all files.

    Returns
    -------
    dict of str to str
        Values by ``GGGGEEEE``, or by ``GGGGEEEE-<i>`` (i from 0) where a tag has several.
    """
    numbers = {tag: int(tag, 16) for tag in tags}
    found: dict[str, dict[str, None]] = {tag: {} for tag in tags}
    for file in files:
        values = reader.read(file.path, list(numbers.values())).values
        for tag, number in numbers.items():
            if number in values:
                found[tag][values[number][:METADATA_LENGTH]] = None
    return {
        tag if len(values) == 1 else f"{tag}-{number}": value
        for tag, values in found.items()
        for number, value in enumerate(values)
    }
