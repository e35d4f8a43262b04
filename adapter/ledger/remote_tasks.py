# SPDX-License-Identifier: Apache-2.0
"""Tasks of a remote Results Service: taken in once by their id, and answered for until it knows.

::

    (delivered) -> open --every destination tried--> due --taken--> reported
                    ^                                 |                |
                    +--- delivered again, one retry further, after a reported failure

One try per delivery: a destination that failed waits for the Results Service to deliver the task
again.  What was confirmed before that is not sent again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    exists,
    insert,
    or_,
    select,
    update,
)

from adapter.ledger import events, locks, receipts
from adapter.ledger.attempts import Defeat
from adapter.ledger.database import Ledger
from adapter.ledger.delays import growing_delay
from adapter.ledger.leases import due
from adapter.ledger.schema import exports, now, task_files, tasks
from adapter.models import ExportState, Priority, ReportState, export_id
from adapter.settings import ResultsServiceSettings, ScuExport

_ENDED = (ExportState.SUCCEEDED, ExportState.DISCARDED)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A task as a remote Results Service delivers it.

    Attributes
    ----------
    retries : int
        How often it was delivered and failed before.
    destinations : tuple of str
        Names of destinations.
    files : tuple of (str, str or None)
        Paths under the root, and why one cannot be sent at all.
    problem : str, optional
        Why the task as a whole cannot be done.
    reason : str
        The same as a code.
    """

    id: str
    job_id: str | None = None
    retries: int = 0
    destinations: tuple[str, ...] = ()
    files: tuple[tuple[str, str | None], ...] = ()
    problem: str | None = None
    reason: str = "malformed-task"


@dataclass(frozen=True, slots=True)
class Report:
    """What the Results Service is to be told of a task."""

    task: str
    success: bool
    retry_later: bool
    retries: int
    failures: int


def report_due() -> ColumnElement[bool]:
    """Return the condition that a remote Results Service is owed a task's answer now."""
    return and_(
        tasks.c.report == ReportState.DUE,
        or_(tasks.c.report_due_at.is_(None), due(tasks.c.report_due_at)),
    )


# -- taken in ------------------------------------------------------------------------------------


def deliver(
    ledger: Ledger,
    deliveries: Sequence[Delivery],
    *,
    agent: str,
    service: ResultsServiceSettings,
    policy: ScuExport,
) -> int:
    """Take in tasks that a Results Service names as pending; done twice it is done once.

    Returns
    -------
    int
        How many of them bring work to do.
    """
    with ledger.read() as connection:
        known = _known(connection, select(tasks), [delivery.id for delivery in deliveries])
    news = [d for d in deliveries if _is_news(d, known.get(d.id))]
    if not news:
        return 0
    amount = 0
    with ledger.write() as connection:
        locks.hold(connection, locks.Kind.EXPORTS)
        for delivery in news:
            row = _known(connection, _HELD, [delivery.id]).get(delivery.id)
            if row is None:
                _insert(connection, delivery, agent)
                amount += 1
            elif _is_news(delivery, row):
                amount += _deliver_again(connection, delivery, row, service, policy)
    return amount


_HELD = select(tasks).with_for_update()


def _known(connection: Connection, query: Select[Any], ids: Sequence[str]) -> dict[str, Row[Any]]:
    rows = connection.execute(query.where(tasks.c.id.in_(ids))).all()
    return {row.id: row for row in rows}


def _is_news(delivery: Delivery, row: Row[Any] | None) -> bool:
    """Tell whether a delivery changes anything: idle polls write nothing."""
    if row is None:
        return True
    further = delivery.retries > row.remote_retries
    return bool(row.remote) and (further or row.report == ReportState.REPORTED)


def _insert(connection: Connection, delivery: Delivery, agent: str) -> None:
    refused = delivery.problem is not None
    connection.execute(
        insert(tasks).values(
            id=delivery.id,
            job_id=delivery.job_id,
            agent=agent,
            remote=True,
            remote_retries=delivery.retries,
            report=ReportState.DUE if refused else ReportState.OPEN,
            report_success=False if refused else None,
            report_retry_later=False if refused else None,
            created_at=now(),
        )
    )
    for number, (path, problem) in enumerate(delivery.files, start=1):
        connection.execute(
            insert(task_files).values(
                task_id=delivery.id, number=number, path=path, problem=problem
            )
        )
    for destination in delivery.destinations:
        connection.execute(
            insert(exports).values(
                id=export_id(delivery.id, destination),
                task_id=delivery.id,
                destination=destination,
                state=ExportState.PARKED if refused else ExportState.PENDING,
                priority=Priority.NORMAL,
                failed=refused,
                reason=delivery.reason if refused else None,
                message=(delivery.problem or "")[:500] or None,
                due_at=now(),
                created_at=now(),
                updated_at=now(),
            )
        )
    if refused:
        events.record(
            connection,
            "task-refused",
            task=delivery.id,
            reason=delivery.reason,
            destinations=list(delivery.destinations),
        )


def _deliver_again(
    connection: Connection,
    delivery: Delivery,
    row: Row[Any],
    service: ResultsServiceSettings,
    policy: ScuExport,
) -> int:
    """Take in a task that is known; 1 if it is to be tried again."""
    if delivery.retries <= row.remote_retries:
        # It has been told, and does not know: tell it again, as if it had not answered.
        _report_again(connection, row, service)
        return 0
    values = {"remote_retries": delivery.retries}
    if row.report == ReportState.OPEN:
        connection.execute(update(tasks).where(tasks.c.id == delivery.id).values(**values))
        return 0
    if row.report_success:
        connection.execute(update(tasks).where(tasks.c.id == delivery.id).values(**values))
        _report_again(connection, row, service)
        return 0
    connection.execute(
        update(tasks)
        .where(tasks.c.id == delivery.id)
        .values(report=ReportState.OPEN, report_success=None, report_retry_later=None, **values)
    )
    reopen(
        connection,
        and_(
            exports.c.task_id == delivery.id,
            exports.c.state.not_in((*_ENDED, ExportState.SENDING)),
        ),
    )
    decide(connection, delivery.id, policy)
    return 1


def reopen(connection: Connection, where: ColumnElement[bool]) -> list[Row[Any]]:
    """Let exports try everything again that is not confirmed, with all their tries."""
    rows = list(
        connection.execute(
            update(exports)
            .where(where)
            .values(
                state=ExportState.PENDING,
                tries=0,
                failed=False,
                reason=None,
                message=None,
                waiting_since=None,
                due_at=now(),
                updated_at=now(),
                lease_token=None,
                lease_until=None,
                lease_expiries=0,
            )
            .returning(exports)
        ).all()
    )
    receipts.forgive(connection, [row.id for row in rows])
    return rows


# -- answered for --------------------------------------------------------------------------------


def decide(connection: Connection, task: str, policy: ScuExport, *, final: bool = False) -> None:
    """Settle what to report of a task once each of its destinations has been tried.

    Parameters
    ----------
    final : bool
        True if trying again is of no use, whatever the number of retries.
    """
    # One transaction at a time judges a task: two would miss each other's export.
    row = connection.execute(select(tasks).where(tasks.c.id == task).with_for_update()).one()
    if row.report != ReportState.OPEN:
        return
    of_task = connection.execute(select(exports).where(exports.c.task_id == task)).all()
    under_way = (ExportState.PENDING, ExportState.SENDING)
    if any(e.state in under_way and not e.tries and not e.failed for e in of_task):
        return
    wanted = [e for e in of_task if e.state != ExportState.DISCARDED]
    failed = not wanted or any(e.failed and e.state != ExportState.SUCCEEDED for e in wanted)
    again = bool(wanted) and not final and row.remote_retries < policy.maximum_retries
    retry_later = failed and again
    connection.execute(
        update(tasks)
        .where(tasks.c.id == task)
        .values(
            report=ReportState.DUE,
            report_success=not failed,
            report_retry_later=retry_later,
            report_due_at=now(),
            report_failures=0,
        )
    )
    if failed and not retry_later:
        for export in of_task:
            if export.failed and export.state == ExportState.PENDING:
                connection.execute(
                    update(exports)
                    .where(exports.c.id == export.id)
                    .values(state=ExportState.PARKED, reason="too-many-failed", updated_at=now())
                )
                events.record(
                    connection,
                    "export-parked",
                    export=export.id,
                    destination=export.destination,
                    reason="too-many-failed",
                )


def reopen_report(connection: Connection, task: str) -> None:
    """Take back the reported failure of a task whose exports an operator tries again."""
    connection.execute(
        update(tasks)
        .where(tasks.c.id == task, tasks.c.remote, tasks.c.report_success.is_(False))
        .values(report=ReportState.OPEN, report_success=None, report_retry_later=None)
    )


def claim_report(ledger: Ledger, seconds: float) -> Report | None:
    """Take the report that waits longest; unless it is settled it is due again in `seconds`."""
    first = (
        select(tasks.c.id)
        .where(report_due())
        .order_by(tasks.c.report_due_at)
        .limit(1)
        .with_for_update(skip_locked=True)
        .cte("first")
    )
    with ledger.read() as connection:
        if not connection.execute(select(exists().where(report_due()))).scalar():
            return None
    with ledger.write() as connection:
        row = connection.execute(
            update(tasks)
            .where(tasks.c.id.in_(select(first.c.id)))
            .values(report_due_at=now() + seconds)
            .returning(tasks)
        ).first()
    if row is None:
        return None
    return Report(
        row.id,
        bool(row.report_success),
        bool(row.report_retry_later),
        row.remote_retries,
        row.report_failures,
    )


def taken(ledger: Ledger, report: Report) -> None:
    """Record that the Results Service took a report."""
    with ledger.write() as connection:
        done = connection.execute(
            update(tasks)
            .where(_still(report))
            # The time is kept: a task is forgotten so long after its last report.
            .values(report=ReportState.REPORTED, report_due_at=now(), report_failures=0)
        )
        if done.rowcount:
            events.record(
                connection,
                "task-reported",
                task=report.task,
                success=report.success,
                retry_later=report.retry_later,
            )


def not_taken(
    ledger: Ledger,
    report: Report,
    service: ResultsServiceSettings,
    why: Defeat | None = None,
    maximum: int = 0,
) -> None:
    """Keep a report that was not taken, to be repeated.

    Parameters
    ----------
    why : Defeat, optional
        What defeated the worker, if the Results Service did not refuse the report.
    maximum : int
        The failure that is then recorded as an event: the report stays due.
    """
    with ledger.write() as connection:
        connection.execute(
            update(tasks).where(_still(report)).values(**_later(service, report.failures))
        )
        if why is not None and report.failures + 1 == maximum:
            events.record(
                connection,
                "task-not-reported",
                task=report.task,
                reason=why.reason,
                message=why.message,
            )


def _report_again(connection: Connection, row: Row[Any], service: ResultsServiceSettings) -> None:
    connection.execute(
        update(tasks)
        .where(tasks.c.id == row.id)
        .values(report=ReportState.DUE, **_later(service, row.report_failures))
    )


def _later(service: ResultsServiceSettings, failures: int) -> dict[str, Any]:
    delay = growing_delay(service.report_minimum_seconds, failures, service.report_maximum_seconds)
    return {
        "report_due_at": now() + delay,
        "report_failures": failures + 1,
    }


def _still(report: Report) -> ColumnElement[bool]:
    """Return the condition that what was reported is still what is owed."""
    return and_(
        tasks.c.id == report.task,
        tasks.c.report == ReportState.DUE,
        tasks.c.report_success == report.success,
        tasks.c.report_retry_later == report.retry_later,
        tasks.c.remote_retries == report.retries,
    )
