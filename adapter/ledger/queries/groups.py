# SPDX-License-Identifier: Apache-2.0
"""Questions about groups."""

from __future__ import annotations

from sqlalchemy import select

from adapter.ledger.database import Ledger
from adapter.ledger.queries.facts import Group, Page
from adapter.ledger.queries.ids import row_before
from adapter.ledger.queries.paging import newest_first, split
from adapter.ledger.schema import groups
from adapter.models import GroupState


def list_groups(
    ledger: Ledger,
    *,
    state: GroupState | None = None,
    limit: int = 100,
    after: str | None = None,
) -> Page[Group]:
    """Return a page of groups, the one that was opened last first.

    Parameters
    ----------
    state : GroupState, optional
        Only groups in this state.
    limit : int
        Groups on the page.
    after : str, optional
        The group that the page before ended with.
    """
    query = select(groups)
    if state is not None:
        query = query.where(groups.c.state == state)
    with ledger.read() as connection:
        last = row_before(connection, after, groups.c.id)
        page = newest_first(query, groups, limit, last, time="opened_at")
        rows, following = split(connection.execute(page).all(), limit)
    return Page[Group](items=[Group.model_validate(row._asdict()) for row in rows], next=following)
