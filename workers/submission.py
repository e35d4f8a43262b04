# SPDX-License-Identifier: Apache-2.0
"""Submission: hands each job to its platform, step by step, each step recorded before the next.

::

    queued -create-> created -describe-> described -upload-> uploaded -start-> started | handed-over

A step that fails and may pass is tried ``1 + services > platform > maxRetries`` times, then the job
is parked where it stood.  A step that a crash interrupted is taken again with the same run's id.
Who asks platforms for the end of what is handed over, and cancels, is `workers.remote_runs`: the
same stage, so that one pool of workers talks to platforms, and no long run holds it up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from adapter.core import Adapter
from adapter.errors import (
    ConfigurationError,
    LeaseLost,
    NotYetVisible,
    PermanentError,
    ProcessorError,
    Stopped,
    TemporaryError,
)
from adapter.ledger import jobs, payload, runs
from adapter.ledger.jobs import Failure, Job
from adapter.ledger.leases import Lease
from adapter.ledger.payload import Origin
from adapter.log import get_logger
from adapter.models import EMBEDDED, JobState
from adapter.processors.registry import create_processor
from adapter.stages import PIPELINE, SUBMISSION
from workers import defeats, publication, remote_runs
from workers.claimed_job import ClaimedJob
from workers.clients.headers import HeaderReader
from workers.clients.platform import (
    PayloadFile,
    Platform,
    Platforms,
    PolledPlatform,
    RunLost,
    asking,
    find_pipeline,
)
from workers.stage import TaskResult, Work, failure_of

log = get_logger(__name__)

#: Seconds between looks for a file that the shared volume does not show yet.
VISIBILITY_PAUSE = 2.0

#: Characters of a metadata value, as in the original.
METADATA_LENGTH = 256


def take(work: Work, first: str | None = None) -> TaskResult | None:
    """Take a job that is due a step further, `first` if it is, or ask its platform how it is.

    Cancels a run that nobody wants any more if no job is due; None if there is none either.
    """
    return take_step(work, work.platforms, first)


def take_step(work: Work, platforms: Platforms, first: str | None = None) -> TaskResult | None:
    """Do as `take` with platforms of one's own."""
    ledger, workers = work.adapter.ledger, work.adapter.settings.workers
    claimed = runs.claim_step(ledger, workers.lease_seconds, first)
    if claimed is None:
        return remote_runs.cancel_next(work, platforms)
    lease, job = claimed
    handed_over = job.state == JobState.HANDED_OVER
    step = (remote_runs.RemoteRun if handed_over else Submission)(work, platforms, lease, job)
    count = partial(jobs.defeat, ledger, lease, job, maximum=workers.maximum_lease_expiries)
    with defeats.counted(work, SUBMISSION, lease, job.id, count) as attempt:
        attempt.outcome = step.take()
        attempt.failure = step.failure
    if attempt.outcome == defeats.LOST and not handed_over:
        runs.cancel_if_discarded(ledger, job.id)
    if attempt.outcome == JobState.STARTED:
        work.queues.wake(PIPELINE, job.id)
    facts = {"pipeline": job.pipeline_id}
    return TaskResult(job.id, attempt.outcome, attempt.failure, facts)


class Submission(ClaimedJob):
    """One claimed job on its way to its platform."""

    def __init__(self, work: Work, platforms: Platforms, lease: Lease, job: Job) -> None:
        super().__init__(work, lease, job)
        self._platforms = platforms

    def _take(self) -> str:
        try:
            return self._try()
        except Stopped:
            return self._give_back(0)
        except RunLost as error:
            lost = Failure("lost", str(error))
            outcome = remote_runs.fail_run(self._work, self._lease, self._job, lost)
            self.failure = failure_of(outcome, lost.text)
            return outcome

    def _try(self) -> str:
        """Take step after step until one fails, and judge that."""
        ledger, workers = self._adapter.ledger, self._adapter.settings.workers
        settings = self._adapter.settings.services.platform
        try:
            return self._steps(self._choose_platform())
        except (Stopped, RunLost):
            raise
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
        self._require_spool()
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
        outcome = JobState.PARKED if parked else "failed"
        self.failure = failure_of(outcome, failure.text)
        return outcome

    def _choose_platform(self) -> Platform:
        """Return the job's platform: until the run is created, the one that its pipeline names."""
        job = self._job
        pipeline = self._adapter.settings.pipelines.get(job.pipeline_id)
        chosen = job.platform if pipeline is None else pipeline.platform
        if job.state == JobState.QUEUED and chosen != job.platform:
            self._job = runs.choose_platform(self._adapter.ledger, self._lease, job, chosen)
        return self._platforms.named(self._job.platform)

    def _steps(self, platform: Platform) -> str:
        """Take step after step; every one is recorded before the next."""
        job = self._job
        if job.platform != EMBEDDED and publication.is_published(self._adapter, job):
            return self._adopt()
        ledger, polled = self._adapter.ledger, isinstance(platform, PolledPlatform)
        steps: dict[str, tuple[Callable[[Platform], None], JobState]] = {
            JobState.QUEUED: (self._create, JobState.CREATED),
            JobState.CREATED: (self._describe, JobState.DESCRIBED),
            JobState.DESCRIBED: (self._upload, JobState.UPLOADED),
            JobState.UPLOADED: (
                self._start,
                JobState.HANDED_OVER if polled else JobState.STARTED,
            ),
        }
        while self._job.state in steps:
            if self._work.stopping.is_set():
                raise Stopped
            step, state = steps[self._job.state]
            step(platform)
            delay = self._adapter.settings.services.platform.poll_seconds if polled else 0.0
            self._job = jobs.advance(ledger, self._lease, self._job, state, delay=delay)
        return self._job.state

    def _adopt(self) -> str:
        """Succeed with results that are published already: the ledger was lost and rebuilt."""
        pipeline = find_pipeline(self._adapter.settings, self._job)
        with self._work.headers.borrow() as reader:
            results = publication.adopt(self._adapter, self._job, reader)
        return publication.succeed(self._work, self._lease, self._job, pipeline, results)

    def _create(self, platform: Platform) -> None:
        with asking(self._job):
            self._job = replace(self._job, platform_job_id=platform.create(self._job))

    def _describe(self, platform: Platform) -> None:
        metadata = describe(self._work, self._job)
        with asking(self._job):
            platform.describe(self._job, metadata)

    def _upload(self, platform: Platform) -> None:
        files = payload_files(self._adapter, self._job)
        with asking(self._job):
            for _ in platform.upload(self._job, files):
                if self._lease.lost.is_set():
                    raise LeaseLost(f"job {self._job.id} was lost while its files were uploaded")
                if self._work.stopping.is_set():
                    raise Stopped

    def _start(self, platform: Platform) -> None:
        with asking(self._job):
            platform.start(self._job)

    def _give_back(self, delay: float) -> str:
        jobs.give_back(self._adapter.ledger, self._lease, self._job, delay=delay)
        return "waits"


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
    if origin.patient_conflict:
        metadata["PatientConflict"] = "true"
    if origin.in_quarantine:
        metadata["InQuarantine"] = str(origin.in_quarantine)
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
