# SPDX-License-Identifier: Apache-2.0
"""Jobs: one pipeline's work on one group, from queued to its results.

``queued -> created -> described -> uploaded -> started -> succeeded``; any of them ``-> parked``, and
from there back to where it stood, or ``discarded``.  The drawing of all states is in `adapter.models`.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_

from adapter.ledger.leases import due, free
from adapter.ledger.schema import jobs
from adapter.models import SUBMISSION_STATES, JobState

#: The longest a job legally waits (seconds): no retry delay may be longer than a week.
LONGEST_WAIT = 7 * 86400.0


def submission_due(lease_seconds: float) -> ColumnElement[bool]:
    """Return the condition that the submission stage has a step to take for a job."""
    return and_(
        jobs.c.state.in_(SUBMISSION_STATES),
        due(jobs.c.due_at, LONGEST_WAIT),
        free(jobs, lease_seconds),
    )


def run_due(lease_seconds: float) -> ColumnElement[bool]:
    """Return the condition that the pipeline stage has a job to run."""
    return and_(
        jobs.c.state == JobState.STARTED,
        due(jobs.c.due_at, LONGEST_WAIT),
        free(jobs, lease_seconds),
    )
