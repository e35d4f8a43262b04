# SPDX-License-Identifier: Apache-2.0
"""Locks on names: they serialise transactions on PostgreSQL that must see each other's changes.

SQLite has one writer at a time.  PostgreSQL has many, and at READ COMMITTED none sees uncommitted
changes of another.  If a verb reads before it writes, and locking the rows that it reads is not
enough (a row may not exist yet), it first takes a lock on a name.  The lock ends with the
transaction.  A transaction takes its locks in one statement and in order, before any row, so
deadlocks are impossible.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection
from enum import IntEnum

from sqlalchemy import Connection, text

#: Number of locks that the keys of one kind are hashed to: the most that a transaction takes.
STRIPES = 64


class Kind(IntEnum):
    """The kind of a lock."""

    MIGRATIONS = 0x0A0D0001
    CONFIGURATION = 0x0A0D0002  #: the names of configured entities
    INSTANCES = 0x0A0D0003  #: the instances of a study, and the generations of a group's key
    EXPORTS = 0x0A0D0004  #: a destination's exports and its hold, and the rest of a task


_LOCK = text(
    "SELECT pg_advisory_xact_lock(:kind, number) FROM unnest(CAST(:numbers AS integer[])) AS number"
)


def hold(connection: Connection, kind: Kind, keys: Collection[str] = ("",)) -> None:
    """Take the locks of these keys until the transaction ends; wait for those that are taken."""
    if connection.dialect.name == "postgresql":
        numbers = sorted({zlib.crc32(key.encode("utf-8")) % STRIPES for key in keys})
        connection.execute(_LOCK, {"kind": int(kind), "numbers": numbers})
