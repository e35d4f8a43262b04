# SPDX-License-Identifier: Apache-2.0
"""Pipeline: runs the embedded platform's jobs, and publishes what each produced, once.

Take results that were published before a crash as they are; else copy the group's files into a folder
of this run, run the pipeline's command on them, check its output, and publish it by one rename.  Then
one transaction: the files, their task, its exports, and the job's success.

==================  ==========================================================  ===================
outcome             the run                                                     then
==================  ==========================================================  ===================
succeeded           left valid DICOM files                                      exported
exit-code           ended with another exit code than 0                         tried again
timed-out           took longer than the pipeline's `timeoutSeconds`            tried again
killed              was killed by a signal, e.g. for want of memory             tried again
no-output           ended well and left nothing                                 parked
invalid-output      left something that is no DICOM file                        parked
could-not-start     did not begin: there is no such program                     parked
==================  ==========================================================  ===================
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from contextlib import closing
from typing import Any

from adapter.errors import LeaseLost, NotYetVisible, PermanentError, TemporaryError
from adapter.ledger import jobs, leases
from adapter.ledger.jobs import Failure, Job
from adapter.ledger.leases import Lease
from adapter.ledger.tasks import TaskFile
from adapter.log import get_logger
from adapter.road import EXPORT, RECLAMATION
from adapter.settings import Pipeline
from adapter.spool import sync_directory
from workers.clients.attempt import Attempt, read_results
from workers.clients.embedded_platform import find_pipeline, metadata_path
from workers.clients.headers import HeaderReader
from workers.clients.pipeline_process import Ending, How, run_command
from workers.stage import Work
from workers.submission import VISIBILITY_PAUSE, payload_files

log = get_logger(__name__)

#: Seconds until a run that found no room on the disk looks again.
ROOM_PAUSE = 5.0

#: Bytes that a run leaves free beside its input and as much output.
SPARE_ROOM = 100_000_000


def run(work: Work) -> dict[str, Any]:
    """Run every job that is due."""
    counts: Counter[str] = Counter()
    ledger, settings = work.adapter.ledger, work.adapter.settings
    with closing(HeaderReader(settings.notification)) as reader:
        while not work.stopping.is_set():
            claimed = jobs.claim_run(ledger, settings.workers.lease_seconds)
            if claimed is None:
                break
            lease, job = claimed
            try:
                with leases.kept(ledger, lease):
                    outcome = Run(work, lease, job, reader).take()
            except LeaseLost:
                outcome = "lost"
            log.info("a job was run", job=job.id, pipeline=job.pipeline_id, outcome=outcome)
            counts[outcome] += 1
    return dict(counts)


class Run:
    """One run of a claimed job."""

    def __init__(self, work: Work, lease: Lease, job: Job, reader: HeaderReader) -> None:
        self._work = work
        self._adapter = work.adapter
        self._lease = lease
        self._job = job
        self._reader = reader
        self._attempt = Attempt(self._adapter.spool.work_folder(job.id), lease.token)
        self._patience = Patience(work, lease)

    def take(self) -> str:
        """Take the job to its end, or to its next try, and return the outcome.

        Raises
        ------
        LeaseLost
            If the job is no longer ours; nothing more was recorded.
        """
        workers = self._adapter.settings.workers
        if failure := jobs.deadly(self._job, workers.maximum_lease_expiries):
            return self._park(failure)
        try:
            pipeline = find_pipeline(self._adapter.settings, self._job)
            return self._adopt_or_run(pipeline)
        except NotYetVisible as error:
            if self._adapter.ledger.now() < self._job.created_at + workers.visibility_seconds:
                return self._give_back(VISIBILITY_PAUSE)
            return self._fail_try(pipeline, Failure("not-visible", str(error)))
        except PermanentError as error:
            return self._park(Failure(error.code, str(error), self._exit_code))
        except TemporaryError as error:
            return self._fail_try(pipeline, Failure("failed", str(error)))
        except OSError as error:
            return self._fail_try(pipeline, Failure("failed", f"file system: {error.strerror}"))
        finally:
            self._attempt.remove()
