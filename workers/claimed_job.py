# SPDX-License-Identifier: Apache-2.0
"""What the work on a claimed job has in common, wherever the job stands."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

from adapter.ledger import jobs
from adapter.ledger.jobs import Failure, Job
from adapter.ledger.leases import Lease
from adapter.log import get_logger
from adapter.models import JobState
from workers.stage import Parked, TryFailed, Work

log = get_logger(__name__)


class ClaimedJob(ABC):
    """One job that this worker holds.

    Attributes
    ----------
    failure : TryFailed or Parked, optional
        Why it did not get further, once it was taken.
    """

    def __init__(self, work: Work, lease: Lease, job: Job) -> None:
        self._work = work
        self._adapter = work.adapter
        self._lease = lease
        self._job = job
        self.failure: TryFailed | Parked | None = None
        self._began = time.monotonic()

    def take(self) -> str:
        """Take the job as far as it goes, or park it if it killed too many workers.

        Returns
        -------
        str
            What came of it, in one word.

        Raises
        ------
        LeaseLost
            If the job is no longer ours; nothing more was recorded.
        """
        maximum = self._adapter.settings.workers.maximum_lease_expiries
        if failure := jobs.deadly(self._job, maximum):
            return self._park(failure)
        return self._take()

    @abstractmethod
    def _take(self) -> str:
        """Do as `take` with a job that may be worked on."""

    def _require_spool(self) -> None:
        """Make sure that nothing is judged that went wrong because the spool was away.

        Raises
        ------
        SpoolAway
            If it is away, or was since the job was claimed.
        """
        self._adapter.spool.check_whole(self._began)

    def _park(self, failure: Failure) -> str:
        self._require_spool()
        jobs.park(self._adapter.ledger, self._lease, self._job, failure)
        self._note_parked(failure)
        return JobState.PARKED

    def _note_parked(self, failure: Failure) -> None:
        self.failure = Parked(failure.text)
        log.error("a job is parked", job=self._job.id, outcome=failure.outcome)
