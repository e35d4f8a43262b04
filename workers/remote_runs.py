# SPDX-License-Identifier: Apache-2.0
"""Runs at platforms that run their jobs by themselves: asked after, collected, cancelled.

Part of the submission stage.  A job that is handed over is due when its platform is to be asked:

==================  ==========================================================  ===================
the platform says   which is, in the job's outcome                              then
==================  ==========================================================  ===================
waiting, running                                                                asked again
running for longer  timed-out (the pipeline's `timeoutSeconds`)                 another run
succeeded           succeeded, once its output is collected and published       exported
failed              whatever the platform says, e.g. exit-code                  another run, or
                                                                                parked
lost                lost                                                        another run
nothing             unreachable; no try is used                                 asked again, parked
                                                                                after a day
==================  ==========================================================  ===================

After ``1 + maximumRetries`` failed runs the job is parked.  Questions become rarer the longer a run
takes, and the longer a platform is away: when to ask next follows from times in the ledger.
"""

from __future__ import annotations

from dataclasses import replace

from adapter.errors import AdapterError, LeaseLost, PermanentError, Stopped, TemporaryError
from adapter.ledger import cancellations, jobs, leases, runs
from adapter.ledger.cancellations import Cancellation
from adapter.ledger.jobs import Failure, Job
from adapter.ledger.leases import Lease
from adapter.log import get_logger
from adapter.models import JobState
from adapter.settings import Pipeline
from workers import defeats, publication
from workers.claimed_job import ClaimedJob
from workers.clients.attempt import Attempt
from workers.clients.platform import (
    Phase,
    Platforms,
    PolledPlatform,
    RunLost,
    RunState,
    asking,
    find_pipeline,
)
from workers.stage import TaskResult, TryFailed, Work, failure_of

log = get_logger(__name__)

#: Part of the time since something changed after which a platform is asked again.
_SHARE = 0.1


class RemoteRun(ClaimedJob):
    """One run at a platform, claimed to be asked after."""

    def __init__(self, work: Work, platforms: Platforms, lease: Lease, job: Job) -> None:
        super().__init__(work, lease, job)
        self._platforms = platforms

    def _take(self) -> str:
        ledger, settings = self._adapter.ledger, self._adapter.settings
        try:
            return self._follow(find_pipeline(settings, self._job))
        except Stopped:
            jobs.give_back(ledger, self._lease, self._job, delay=0.0)
            return "waits"
        except RunLost as error:
            return self._fail(Failure("lost", str(error)))
        except PermanentError as error:
            return self._park(Failure(error.code, str(error)))
        except (TemporaryError, OSError) as error:
            return self._not_answered(error)

    def _follow(self, pipeline: Pipeline) -> str:
        if publication.is_published(self._adapter, self._job):
            with self._work.headers.borrow() as reader:
                results = publication.adopt(self._adapter, self._job, reader)
            return publication.succeed(self._work, self._lease, self._job, pipeline, results)
        platform = self._platforms.polled(self._job.platform)
        with asking(self._job):
            state = platform.state(self._job)
        if state.phase is Phase.SUCCEEDED:
            return self._collect(pipeline, platform)
        if failure := self._failure(state, pipeline):
            return self._fail(failure, may_pass=state.may_pass)
        running = state.phase is Phase.RUNNING
        delay = self._next_question(running=running)
        runs.goes_on(self._adapter.ledger, self._lease, self._job, running=running, delay=delay)
        return "asked"

    def _failure(self, state: RunState, pipeline: Pipeline) -> Failure | None:
        """Return why the run failed, by what the platform says or by our own clock; None if not."""
        if state.phase is Phase.FAILED:
            return state.failure or Failure("failed", "the platform does not say why")
        since, limit = self._job.running_since, pipeline.timeout_seconds
        late = since is not None and self._adapter.ledger.now() - since > limit
        if state.phase is Phase.RUNNING and late:
            words = f"it has run for longer than {limit:g} s (timeoutSeconds)"
            return Failure("timed-out", words)
        return None

    def _collect(self, pipeline: Pipeline, platform: PolledPlatform) -> str:
        """Fetch the output and publish it; output that cannot be used fails the run for good."""
        job = self._job
        attempt = Attempt(self._adapter.spool.work_folder(job.id), self._lease.token)
        try:
            attempt.clear_others()
            attempt.make_output()
            with asking(job):
                for _ in platform.collect(job, attempt.output):
                    self._go_on()
            with self._work.headers.borrow() as reader:
                results = publication.publish(self._adapter, self._lease, job, attempt, reader)
        except PermanentError as error:
            unusable = Failure(error.code, str(error))
            return self._fail(unusable, may_pass=False)
        finally:
            attempt.remove()
        return publication.succeed(self._work, self._lease, job, pipeline, results)

    def _go_on(self) -> None:
        if self._lease.lost.is_set():
            raise LeaseLost(f"job {self._job.id} was lost while its output was collected")
        if self._work.stopping.is_set():
            raise Stopped

    def _next_question(self, *, running: bool) -> float:
        """Return the seconds until the platform is asked again."""
        now = self._adapter.ledger.now()
        began = self._job.running_since or now
        since = began if running else self._job.handed_over_at or now
        return self._bounded((now - since) * _SHARE)

    def _not_answered(self, error: TemporaryError | OSError) -> str:
        """Wait for a platform that cannot be asked, each time for as long as it has been away."""
        self._require_spool()
        if isinstance(error, OSError):
            defeats.raise_if_nobodys(self._work, error)
        failure, asked = Failure("unreachable", _words(error)), getattr(error, "delay", None)
        away = self._adapter.ledger.now() - self._job.updated_at
        if away > self._adapter.settings.services.platform.unreachable_seconds:
            return self._park(failure)
        log.warning("a platform cannot be asked", job=self._job.id, platform=self._job.platform)
        delay = self._bounded(away) if asked is None else asked
        runs.not_answered(self._adapter.ledger, self._lease, self._job, failure, delay=delay)
        self.failure = TryFailed(failure.text)
        return "unreachable"

    def _bounded(self, seconds: float) -> float:
        settings = self._adapter.settings.services.platform
        return min(max(settings.poll_seconds, seconds), settings.longest_poll_seconds)

    def _fail(self, failure: Failure, *, may_pass: bool = True) -> str:
        self._require_spool()
        outcome = fail_run(self._work, self._lease, self._job, failure, may_pass=may_pass)
        self.failure = failure_of(outcome, failure.text)
        return outcome


def _words(error: AdapterError | OSError) -> str:
    return str(error.strerror) if isinstance(error, OSError) else str(error)


def fail_run(work: Work, lease: Lease, job: Job, failure: Failure, *, may_pass: bool = True) -> str:
    """Record a failed run, and return what becomes of the job: ``run-failed`` or ``parked``.

    Parameters
    ----------
    may_pass : bool, optional
        Whether another run may do better.

    Raises
    ------
    LeaseLost
        If the job is no longer ours; nothing was recorded.
    """
    pipeline = work.adapter.settings.pipelines.get(job.pipeline_id)
    parked = runs.fail(
        work.adapter.ledger,
        lease,
        job,
        failure,
        retries=0 if pipeline is None else pipeline.maximum_retries,
        delay=job.retry_delay,
        may_pass=may_pass,
    )
    log.warning("a run failed", job=job.id, run=job.run, outcome=failure.outcome)
    if parked:
        log.error("a job is parked", job=job.id, outcome=failure.outcome)
    return JobState.PARKED if parked else "run-failed"


def cancel_next(work: Work, platforms: Platforms) -> TaskResult | None:
    """Tell a platform of the first run that nobody wants any more; None if there is none."""
    ledger, workers = work.adapter.ledger, work.adapter.settings.workers
    owed = cancellations.claim(ledger, workers.lease_seconds)
    if owed is None:
        return None
    try:
        with leases.kept(ledger, owed.lease):
            outcome = _cancel(work, platforms, owed)
    except LeaseLost:
        outcome = "lost"
    return TaskResult(owed.job_id, outcome)


def _cancel(work: Work, platforms: Platforms, owed: Cancellation) -> str:
    ledger, settings = work.adapter.ledger, work.adapter.settings.services.platform
    job = replace(
        jobs.read(ledger, owed.job_id),
        platform=owed.platform,
        run=owed.run,
        platform_job_id=owed.platform_job_id,
    )
    try:
        platform = platforms.polled(owed.platform)
        with asking(job):
            platform.cancel(job)
    except (TemporaryError, PermanentError, OSError) as error:
        problem, delay = _words(error), getattr(error, "delay", None)
    else:
        cancellations.done(ledger, owed)
        return "cancelled"
    log.warning("a run could not be cancelled", job=job.id, platform=job.platform, run=job.run)
    if owed.age > settings.unreachable_seconds:
        cancellations.give_up(ledger, owed, problem)
        log.error("a run is not cancelled", job=job.id, platform=job.platform, run=job.run)
        return "not-cancelled"
    if delay is None:
        delay = min(max(settings.poll_seconds, owed.age), settings.longest_poll_seconds)
    cancellations.put_off(ledger, owed, delay)
    return "unreachable"
