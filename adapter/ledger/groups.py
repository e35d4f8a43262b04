# SPDX-License-Identifier: Apache-2.0
"""Groups: opened and pushed by registration, closed by grouping."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_

from adapter.ledger.leases import due, free
from adapter.ledger.schema import groups
from adapter.models import GroupState

#: The longest a group legally stays open (seconds).
LONGEST_WAIT = 7 * 86400.0


def close_due(lease_seconds: float) -> ColumnElement[bool]:
    """Return the condition that the grouping stage should look at a group."""
    return and_(
        groups.c.state == GroupState.OPEN,
        due(groups.c.look_at, LONGEST_WAIT),
        free(groups, lease_seconds),
    )
