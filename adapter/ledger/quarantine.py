# SPDX-License-Identifier: Apache-2.0
"""Quarantine: acknowledged files that could not be processed, kept until an operator discards them.

``quarantined -> discarded``: reclamation deletes a discarded file, so that the
command may run on a machine that does not see the spool.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import Select, and_, select, update

from adapter.ledger import events
from adapter.ledger.database import Ledger
from adapter.ledger.queries.facts import Page, QuarantinedFile
from adapter.ledger.queries.paging import bounded, split
from adapter.ledger.schema import arrivals
from adapter.models import ArrivalState

#: Why an arrival is discarded: an operator said so.
BY_OPERATOR = "by-operator"

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
        query = query.where(arrivals.c.id < after)
    with ledger.read() as connection:
        rows, following = split(connection.execute(query).all(), limit)
    return Page[QuarantinedFile](items=[_facts(row) for row in rows], next=following)


def find_quarantined(ledger: Ledger, arrival: str) -> QuarantinedFile | None:
    """Return a quarantined file, or None if there is none of that id."""
    with ledger.read() as connection:
        row = connection.execute(_files().where(arrivals.c.id == arrival)).first()
    return None if row is None else _facts(row)


def discard(ledger: Ledger, ids: Collection[str]) -> list[str]:
    """Give quarantined files up for reclamation, and return those that were quarantined."""
    discarded = []
    with ledger.write() as connection:
        for arrival in ids:
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


def _files() -> Select[Any]:
    return select(arrivals, arrivals.c.registered_at.label("quarantined_at")).where(_KEPT)


def _facts(row: Any) -> QuarantinedFile:
    return QuarantinedFile.model_validate(row._asdict())
