# SPDX-License-Identifier: Apache-2.0
"""Pipeline: runs the embedded platform's jobs, and publishes what each produced, once.

Results that were published before a crash are taken as they are.  Otherwise the group's files are
copied into a folder of this run, the pipeline's command works on them, and its output is published
(`workers.publication`).  Jobs of other platforms are the submission stage's.

==================  ==========================================================  ===================
outcome             the run                                                     then
==================  ==========================================================  ===================
succeeded           left valid DICOM files                                      exported
exit-code           ended with another exit code than 0                         tried again
timed-out           took longer than the pipeline's `timeoutSeconds`            tried again
killed              was killed by a signal                                      tried again
disk-full           was stopped since the disk was nearly full                  tried again
over-limit          took more of the disk than its pipeline may                 parked
no-output           ended well and left nothing                                 parked
invalid-output      left something that is no DICOM file                        parked
could-not-start     did not begin: there is no such program, or no isolation    parked
==================  ==========================================================  ===================
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from functools import partial
from typing import Any

from adapter.errors import ChildKilled, LeaseLost, NotYetVisible, PermanentError, TemporaryError
from adapter.job_output import STDERR, STDOUT
from adapter.ledger import jobs
from adapter.ledger.jobs import Failure, Job
from adapter.ledger.leases import Lease
from adapter.ledger.tasks import TaskFile
from adapter.log import get_logger
from adapter.models import EMBEDDED
from adapter.settings import Pipeline
from adapter.stages import PIPELINE
from workers import defeats, publication
from workers.claimed_job import ClaimedJob
from workers.clients import isolation
from workers.clients.attempt import Attempt
from workers.clients.embedded_platform import metadata_path
from workers.clients.headers import HeaderReader
from workers.clients.pipeline_process import Command, Ending, How, run_command
from workers.clients.platform import PayloadFile, find_pipeline
from workers.stage import TaskResult, TryFailed, Work
from workers.submission import VISIBILITY_PAUSE, payload_files

log = get_logger(__name__)

#: Seconds until a job that found no room on the disk is looked at again.
ROOM_PAUSE = 5.0

#: Bytes that a run has to leave free beside a copy of its input and as much output.
SPARE_ROOM = 100_000_000

#: Outcomes that another run may not have.
MAY_PASS = frozenset({"exit-code", "timed-out", "killed", "disk-full"})


def take(work: Work, first: str | None = None) -> TaskResult | None:
    """Run a job that is due, `first` if it is; None if none is due."""
    ledger, settings = work.adapter.ledger, work.adapter.settings
    claimed = jobs.claim_run(ledger, settings.workers.lease_seconds, first)
    if claimed is None:
        return None
    lease, job = claimed
    facts = {"pipeline": job.pipeline_id}
    with work.headers.borrow() as reader:
        maximum = settings.workers.maximum_lease_expiries
        count = partial(jobs.defeat, ledger, lease, job, maximum=maximum)
        run = Run(work, lease, job, reader)
        with defeats.counted(work, PIPELINE, lease, job.id, count) as attempt:
            attempt.outcome = run.take()
            attempt.failure = run.failure
    log.info("a job was run", job=job.id, pipeline=job.pipeline_id, outcome=attempt.outcome)
    return TaskResult(job.id, attempt.outcome, attempt.failure, facts)


class Run(ClaimedJob):
    """One run of a claimed job."""

    def __init__(self, work: Work, lease: Lease, job: Job, reader: HeaderReader) -> None:
        super().__init__(work, lease, job)
        self._reader = reader
        self._attempt = Attempt(self._adapter.spool.work_folder(job.id), lease.token)
        self._exit_code: int | None = None

    def _take(self) -> str:
        try:
            return self._adopt_or_run(self._pipeline())
        except PermanentError as error:
            return self._park(Failure(error.code, str(error), self._exit_code))
        except TemporaryError as error:
            return self._wait(error)
        finally:
            self._attempt.remove()

    def _pipeline(self) -> Pipeline:
        pipeline = find_pipeline(self._adapter.settings, self._job)
        if pipeline.platform != EMBEDDED:
            raise PermanentError(
                f"pipeline {self._job.pipeline_id!r} is for platform {pipeline.platform!r} now, "
                f"and this job was submitted before that",
                "unknown-pipeline",
            )
        return pipeline

    def _adopt_or_run(self, pipeline: Pipeline) -> str:
        """Succeed with the results that are published already, or run for them."""
        spool, job = self._adapter.spool, self._job
        self._attempt.clear_others()
        if publication.is_published(self._adapter, job):
            return self._succeed(pipeline, publication.adopt(self._adapter, job, self._reader))
        files = payload_files(self._adapter, job)
        if not self._has_room(files):
            return self._give_back(ROOM_PAUSE)
        sandbox = isolation.sandbox_of(self._adapter.settings, pipeline)
        self._attempt.prepare(files, metadata_path(spool, job.id))
        jobs.begin_run(self._adapter.ledger, self._lease, job)
        ending = run_command(
            command_of(pipeline, job.id, job.pipeline_id, self._attempt, sandbox),
            CancellationCheck(self._work, self._lease),
        )
        self._exit_code = ending.code
        if ending.how == How.LAUNCHER_DIED:  # as with its worker, no failure of the pipeline's
            raise ChildKilled("the program that watched over the run was killed")
        if self._lease.lost.is_set():
            raise LeaseLost(f"job {job.id} was lost while it ran")
        failure = judge(ending, pipeline, isolated=sandbox is not None)
        if failure is None:
            return self._succeed(
                pipeline,
                publication.publish(self._adapter, self._lease, job, self._attempt, self._reader),
            )
        if failure.outcome not in MAY_PASS:
            return self._park(failure)
        self._attempt.remove()  # what it has filled itself is no excuse
        if self._work.stopping.is_set() or not self._has_room(files):
            return self._give_back(0 if self._work.stopping.is_set() else ROOM_PAUSE)
        return self._fail_try(failure)

    def _succeed(self, pipeline: Pipeline, results: list[TaskFile]) -> str:
        return publication.succeed(self._work, self._lease, self._job, pipeline, results)

    def _has_room(self, files: list[PayloadFile]) -> bool:
        """Tell whether the disk takes a copy of the input and as much output.

        Not the receivers' watermark: the space below it is what the stages need to finish.
        """
        space = self._adapter.spool.space(self._adapter.settings.storage)
        return space.free >= 2 * sum(file.size for file in files) + SPARE_ROOM

    def _give_back(self, delay: float) -> str:
        jobs.give_back(self._adapter.ledger, self._lease, self._job, delay=delay)
        return "waits"

    def _wait(self, error: TemporaryError) -> str:
        """Let the job wait after an error that may pass; a file that is to appear costs no try."""
        self._require_spool()
        if not isinstance(error, NotYetVisible):
            return self._fail_try(Failure("failed", str(error)))
        visible = self._adapter.settings.workers.visibility_seconds
        if self._adapter.ledger.now() < self._job.updated_at + visible:
            return self._give_back(VISIBILITY_PAUSE)
        return self._fail_try(Failure("not-visible", str(error)))

    def _fail_try(self, failure: Failure) -> str:
        self._require_spool()
        pipeline = find_pipeline(self._adapter.settings, self._job)
        parked = jobs.fail_try(
            self._adapter.ledger,
            self._lease,
            self._job,
            failure,
            retries=pipeline.maximum_retries,
            delay=self._job.retry_delay,
        )
        if parked:
            self._note_parked(failure)
        else:
            self.failure = TryFailed(failure.text)
        return failure.outcome

    def _park(self, failure: Failure) -> str:
        super()._park(failure)
        return failure.outcome


class CancellationCheck:
    """Tells when a run is not wanted any more: its job is lost, or its worker has to stop."""

    def __init__(self, work: Work, lease: Lease) -> None:
        self._work = work
        self._lease = lease
        self._until: float | None = None

    def __call__(self) -> bool:
        """Tell whether the run is not wanted any more."""
        if self._lease.lost.is_set():
            return True
        if not self._work.stopping.is_set():
            return False
        if self._until is None:
            seconds = self._work.adapter.settings.workers.stop_seconds / 2
            self._until = time.monotonic() + seconds
        return time.monotonic() >= self._until


def command_of(
    pipeline: Pipeline, job: str, name: str, attempt: Attempt, sandbox: dict[str, Any] | None
) -> Command:
    """Return the command of a run: its placeholders filled, and an environment without secrets.

    Parameters
    ----------
    pipeline : Pipeline
        The pipeline.
    job, name : str
        The ids of the job and the pipeline.
    attempt : Attempt
        The run's folder.
    sandbox : dict, optional
        How it is isolated (`workers.clients.isolation`).
    """
    attempt = attempt.outside()
    values = {
        "input": str(attempt.input),
        "output": str(attempt.output),
        "job": job,
        "python": sys.executable,
    }
    return Command(
        arguments=[
            re.sub(r"\{(input|output|job|python)\}", lambda found: values[found[1]], argument)
            for argument in pipeline.command
        ],
        folder=attempt.folder,
        environment={
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": os.environ.get("LANG", "C.UTF-8"),
            "HOME": str(attempt.folder),
            "TMPDIR": str(attempt.temporary),
            **pipeline.environment,
            "DICOM_ADAPTER_JOB_ID": job,
            "DICOM_ADAPTER_INPUT": str(attempt.input),
            "DICOM_ADAPTER_OUTPUT": str(attempt.output),
            "DICOM_ADAPTER_METADATA": str(attempt.metadata),
            "DICOM_ADAPTER_PIPELINE": name,
        },
        seconds=pipeline.timeout_seconds,
        memory=pipeline.memory_mb * 1_000_000,
        disk=pipeline.disk_mb * 1_000_000,
        files=pipeline.maximum_files,
        floor=SPARE_ROOM // 2,
        stdout=attempt.job_folder / STDOUT,
        stderr=attempt.job_folder / STDERR,
        sandbox=sandbox,
    )


def judge(ending: Ending, pipeline: Pipeline, *, isolated: bool) -> Failure | None:
    """Return what is wrong with how a command ended; None if nothing is."""
    code = ending.code
    if ending.how == How.ENDED and code is not None:
        return _judge_code(code)
    if ending.how == How.COULD_NOT_START:
        program, problem = pipeline.command[0], ending.problem
        if isolated and shutil.which(program):
            problem += "; an isolated run sees what its pipeline's `readable` names"
        return Failure("could-not-start", f"{program!r} could not be started: {problem}")
    if ending.how == How.TIMED_OUT:
        return Failure("timed-out", f"killed after {pipeline.timeout_seconds:g} s (timeoutSeconds)")
    if ending.how in {How.OVER_LIMIT, How.DISK_FULL}:
        return Failure(str(ending.how), ending.problem)
    return Failure("killed", f"killed together with what watched over it ({ending.how})")


def _judge_code(code: int) -> Failure | None:
    if code < 0:
        name = signal.strsignal(-code)
        return Failure("killed", f"killed by signal {-code} ({name}); out of memory?", code)
    if code > 0:
        return Failure("exit-code", f"exit code {code}; `jobs logs JOB --stderr` says more", code)
    return None
