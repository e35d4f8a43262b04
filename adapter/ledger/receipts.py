# SPDX-License-Identifier: Apache-2.0
"""Receipts: what a destination did with each file of a task, and so what is still to be sent.

A file without a receipt was not sent there yet.  One that cannot be sent at all says so in the task
itself and has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, or_, select, update

from adapter.ledger.export_policy import FileCounts
from adapter.ledger.schema import now, receipts, task_files
from adapter.models import Outcome


@dataclass(frozen=True, slots=True)
class File:
    """A file that is still to be sent: its number and path in the task, and its tries so far."""

    number: int
    path: str
    tries: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a destination did with one file.

    Attributes
    ----------
    tries : int
        How often it was sent there, this time included.
    status : int, optional
        The number that it answered, if its protocol has one (a C-STORE's status, for instance).
    reason : str, optional
        The same in words, for people: why the file is not stored.
    """

    number: int
    tries: int
    outcome: Outcome
    status: int | None = None
    reason: str | None = None


def to_send(connection: Connection, export: str, task: str) -> list[File]:
    """Return the files that are not confirmed and may pass, those tried least first."""
    tries = func.coalesce(receipts.c.tries, 0).label("tries")
    rows = connection.execute(
        select(task_files.c.number, task_files.c.path, tries)
        .select_from(_files_and_receipts(export))
        .where(task_files.c.task_id == task, _hopeful())
        .order_by(tries, task_files.c.number)
    ).all()
    return [File(row.number, row.path, row.tries) for row in rows]


def count(connection: Connection, export: str, task: str) -> FileCounts:
    """Count a task's files as the destination has them."""
    row = connection.execute(
        select(
            func.count(),
            func.count().filter(receipts.c.outcome == Outcome.STORED),
            func.count().filter(_hopeful()),
            func.count(task_files.c.problem),
        )
        .select_from(_files_and_receipts(export))
        .where(task_files.c.task_id == task)
    ).one()
    return FileCounts(*row)


def most_common_reason(connection: Connection, export: str, task: str) -> str | None:
    """Return why most of the files that are not confirmed are not, if anything was said."""
    words = func.coalesce(receipts.c.reason, task_files.c.problem).label("words")
    return connection.execute(
        select(words)
        .select_from(_files_and_receipts(export))
        .where(
            task_files.c.task_id == task,
            or_(receipts.c.outcome.is_(None), receipts.c.outcome != Outcome.STORED),
            words.is_not(None),
        )
        .group_by(words)
        .order_by(func.count().desc(), words)
        .limit(1)
    ).scalar()


def write(connection: Connection, export: str, results: Sequence[Receipt]) -> None:
    """Write receipts, over those of earlier tries."""
    connection.execute(
        delete(receipts).where(
            receipts.c.export_id == export,
            receipts.c.number.in_([result.number for result in results]),
        )
    )
    for result in results:
        connection.execute(
            insert(receipts).values(
                export_id=export,
                number=result.number,
                outcome=result.outcome,
                status=result.status,
                reason=None if result.reason is None else result.reason[:200],
                tries=result.tries,
                updated_at=now(),
            )
        )


def forgive(connection: Connection, exports: Sequence[str]) -> None:
    """Let files that were refused be sent again."""
    connection.execute(
        update(receipts)
        .where(receipts.c.export_id.in_(exports), receipts.c.outcome == Outcome.REFUSED)
        .values(outcome=Outcome.RETRY)
    )


def _files_and_receipts(export: str) -> Any:
    same = and_(receipts.c.export_id == export, receipts.c.number == task_files.c.number)
    return task_files.outerjoin(receipts, same)


def _hopeful() -> ColumnElement[bool]:
    """Return the condition that a file is not confirmed and may pass."""
    untold = or_(receipts.c.outcome.is_(None), receipts.c.outcome == Outcome.RETRY)
    return and_(task_files.c.problem.is_(None), untold)
