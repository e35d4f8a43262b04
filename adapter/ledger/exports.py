# SPDX-License-Identifier: Apache-2.0
"""Exports: a task's way to each destination, its receipts, and the destinations on hold."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, exists, or_

from adapter.ledger.leases import due, free
from adapter.ledger.schema import exports, holds, now, tasks
from adapter.models import ExportState, ReportState

#: The longest an export legally waits for its next try (seconds).
LONGEST_WAIT = 7 * 86400.0


def export_due(lease_seconds: float) -> ColumnElement[bool]:
    """Return the condition that an export can be claimed: due, free, its destination not on hold."""
    on_hold = exists().where(holds.c.destination == exports.c.destination, holds.c.until > now())
    return and_(
        exports.c.state.in_((ExportState.PENDING, ExportState.SENDING)),
        due(exports.c.due_at, LONGEST_WAIT),
        free(exports, lease_seconds),
        ~on_hold,
    )


def report_due() -> ColumnElement[bool]:
    """Return the condition that a remote Results Service is owed a task's answer now."""
    return and_(
        tasks.c.report == ReportState.DUE,
        or_(tasks.c.report_due_at.is_(None), tasks.c.report_due_at <= now()),
    )
