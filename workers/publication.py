# SPDX-License-Identifier: Apache-2.0
"""Publication: what a run left becomes a job's results, once, wherever the run was.

The output is checked, renamed onto a name that can be taken once, and recorded with the job's
success in one transaction.  Output that was published before a crash is taken as it is.
"""

from __future__ import annotations

from adapter.core import Adapter
from adapter.ledger import jobs
from adapter.ledger.jobs import Job
from adapter.ledger.leases import Lease
from adapter.ledger.tasks import TaskFile
from adapter.models import export_id, task_id
from adapter.settings import Pipeline
from adapter.stages import EXPORT, RECLAMATION
from workers.clients.attempt import Attempt, read_results
from workers.clients.headers import HeaderReader
from workers.stage import Work


def is_published(adapter: Adapter, job: Job) -> bool:
    """Tell whether a job's results are published, recorded or not; what is, is durable then."""
    return adapter.spool.has_results(job.id)


def adopt(adapter: Adapter, job: Job, reader: HeaderReader) -> list[TaskFile]:
    """Return the results that were published before.

    Raises
    ------
    NotYetVisible, PermanentError
        As `read_results`.
    """
    return read_results(adapter.spool.result_folder(job.id), reader)


def publish(
    adapter: Adapter, lease: Lease, job: Job, attempt: Attempt, reader: HeaderReader
) -> list[TaskFile]:
    """Check and publish an attempt's output; return what is published, by whomever.

    Raises
    ------
    LeaseLost
        If another worker holds the job: nothing was published.
    PermanentError
        If the output cannot be used.
    """
    folder, results = attempt.collect(reader)
    jobs.still_held(adapter.ledger, lease, job)
    if not adapter.spool.publish_results(job.id, folder):
        results = read_results(adapter.spool.result_folder(job.id), reader)
    return results


def succeed(work: Work, lease: Lease, job: Job, pipeline: Pipeline, results: list[TaskFile]) -> str:
    """Record published results and the job's success, wake whoever is next, return the outcome.

    Raises
    ------
    LeaseLost
        If another worker holds the job.
    """
    jobs.succeed(
        work.adapter.ledger,
        lease,
        job,
        results,
        destinations=pipeline.destinations,
        agent=work.adapter.settings.dicom.scu.ae_title,
    )
    if pipeline.destinations:
        task = task_id(job.id)
        created = dict.fromkeys(export_id(task, name) for name in pipeline.destinations)
        work.queues.wake(EXPORT, *created)
    else:
        work.queues.wake(RECLAMATION)
    return "succeeded"
