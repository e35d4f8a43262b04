# SPDX-License-Identifier: Apache-2.0
"""The number of groups, jobs and exports in each state, and of those that are tried again."""

from __future__ import annotations

from enum import StrEnum

from sqlalchemy import Table, and_, func, or_, select

from adapter.ledger.database import Ledger
from adapter.ledger.schema import exports, groups, jobs
from adapter.models import SUBMISSION_STATES, ExportState, GroupState, JobState

_STATES: dict[str, tuple[Table, type[StrEnum]]] = {
    "groups": (groups, GroupState),
    "jobs": (jobs, JobState),
    "exports": (exports, ExportState),
}


def count_states(ledger: Ledger) -> dict[str, dict[str, int]]:
    """Return the number of groups, jobs and exports in each state, zero included."""
    found: dict[str, dict[str, int]] = {}
    with ledger.read() as connection:
        for name, (table, states) in _STATES.items():
            question = select(table.c.state, func.count()).group_by(table.c.state)
            found[name] = dict.fromkeys(states, 0)
            found[name] |= {row[0]: row[1] for row in connection.execute(question)}
    return found


def count_retrying(ledger: Ledger) -> dict[str, int]:
    """Return the number of jobs and exports that failed and will be tried again."""
    at_work = (*SUBMISSION_STATES, JobState.STARTED, JobState.HANDED_OVER)
    failed = {
        jobs: and_(jobs.c.state.in_(at_work), or_(jobs.c.tries > 0, jobs.c.failed_runs > 0)),
        exports: and_(
            exports.c.state.in_((ExportState.PENDING, ExportState.SENDING)), exports.c.tries > 0
        ),
    }
    with ledger.read() as connection:
        return {
            table.name: connection.execute(select(func.count()).where(condition)).scalar_one()
            for table, condition in failed.items()
        }
