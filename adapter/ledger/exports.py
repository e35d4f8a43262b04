# SPDX-License-Identifier: Apache-2.0
"""Exports: one task's way to one destination.

Receipts say what the destination did with each file (`adapter.ledger.receipts`).

::

    pending -> sending -> succeeded | partial
    sending -> pending    a retry, or its destination cannot be reached
    pending, sending -> parked -> pending | discarded

A try is judged by what is confirmed at its end.  If more is missing than the failure threshold, the
try has failed.  Otherwise what is missing still gets its tries, and what then remains is `partial`.
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
    case,
    exists,
    func,
    or_,
    select,
    true,
    update,
)

from adapter.errors import PermanentError
from adapter.ledger import (
    attempts,
    destination_holds,
    events,
    leases,
    locks,
    receipts,
    remote_tasks,
)
from adapter.ledger.attempts import Defeat
from adapter.ledger.database import Ledger
from adapter.ledger.delays import LONGEST_WAIT
from adapter.ledger.export_policy import FailureReason, FileCounts, state_after_try
from adapter.ledger.leases import Lease, due, free
from adapter.ledger.receipts import File, Receipt
from adapter.ledger.schema import exports, now, task_files, tasks
from adapter.ledger.schema import holds as holds_table
from adapter.models import ExportState
from adapter.settings import Scu, ScuExport, Workers

#: Which export is claimed first.
ORDER = (exports.c.priority.desc(), exports.c.created_at, exports.c.id)

#: The states in which an export waits for an operator.
WAITING = (ExportState.PARKED, ExportState.PARTIAL)

_ENDED = (ExportState.SUCCEEDED, ExportState.DISCARDED)


@dataclass(frozen=True, slots=True)
class Export:
    """An export as it stood when it was claimed, and its lease."""

    lease: Lease
    id: str
    destination: str
    tries: int
    expiries: int  #: how often it killed or defeated its worker
    again: bool  #: whether it did: then files may be sent that were received already
    task: str
    job: str | None
    remote: bool
    task_age: float


# -- claims --------------------------------------------------------------------------------------


def export_due(scu: Scu, workers: Workers) -> ColumnElement[bool]:
    """Return the condition that an export can be claimed.

    It is due and free, and its destination neither on hold nor sent to as much as it may be.  What
    failed of a remote task is not due: it waits to be delivered again.
    """
    remote = exists().where(tasks.c.id == exports.c.task_id, tasks.c.remote)
    return and_(
        exports.c.state.in_((ExportState.PENDING, ExportState.SENDING)),
        due(exports.c.due_at),
        free(exports, workers.lease_seconds),
        or_(~exports.c.failed, ~remote),
        ~destination_holds.on_hold(),
        func.lower(exports.c.destination).not_in(_full(scu, workers)),
    )


def _full(scu: Scu, workers: Workers) -> Select[Any]:
    """Return the destinations that are sent to as much as they may be, in lower case.

    No destination has more than half of the slots, over all workers, and one that is being probed
    has one.
    """
    sending = exports.alias("sending")
    name = func.lower(sending.c.destination)
    probed = name.in_(select(func.lower(holds_table.c.destination)))
    slots = max(1, scu.maximum_number_of_associations // 2)
    return (
        select(name)
        .where(
            sending.c.state == ExportState.SENDING,
            sending.c.lease_token.is_not(None),
            ~free(sending, workers.lease_seconds),
        )
        .group_by(name)
        .having(func.count() >= case((probed, 1), else_=slots))
    )


def claim(ledger: Ledger, scu: Scu, workers: Workers, first: str | None = None) -> Export | None:
    """Lease the export `first` if it can be claimed, else the next; None if there is none."""
    with ledger.write() as connection:
        locks.hold(connection, locks.Kind.EXPORTS)
        while True:
            lease, rows = leases.claim(
                connection,
                exports,
                export_due(scu, workers),
                order=ORDER,
                first=first,
                limit=1,
                seconds=workers.lease_seconds,
                values={"state": ExportState.SENDING, "updated_at": now()},
            )
            if not rows:
                return None
            export = _claimed(connection, lease, rows[0])
            why = attempts.killed(export.expiries, workers.maximum_lease_expiries)
            if why is None:
                return export
            _park(connection, export, FailureReason(why.reason, why.message), scu.export)


def _claimed(connection: Connection, lease: Lease, row: Row[Any]) -> Export:
    task = connection.execute(
        select(tasks, (now() - tasks.c.created_at).label("age")).where(tasks.c.id == row.task_id)
    ).one()
    return Export(
        lease=lease,
        id=row.id,
        destination=row.destination,
        tries=row.tries,
        expiries=row.lease_expiries,
        again=row.lease_expiries > 0,
        task=row.task_id,
        job=task.job_id,
        remote=task.remote,
        task_age=task.age,
    )


def files_to_send(ledger: Ledger, export: Export) -> list[File]:
    """Return the files that are not confirmed and may pass, those tried least first."""
    with ledger.read() as connection:
        return receipts.to_send(connection, export.id, export.task)


def count_files(ledger: Ledger, export: Export) -> FileCounts:
    """Count a task's files as the destination has them."""
    with ledger.read() as connection:
        return receipts.count(connection, export.id, export.task)


# -- what a worker records; each raises LeaseLost, and changes nothing, if it lost the export -----


def answered(ledger: Ledger, export: Export) -> None:
    """Record that the destination accepted an association for an export."""
    with ledger.write() as connection:
        locks.hold(connection, locks.Kind.EXPORTS)
        leases.change(connection, export.lease, export.id, waiting_since=None, updated_at=now())
        destination_holds.lift(connection, export.destination)
        _record(connection, "export-started", export, run=export.tries + 1)


def describe(ledger: Ledger, export: Export, found: Sequence[tuple[int, str, str, str]]) -> None:
    """Record the UIDs of files: number, SOP class, SOP instance and transfer syntax."""
    with ledger.write() as connection:
        leases.change(connection, export.lease, export.id, updated_at=now())
        for number, sop_class, sop_instance, transfer_syntax in found:
            connection.execute(
                update(task_files)
                .where(
                    task_files.c.task_id == export.task,
                    task_files.c.number == number,
                    task_files.c.sop_instance_uid.is_(None),
                )
                .values(
                    sop_class_uid=sop_class,
                    sop_instance_uid=sop_instance,
                    transfer_syntax_uid=transfer_syntax,
                )
            )


def confirm(ledger: Ledger, export: Export, results: Sequence[Receipt]) -> None:
    """Write receipts."""
    with ledger.write() as connection:
        leases.change(connection, export.lease, export.id, updated_at=now())
        receipts.write(connection, export.id, results)


def give_back(ledger: Ledger, export: Export, *, delay: float = 0.0) -> ExportState:
    """Give an export back without a try; it is due again after `delay` seconds."""
    with ledger.write() as connection:
        _wait(connection, export, delay)
    return ExportState.PENDING


def unreachable(ledger: Ledger, export: Export, why: str, policy: ScuExport) -> ExportState:
    """Give an export back without a try and put its destination on hold."""
    with ledger.write() as connection:
        locks.hold(connection, locks.Kind.EXPORTS)
        _wait(connection, export, 0.0)
        for row in destination_holds.extend(connection, export.destination, why, policy):
            impatient = _claimed(connection, export.lease, row)
            _park_row(connection, impatient, FailureReason("destination-unreachable", why), policy)
    return ExportState.PENDING


def conclude(
    ledger: Ledger,
    export: Export,
    policy: ScuExport,
    *,
    why: str | None = None,
    failure: FailureReason | None = None,
) -> tuple[ExportState, str | None]:
    """End a try; return the state that the export is in now, and what is missing in words.

    Parameters
    ----------
    why : str, optional
        How the try ended, if it was cut short.
    failure : FailureReason, optional
        Why another try is of no use.
    """
    with ledger.write() as connection:
        locks.hold(connection, locks.Kind.EXPORTS)
        count = receipts.count(connection, export.id, export.task)
        if failure is not None:
            count = FileCounts(count.files, count.stored, 0)
        tries = export.tries + 1
        state, failed = state_after_try(count, tries, policy, remote=export.remote)
        reason, message = None, None
        if state != ExportState.SUCCEEDED:
            reason = failure.reason if failure else _REASONS[failed]
            words = failure.message if failure else why
            words = words or receipts.most_common_reason(connection, export.id, export.task)
            missing = count.files - count.stored
            message = f"{missing} of {count.files} files are not confirmed"
            message = f"{message}: {words}"[:500] if words else message
        leases.finish(
            connection,
            export.lease,
            export.id,
            state=state,
            failed=failed,
            tries=tries,
            due_at=now() + min(policy.retry_delay_seconds, LONGEST_WAIT),
            waiting_since=None,
            reason=reason,
            message=message,
            updated_at=now(),
        )
        facts = {"files": count.files, "stored": count.stored, "tries": tries}
        _record(connection, _EVENTS[state], export, failed=failed, reason=reason, **facts)
        if export.remote:
            remote_tasks.decide(connection, export.task, policy)
    return state, message


def defeat(
    ledger: Ledger, export: Export, policy: ScuExport, why: Defeat, maximum: int
) -> ExportState:
    """Count that an export defeated its worker (no try); the last of `maximum` times parks it."""
    failure = FailureReason(why.reason, why.message)
    count = export.expiries + 1
    if count >= maximum:
        return park(ledger, export, failure, policy)
    with ledger.write() as connection:
        attempts.rest(
            connection,
            export.lease,
            export.id,
            count,
            state=ExportState.PENDING,
            lease_expiries=count,
            updated_at=now(),
            **why.facts,
        )
        _record(connection, "export-failed-try", export, reason=why.reason, tries=export.tries)
    return ExportState.PENDING


def park(ledger: Ledger, export: Export, failure: FailureReason, policy: ScuExport) -> ExportState:
    """Park an export until an operator retries or discards it; a remote task of it has failed."""
    with ledger.write() as connection:
        locks.hold(connection, locks.Kind.EXPORTS)
        _park(connection, export, failure, policy)
    return ExportState.PARKED


_REASONS = {True: "too-many-failed", False: "some-failed"}
_EVENTS = {
    ExportState.SUCCEEDED: "export-succeeded",
    ExportState.PARTIAL: "export-partial",
    ExportState.PENDING: "export-failed-try",
    ExportState.PARKED: "export-parked",
}


def _wait(connection: Connection, export: Export, delay: float) -> None:
    leases.finish(
        connection,
        export.lease,
        export.id,
        state=ExportState.PENDING,
        due_at=now() + min(delay, LONGEST_WAIT),
        updated_at=now(),
    )


def _park(
    connection: Connection, export: Export, failure: FailureReason, policy: ScuExport
) -> None:
    leases.finish(connection, export.lease, export.id, updated_at=now())
    _park_row(connection, export, failure, policy)


def _park_row(
    connection: Connection, export: Export, failure: FailureReason, policy: ScuExport
) -> None:
    """Park an export that nobody holds."""
    connection.execute(
        update(exports)
        .where(exports.c.id == export.id)
        .values(
            state=ExportState.PARKED,
            failed=True,
            reason=failure.reason,
            message=failure.message[:500],
            updated_at=now(),
        )
    )
    _record(connection, "export-parked", export, reason=failure.reason, tries=export.tries)
    if export.remote:
        final = failure.reason == "unknown-destination"
        remote_tasks.decide(connection, export.task, policy, final=final)


def _record(connection: Connection, kind: str, export: Export, **detail: Any) -> None:
    job = None if export.remote else export.job
    events.record(
        connection, kind, job=job, export=export.id, destination=export.destination, **detail
    )


# -- what an operator asks for -------------------------------------------------------------------


def waiting(ledger: Ledger, destination: str) -> list[str]:
    """Return the exports to a destination that wait for an operator, the oldest first."""
    mine = destination_holds.same_name(exports.c.destination, destination)
    query = select(exports.c.id).where(mine, exports.c.state.in_(WAITING))
    with ledger.read() as connection:
        return list(connection.execute(query.order_by(exports.c.created_at)).scalars())


def retry(ledger: Ledger, export: str) -> ExportState:
    """Let an export try again what is not confirmed, at once and with all its tries.

    Raises
    ------
    PermanentError
        If there is no such export, or it does not stand still.
    """
    with ledger.write() as connection:
        locks.hold(connection, locks.Kind.EXPORTS)
        if not _retry(connection, exports.c.id == export):
            raise _refusal(connection, export, "only a parked or partial export can be retried")
    return ExportState.PENDING


def retry_all(
    ledger: Ledger,
    *,
    destination: str | None = None,
    state: ExportState | None = None,
    reason: str | None = None,
) -> list[str]:
    """Let every parked or partial export try again, or those selected; return their ids.

    Parameters
    ----------
    destination : str, optional
        Only those to this one.  If it is on hold it is tried at once, for those too that only wait
        for it.
    state : ExportState, optional
        Only those in this state.
    reason : str, optional
        Only those whose last try ended for this reason (its code).
    """
    which = [
        column == value
        for column, value in ((exports.c.state, state), (exports.c.reason, reason))
        if value is not None
    ]
    with ledger.write() as connection:
        locks.hold(connection, locks.Kind.EXPORTS)
        if destination is not None:
            which.append(destination_holds.same_name(exports.c.destination, destination))
            destination_holds.probe_now(connection, destination)
        return _retry(connection, and_(true(), *which))


def discard(ledger: Ledger, export: str, policy: ScuExport | None = None) -> ExportState:
    """Give an export up for good; one that is being sent is stopped by the loss of its lease.

    Raises
    ------
    PermanentError
        If there is no such export, or it has ended already.
    """
    with ledger.write() as connection:
        locks.hold(connection, locks.Kind.EXPORTS)
        row = connection.execute(
            update(exports)
            .where(exports.c.id == export, exports.c.state.not_in(_ENDED))
            .values(
                state=ExportState.DISCARDED, updated_at=now(), lease_token=None, lease_until=None
            )
            .returning(exports)
        ).first()
        if row is None:
            raise _refusal(connection, export, "an export that has ended cannot be discarded")
        events.record(connection, "export-discarded", export=export, destination=row.destination)
        remote_tasks.decide(connection, row.task_id, policy or ScuExport())
    return ExportState.DISCARDED


def _retry(connection: Connection, which: ColumnElement[bool]) -> list[str]:
    remote = exists().where(tasks.c.id == exports.c.task_id, tasks.c.remote)
    still = or_(
        exports.c.state.in_(WAITING),
        and_(exports.c.state == ExportState.PENDING, exports.c.failed, remote),
    )
    rows = remote_tasks.reopen(connection, and_(which, still))
    for row in rows:
        remote_tasks.reopen_report(connection, row.task_id)
        destination_holds.probe_now(connection, row.destination)
        events.record(connection, "export-retried", export=row.id, destination=row.destination)
    return [row.id for row in rows]


def _refusal(connection: Connection, export: str, rule: str) -> PermanentError:
    state = connection.execute(select(exports.c.state).where(exports.c.id == export)).scalar()
    if state is None:
        return PermanentError(f"there is no export {export}", "no-such-export")
    return PermanentError(f"export {export} is {state}: {rule}", "wrong-state")
