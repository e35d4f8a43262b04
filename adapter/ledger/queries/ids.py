# SPDX-License-Identifier: Apache-2.0
"""Ids as people type them: the whole id, or any beginning that only one row has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, func, select

from adapter.errors import AdapterError
from adapter.ledger.database import Ledger
from adapter.ledger.schema import arrivals, exports, groups, jobs
from adapter.models import ArrivalId, ArrivalState

#: What an id may consist of; PostgreSQL refuses a NUL in a text.
_ID = re.compile(r"[0-9A-Za-z.-]{1,128}")

Kind = Literal["job", "export", "group", "file"]
_COLUMNS: Mapping[Kind, tuple[ColumnElement[Any], ...]] = {
    "job": (jobs.c.id,),
    "export": (exports.c.id,),
    "group": (groups.c.id,),
    "file": (arrivals.c.id, arrivals.c.state == ArrivalState.QUARANTINED),
}


class UnclearId(AdapterError):
    """Several rows have an id that begins so, or a page was to follow a row that is not there."""


def whole_ids(ledger: Ledger, kind: Kind, texts: Iterable[str]) -> list[str]:
    """Return the ids that begin with some texts, each once; a text that begins none stays as it is.

    Raises
    ------
    UnclearId
        If several ids begin with a text.
    """
    found: dict[str, None] = {}
    with ledger.read() as connection:
        for text in texts:
            try:
                found[whole_id(connection, text, *_COLUMNS[kind]) or text] = None
            except UnclearId as error:
                raise UnclearId(f"{text}: {error}") from None
    return list(found)


def whole_id(
    connection: Connection, text: str, column: ColumnElement[Any], *where: ColumnElement[bool]
) -> str | None:
    """Return the only value of a column that begins with a text, or is that text; None without one.

    Raises
    ------
    UnclearId
        If several values begin with the text.
    """
    if not _ID.fullmatch(text):
        return None
    begins = func.substr(column, 1, len(text)) == text
    # A scan, unless the id is whole: the databases sort text differently, and few type a beginning.
    for condition in (column == text, begins):
        query = select(column).where(condition, *where).distinct().limit(2)
        found = connection.execute(query).scalars().all()
        if len(found) > 1:
            # Without the text, which may be anything: REST answers with this.
            raise UnclearId("several ids begin so: give more of it")
        if found:
            return str(found[0])
    return None


def row_before(connection: Connection, after: str | None, column: ColumnElement[Any]) -> str | None:
    """Return the id of the row that a page follows; None for the first page.

    Raises
    ------
    UnclearId
        If there is no such row.
    """
    if after is None:
        return None
    found = whole_id(connection, after, column)
    if found is None:
        raise UnclearId("after: there is no such row to go on from")
    return found


def arrival_before(after: str | None) -> str | None:
    """Return the arrival that a page follows, which may be deleted meanwhile.

    Raises
    ------
    UnclearId
        If it is no id of an arrival.
    """
    if after is not None:
        try:
            ArrivalId.parse(after)
        except ValueError:
            raise UnclearId("after: there is no such row to go on from") from None
    return after
