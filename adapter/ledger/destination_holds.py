# SPDX-License-Identifier: Apache-2.0
"""Holds: destinations that cannot be reached, and the exports that wait for them.

A hold costs no export a try.  It gets longer each time the destination is found away.  When it has
run out, a single export at a time probes the destination until that answers.  Names are compared
without regard to case, as they are when a destination is looked up.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, exists, func, insert, select, update

from adapter.ledger import events
from adapter.ledger.leases import due
from adapter.ledger.schema import exports, holds, now
from adapter.models import ExportState
from adapter.settings import ScuExport

#: The longest a hold legally lasts (seconds).
LONGEST_HOLD = 7 * 86400.0

_DOUBLINGS = 32  # after these, 2**n only overflows


def same_name(column: ColumnElement[str], name: str) -> ColumnElement[bool]:
    """Return the condition that a column holds a destination's name."""
    return func.lower(column) == func.lower(name)


def on_hold() -> ColumnElement[bool]:
    """Return the condition that an export's destination is on hold."""
    return exists().where(
        func.lower(holds.c.destination) == func.lower(exports.c.destination),
        ~due(holds.c.until, LONGEST_HOLD),
    )


def extend(connection: Connection, destination: str, why: str, policy: ScuExport) -> list[Any]:
    """Put a destination that was just found away on hold, or on hold for longer.

    Returns
    -------
    list of rows
        The exports, not leased by anybody, that have waited for it longer than the patience.
    """
    here = same_name(holds.c.destination, destination)
    row = connection.execute(
        select(holds, (holds.c.until > now()).label("held")).where(here)
    ).first()
    if row is None:
        connection.execute(
            insert(holds).values(
                destination=destination,
                since=now(),
                until=now() + min(policy.hold_minimum_seconds, policy.hold_maximum_seconds),
                failures=1,
                reason=why[:200],
            )
        )
        events.record(connection, "destination-on-hold", destination=destination, reason=why)
    elif not row.held:  # else another export has found it away at the same time
        length = policy.hold_minimum_seconds * 2 ** min(row.failures, _DOUBLINGS)
        connection.execute(
            update(holds)
            .where(here)
            .values(
                until=now() + min(length, policy.hold_maximum_seconds),
                failures=row.failures + 1,
                reason=why[:200],
            )
        )
    waiting = (
        same_name(exports.c.destination, destination),
        exports.c.state == ExportState.PENDING,
        exports.c.lease_token.is_(None),
    )
    connection.execute(
        update(exports)
        .where(*waiting, exports.c.waiting_since.is_(None), exports.c.due_at <= now())
        .values(waiting_since=now())
    )
    over = exports.c.waiting_since < now() - policy.destination_patience_seconds
    impatient = select(exports).where(*waiting, over).order_by(exports.c.id).with_for_update()
    return list(connection.execute(impatient).all())


def lift(connection: Connection, destination: str) -> None:
    """Let exports to a destination go ahead: it has answered."""
    gone = connection.execute(
        delete(holds).where(same_name(holds.c.destination, destination)).returning(holds.c.since)
    ).first()
    if gone is None:
        return
    connection.execute(
        update(exports)
        .where(same_name(exports.c.destination, destination), exports.c.waiting_since.is_not(None))
        .values(waiting_since=None)
    )
    events.record(connection, "destination-back", destination=destination)


def probe_now(connection: Connection, destination: str) -> None:
    """Let one export at a time find out at once whether a destination is back."""
    connection.execute(
        update(holds).where(same_name(holds.c.destination, destination)).values(until=now())
    )
