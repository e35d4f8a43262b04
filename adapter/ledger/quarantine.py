# SPDX-License-Identifier: Apache-2.0
"""Quarantine: acknowledged files that could not be processed, kept until an operator decides.

``quarantined -> received | discarded``.  The verbs of an operator change rows only, so that the
command may run on a machine that does not see the spool: reclamation moves a file that is to be
registered again back to incoming/, and deletes a discarded one.

A retried row is `received` from the first moment on, marked by its reason.  Only then is its file
moved, and only then is the mark taken off; each step may be done again.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Select, and_, select, update

from adapter.ledger import events
from adapter.ledger.arrivals import BY_OPERATOR, RETRIED
from adapter.ledger.database import Ledger
from adapter.ledger.queries.facts import Page, QuarantinedFile
from adapter.ledger.queries.ids import arrival_before, whole_id
from adapter.ledger.queries.paging import bounded, split
from adapter.ledger.schema import arrivals, now
from adapter.models import ArrivalState

#: Files that are retried in one transaction.
_BATCH = 500

_KEPT = and_(arrivals.c.state == ArrivalState.QUARANTINED, arrivals.c.deleted_at.is_(None))


def list_quarantined(
    ledger: Ledger, *, reason: str | None = None, limit: int = 100, after: str | None = None
) -> Page[QuarantinedFile]:
    """Return a page of the quarantined files, the last received first.

    Parameters
    ----------
    reason : str, optional
        Only those quarantined for this reason (its code).
    limit : int
        Files on the page.
    after : str, optional
        The file that the page before ended with.
    """
    query = _files().order_by(arrivals.c.id.desc()).limit(bounded(limit) + 1)
    if reason is not None:
        query = query.where(arrivals.c.reason == reason)
    if after is not None:
        query = query.where(arrivals.c.id < arrival_before(after))
    with ledger.read() as connection:
        rows, following = split(connection.execute(query).all(), limit)
    return Page[QuarantinedFile](items=[_facts(row) for row in rows], next=following)


def find_quarantined(ledger: Ledger, arrival: str) -> QuarantinedFile | None:
    """Return the quarantined file whose id is, or begins with, `arrival`; None without one."""
    with ledger.read() as connection:
        whole = whole_id(connection, arrival, arrivals.c.id, _KEPT)
        row = connection.execute(_files().where(arrivals.c.id == whole)).first()
    return None if row is None else _facts(row)


def discard(ledger: Ledger, ids: Collection[str]) -> list[str]:
    """Give quarantined files up for reclamation, and return those that were quarantined."""
    discarded = []
    with ledger.write() as connection:
        for arrival in sorted(set(ids)):
            was = connection.execute(
                select(arrivals.c.reason, arrivals.c.association)
                .where(_KEPT, arrivals.c.id == arrival)
                .with_for_update()
            ).first()
            if was is None:
                continue
            connection.execute(
                update(arrivals)
                .where(arrivals.c.id == arrival)
                .values(state=ArrivalState.DISCARDED, reason=BY_OPERATOR)
            )
            events.record(
                connection,
                "quarantine-discarded",
                association=was.association,
                arrival=arrival,
                reason=was.reason,
            )
            discarded.append(arrival)
    return discarded


def retry(ledger: Ledger, ids: Collection[str]) -> dict[str, str]:
    """Have quarantined files registered again; done twice it is done once.

    Returns
    -------
    dict of str to str
        The state of each arrival that is known and was not discarded: ``"retried"`` if it is on its
        way back now, or what became of it since it left quarantine.
    """
    with ledger.write() as connection:
        return {
            arrival: state
            for arrival in sorted(set(ids))
            if (state := _retry(connection, arrival)) is not None
        }


def retry_reason(ledger: Ledger, reason: str) -> dict[str, str]:
    """Have every file that is quarantined for a reason registered again; return them as `retry`."""
    query = select(arrivals.c.id).where(_KEPT, arrivals.c.reason == reason).order_by(arrivals.c.id)
    done: dict[str, str] = {}
    last = ""
    while True:  # each once: it may be back in quarantine before this ends
        with ledger.read() as connection:
            following = query.where(arrivals.c.id > last).limit(_BATCH)
            ids = list(connection.execute(following).scalars())
        if not ids:
            return done
        done |= retry(ledger, ids)
        last = ids[-1]


def _retry(connection: Connection, arrival: str) -> str | None:
    was = connection.execute(
        select(arrivals.c.state, arrivals.c.reason, arrivals.c.association, arrivals.c.deleted_at)
        .where(arrivals.c.id == arrival)
        .with_for_update()
    ).first()
    if was is None or was.deleted_at is not None or was.state == ArrivalState.DISCARDED:
        return None
    if was.state != ArrivalState.QUARANTINED:
        return RETRIED if was.reason == RETRIED else str(was.state)
    connection.execute(
        update(arrivals)
        .where(arrivals.c.id == arrival)
        .values(
            state=ArrivalState.RECEIVED,
            reason=RETRIED,
            message=None,
            registered_at=now(),  # since when it is to be moved
            attempts=0,
            lease_token=None,
            lease_until=None,
            lease_expiries=0,
        )
    )
    events.record(
        connection,
        "quarantine-retried",
        association=was.association,
        arrival=arrival,
        reason=was.reason,
    )
    return RETRIED


def _files() -> Select[Any]:
    return select(arrivals, arrivals.c.registered_at.label("quarantined_at")).where(_KEPT)


def _facts(row: Any) -> QuarantinedFile:
    return QuarantinedFile.model_validate(row._asdict())
