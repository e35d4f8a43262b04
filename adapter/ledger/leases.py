# SPDX-License-Identifier: Apache-2.0
"""Leases: how a worker claims due rows, keeps them, and is stopped when it lost them.

A claim is one conditional UPDATE.  Every later write of a claimed row carries the lease's token; a
stale token changes no row, and its holder stops (`LeaseLost`).  A worker that dies leaves its lease
to run out: the row is then due at once, and the expiry is counted.  A row that defeats its worker
(`adapter.ledger.attempts`) is counted too, and rests: nobody holds it, and it is not free before
`lease_until`.  A time further ahead than its longest legal interval counts as due, so that a clock
set back by hours holds nothing up.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, Table, and_, case, or_, select, update

from adapter.background import BackgroundLoop
from adapter.errors import LeaseLost
from adapter.ledger.database import Ledger
from adapter.ledger.delays import LONGEST_WAIT
from adapter.ledger.engines import AWAY
from adapter.ledger.schema import now

#: The name of the loops that renew leases.
LOOP = "lease-renewal"

#: The longest that a row rests, in lengths of a lease.
LONGEST_REST = 10


@dataclass(frozen=True)
class Lease:
    """One worker's claim on rows of one table.

    Attributes
    ----------
    seconds : float
        How long it holds without being renewed.
    lost : threading.Event
        Set when a renewal found that the lease is gone: stop.
    excused : threading.Event
        Set when the ledger was away, or this process stood still, so that it could not be renewed:
        that it runs out is no fault of its rows then.
    """

    table: Table
    token: str
    seconds: float
    lost: threading.Event = field(default_factory=threading.Event)
    excused: threading.Event = field(default_factory=threading.Event)


def free(table: FromClause, seconds: float) -> ColumnElement[bool]:
    """Return the condition that nobody holds a row and it does not rest."""
    until = table.c.lease_until
    return or_(until.is_(None), until < now(), until > now() + LONGEST_REST * seconds)


def due(column: ColumnElement[float]) -> ColumnElement[bool]:
    """Return the condition that a time has come; one beyond the longest wait counts as come."""
    return or_(column <= now(), column > now() + LONGEST_WAIT)


def claim(
    connection: Connection,
    table: Table,
    where: ColumnElement[bool],
    *,
    order: Sequence[Any],
    limit: int,
    seconds: float,
    first: str | None = None,
    values: dict[str, Any] | None = None,
) -> tuple[Lease, list[Any]]:
    """Lease the first rows that are free and match, and return the lease and the rows.

    Parameters
    ----------
    where : ColumnElement
        Which rows are due.
    order : sequence
        Whom to take first.
    limit : int
        How many rows at the most.
    seconds : float
        How long the lease holds without renewal.
    first : str, optional
        The id of the row to take if it is free and matches; else the first others are taken.
    values : dict, optional
        Further columns to set on the claimed rows.
    """
    lease = Lease(table, uuid.uuid4().hex, seconds)
    if first is not None:
        named = and_(table.c.id == first, where)
        if rows := _claim(connection, lease, named, order=(), limit=1, values=values):
            return lease, rows
    return lease, _claim(connection, lease, where, order=order, limit=limit, values=values)


def _claim(
    connection: Connection,
    lease: Lease,
    where: ColumnElement[bool],
    *,
    order: Sequence[Any],
    limit: int,
    values: dict[str, Any] | None,
) -> list[Any]:
    table, seconds = lease.table, lease.seconds
    key = table.c.id
    chosen = (
        select(key)
        .where(and_(where, free(table, seconds)))
        .order_by(*order)
        .limit(limit)
        .with_for_update(skip_locked=True)
        # PostgreSQL may run a sub-select of an UPDATE for each row; this it runs once.
        .cte("chosen")
    )
    rows = connection.execute(
        update(table)
        .where(key.in_(select(chosen.c.id)))
        .values(
            lease_token=lease.token,
            lease_until=now() + seconds,
            lease_expiries=case(
                (table.c.lease_token.is_not(None), table.c.lease_expiries + 1),
                else_=table.c.lease_expiries,
            ),
            **(values or {}),
        )
        .returning(table)
    ).all()
    return list(rows)


def renew(connection: Connection, lease: Lease) -> int:
    """Extend a lease, and return how many rows it still holds."""
    table = lease.table
    # In the order in which they are finished: the holder's own transaction may be at it.
    held = (
        select(table.c.id)
        .where(table.c.lease_token == lease.token)
        .order_by(table.c.id)
        .with_for_update()
        .cte("held")
    )
    renewed = connection.execute(
        update(table)
        .where(table.c.id.in_(select(held.c.id)), table.c.lease_token == lease.token)
        .values(lease_until=now() + lease.seconds)
        .returning(table.c.id)
    ).all()
    return len(renewed)  # sqlite3 does not count the rows of a statement that begins with WITH


def change(connection: Connection, lease: Lease, row: str, **values: Any) -> None:
    """Write to a leased row and keep the lease.

    Raises
    ------
    LeaseLost
        If the row is not leased under this token any more; nothing was changed.
    """
    table = lease.table
    done = connection.execute(
        update(table).where(table.c.id == row, table.c.lease_token == lease.token).values(**values)
    )
    if done.rowcount != 1:
        raise LeaseLost(f"another worker holds {table.name} {row}")


def finish(connection: Connection, lease: Lease, row: str, **values: Any) -> None:
    """Write to a leased row and give it back.

    Raises
    ------
    LeaseLost
        As `change`.
    """
    change(
        connection,
        lease,
        row,
        **{"lease_token": None, "lease_until": None, "lease_expiries": 0, **values},
    )


def give_back(ledger: Ledger, lease: Lease) -> None:
    """Give back all rows of a lease as they are; nothing is counted against them."""
    table = lease.table
    with ledger.write() as connection:
        connection.execute(
            update(table)
            .where(table.c.lease_token == lease.token)
            .values(lease_token=None, lease_until=None)
        )


def excuse(ledger: Ledger, lease: Lease, row: str) -> None:
    """Take back what a lease counts against its row, whoever holds that by now.

    For a worker that lives, and could not renew the lease or give it back in time: a row whose
    leases keep running out is parked as one that kills its workers.
    """
    table = lease.table
    with ledger.write() as connection:
        given_back = connection.execute(
            update(table)
            .where(table.c.id == row, table.c.lease_token == lease.token)
            .values(lease_token=None, lease_until=None)
        )
        if given_back.rowcount == 0:
            connection.execute(
                update(table)
                .where(table.c.id == row, table.c.lease_expiries > 0)
                .values(lease_expiries=table.c.lease_expiries - 1)
            )


def rest(connection: Connection, lease: Lease, row: str, seconds: float, **values: Any) -> None:
    """Write to a leased row and give it back, to be claimed again after a rest.

    Parameters
    ----------
    seconds : float
        How long it rests; at most `LONGEST_REST` lengths of the lease, less a little.

    Raises
    ------
    LeaseLost
        As `change`.
    """
    longest = 0.9 * LONGEST_REST * lease.seconds
    until = now() + min(seconds, longest)
    change(connection, lease, row, **{"lease_token": None, "lease_until": until, **values})


@contextmanager
def kept(ledger: Ledger, lease: Lease) -> Iterator[Lease]:
    """Renew a lease from a background loop, three times in its length, while the block runs.

    A renewal that fails is tried again at once and then more slowly, but never more slowly than
    that: the lease is still held when the ledger is back in time.
    """
    clocks = _clocks()

    def look_back() -> None:
        nonlocal clocks
        before, clocks = clocks, _clocks()
        if stood_still(before, clocks, lease.seconds):
            lease.excused.set()

    def renew_once() -> None:
        look_back()
        try:
            with ledger.write() as connection:
                held = renew(connection, lease)
        except AWAY:
            lease.excused.set()
            raise
        if held == 0:
            lease.lost.set()
            loop.finish()

    # The first renewal is due after a third of the lease.
    loop = BackgroundLoop(
        LOOP, renew_once, period=lease.seconds / 3, longest_delay=lease.seconds / 3, wait_first=True
    )
    loop.start()
    try:
        yield lease
    finally:
        loop.stop()
        look_back()


def _clocks() -> tuple[float, float]:
    """Return the time, and the processor time that this process has used, in seconds."""
    return time.monotonic(), time.process_time()


def stood_still(
    before: tuple[float, float], after: tuple[float, float], lease_seconds: float
) -> bool:
    """Tell whether the process was suspended between two renewals for longer than a lease.

    A process that a row keeps busy uses the processor meanwhile.
    """
    passed, used = after[0] - before[0], after[1] - before[1]
    return passed > lease_seconds and used < passed / 10
