# SPDX-License-Identifier: Apache-2.0
"""Locks: how transactions on PostgreSQL are kept apart that must not overlook each other.

SQLite has one writer at a time; PostgreSQL has many, and at READ COMMITTED none of them sees what
another has not committed yet.  Where a verb reads before it writes, and no row that it could lock
tells the whole story (the row may not be there yet), it first takes a lock on a name, which ends
with the transaction, however that ends.  A transaction takes its locks in one statement and in
order, before any row: so no two wait for each other.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection
from enum import IntEnum

from sqlalchemy import Connection, text

#: In how many locks those of one kind with a key are folded: a transaction holds no more than this.
STRIPES = 64


class Kind(IntEnum):
    """What is locked."""

    MIGRATIONS = 0x0A0D0001
    CONFIGURATION = 0x0A0D0002  #: who is configured under which name
    INSTANCES = 0x0A0D0003  #: the instances of a study, and the generations of a group's key
    EXPORTS = 0x0A0D0004  #: what a destination is sent, its hold, and what is left of a task


_LOCK = text(
    "SELECT pg_advisory_xact_lock(:kind, number) FROM unnest(CAST(:numbers AS integer[])) AS number"
)


def hold(connection: Connection, kind: Kind, keys: Collection[str] = ("",)) -> None:
    """Keep transactions out that hold one of these keys, until this one ends."""
    if connection.dialect.name == "postgresql":
        numbers = sorted({zlib.crc32(key.encode("utf-8")) % STRIPES for key in keys})
        connection.execute(_LOCK, {"kind": int(kind), "numbers": numbers})
