# SPDX-License-Identifier: Apache-2.0
"""Pages of rows, newest first, that neither skip nor repeat a row while others are added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, Table, and_, or_, select

from adapter.ledger.queries.facts import LARGEST_PAGE


def newest_first(
    query: Select[Any], table: Table, limit: int, after: str | None, time: str = "created_at"
) -> Select[Any]:
    """Order a query by a time and limit it to the page that follows the row `after`.

    The query returns one row more than a page has: it shows whether there is another page.
    """
    if after is not None:
        query = query.where(_older(table, after, table.c[time]))
    return query.order_by(table.c[time].desc(), table.c.id.desc()).limit(bounded(limit) + 1)


def bounded(limit: int) -> int:
    """Return a legal page size."""
    return max(1, min(limit, LARGEST_PAGE))


def split(rows: Sequence[Any], limit: int) -> tuple[Sequence[Any], str | None]:
    """Return a page's rows and the cursor of the next, from rows that may be one too many."""
    limit = bounded(limit)
    return rows[:limit], str(rows[limit - 1].id) if len(rows) > limit else None


def _older(table: Table, row: str, time: ColumnElement[float]) -> ColumnElement[bool]:
    at = select(time).where(table.c.id == row).scalar_subquery()
    return or_(time < at, and_(time == at, table.c.id < row))
