# SPDX-License-Identifier: Apache-2.0
"""Export: sends each task's files to each of its destinations, and reports what came of it.

One export at a time: claim it, look at its files, send what is not confirmed, write down each
answer as it comes, then judge the try.  A destination that cannot be reached costs no try.  How
files are sent depends on the destination's kind (`workers.clients.destination`); where tasks come
from is told in `workers.clients.results_service`.
"""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path

from adapter import stages
from adapter.core import Adapter
from adapter.errors import LeaseLost, NotYetVisible, PermanentError, Stopped, TemporaryError
from adapter.ledger import configuration, exports, remote_tasks
from adapter.ledger.export_policy import FailureReason, over_threshold
from adapter.ledger.exports import Export
from adapter.ledger.receipts import Receipt
from adapter.ledger.remote_tasks import Report
from adapter.log import get_logger
from adapter.models import Destination, EntityKind, ExportState, Outcome
from adapter.scu.files import Outgoing, examine
from workers import defeats
from workers.clients.destination import Away, CutShort, Refused
from workers.clients.destinations import client_of
from workers.clients.results_service import results_service
from workers.receipt_book import ReceiptBook
from workers.stage import Parked, TaskResult, TryFailed, Work

log = get_logger(__name__)

#: Looks at a file that is not visible yet, in the time that a shared volume has to show it.
_LOOKS = 20


def take(work: Work, first: str | None = None) -> TaskResult | None:
    """Deliver a report that is due, and make a try of an export that is due, `first` if it is.

    None if neither is due.
    """
    settings = work.adapter.settings
    reported = _report(work)
    export = exports.claim(work.adapter.ledger, settings.dicom.scu, settings.workers, first)
    if export is None:
        return reported
    count = partial(
        exports.defeat,
        work.adapter.ledger,
        export,
        settings.dicom.scu.export,
        maximum=settings.workers.maximum_lease_expiries,
    )
    with defeats.counted(work, stages.EXPORT, export.lease, export.id, count) as attempt:
        attempt.outcome, attempt.failure = _export(work, export, attempt.began)
    state = attempt.outcome
    if state in {ExportState.PARKED, ExportState.PARTIAL}:
        log.error(
            "an export needs an operator",
            export=export.id,
            destination=export.destination,
            state=state,
        )
    if state in {ExportState.SUCCEEDED, ExportState.PARTIAL}:
        work.queues.wake(stages.RECLAMATION)
    facts = {"destination": export.destination}
    more = reported.counts if reported else {}
    return TaskResult(export.id, state, attempt.failure, facts, more)


# -- one export ----------------------------------------------------------------------------------


def _export(
    work: Work, export: Export, began: float
) -> tuple[ExportState, TryFailed | Parked | None]:
    """Make one try of an export; return the state that it is in then, and why it failed."""
    ledger, policy = work.adapter.ledger, work.adapter.settings.dicom.scu.export
    failure, why = None, None
    try:
        _send(work, export, find_destination(work.adapter, export.destination), began)
    except Stopped:
        return exports.give_back(ledger, export), None
    except NotYetVisible:
        pause = work.adapter.settings.workers.due_work_poll_seconds
        delay = max(pause, _visibility_seconds(work.adapter, export) / _LOOKS)
        return exports.give_back(ledger, export, delay=delay), None
    except Refused as refused:
        failure = FailureReason(refused.code, str(refused))
    except PermanentError as error:
        reason = FailureReason(error.code, str(error))
        return exports.park(ledger, export, reason, policy), Parked(f"{error.code}: {error}")
    except Away as away:
        state = exports.unreachable(ledger, export, str(away), policy)
        return state, TryFailed(f"destination-unreachable: {away}")
    except CutShort as cut_short:
        why = str(cut_short)
    except OSError as error:
        why = _unreadable(work, error, began)
    state, message = exports.conclude(ledger, export, policy, why=why, failure=failure)
    if state is ExportState.SUCCEEDED:
        return state, None
    return state, (TryFailed if state is ExportState.PENDING else Parked)(f"{state}: {message}")


def find_destination(adapter: Adapter, name: str) -> Destination:
    """Return a destination by its name, as written or else without regard to case.

    Raises
    ------
    PermanentError
        If there is none.
    """
    known: dict[str, Destination] = {
        found.entity.name: found.entity
        for found in configuration.current(adapter.ledger, EntityKind.DESTINATION)
    }
    folded = {key.casefold(): entity for key, entity in known.items()}
    destination = known.get(name) or folded.get(name.casefold())
    if destination is None:
        raise PermanentError(f"there is no destination {name}", "unknown-destination")
    return destination


def _unreadable(work: Work, error: OSError, began: float) -> str:
    """Return what to say of a file that the disk fails.

    Raises
    ------
    OSError, SpoolAway
        If it fails others as well: that is no file's fault.
    """
    defeats.raise_if_nobodys(work, error, since=began)
    return f"the file cannot be read (errno {error.errno})"


def _files(work: Work, export: Export, began: float) -> list[Outgoing]:
    """Return the files to send.

    Raises
    ------
    NotYetVisible
        If one is missing, and a shared volume may still have to show it.
    PermanentError
        If so many cannot be sent that the task is bound to fail; it then sends nothing.
    """
    adapter = work.adapter
    root = _folder(adapter, export)
    young = export.task_age < _visibility_seconds(adapter, export)
    files, unfit = [], []
    for file in exports.files_to_send(adapter.ledger, export):
        try:
            files.append(
                examine(root, file.path, file.number, tries=file.tries, repeat=export.again)
            )
        except NotYetVisible:
            if young or (export.remote and not root.is_dir()):
                raise
            adapter.spool.check_whole(began)
            unfit.append(Receipt(file.number, file.tries, Outcome.REFUSED, None, "file missing"))
        except PermanentError as error:
            unfit.append(Receipt(file.number, file.tries, Outcome.REFUSED, None, str(error)))
        except OSError as error:
            words = _unreadable(work, error, began)
            unfit.append(Receipt(file.number, file.tries, Outcome.RETRY, None, words))
    if unfit:
        exports.confirm(adapter.ledger, export, unfit)
    if export.remote and files:
        exports.describe(adapter.ledger, export, [_uids(file) for file in files])
    count = exports.count_files(adapter.ledger, export)
    lost = count.unfit + sum(receipt.outcome is Outcome.REFUSED for receipt in unfit)
    if over_threshold(lost, count.files, adapter.settings.dicom.scu.export.failure_threshold):
        first = unfit[0].reason if unfit else "see its files"
        raise PermanentError(
            f"{lost} of {count.files} files cannot be sent: {first}", "unfit-files"
        )
    return files


def _visibility_seconds(adapter: Adapter, export: Export) -> float:
    """Return how long a file of a task may be missing before it counts as failed (seconds).

    A remote Results Service can offer its task again, and has to be told soon that it should.
    """
    settings = adapter.settings
    if export.remote:
        return settings.services.results_service.visibility_seconds
    return settings.workers.visibility_seconds


def _uids(file: Outgoing) -> tuple[int, str, str, str]:
    return file.number, file.sop_class_uid, file.sop_instance_uid, file.transfer_syntax_uid


def _folder(adapter: Adapter, export: Export) -> Path:
    """Return the folder that the files' paths are below."""
    if not export.remote:
        return adapter.spool.result_folder(export.job or "")
    root = adapter.settings.services.results_service.root
    if root is None:
        raise PermanentError("services > resultsService > root is not set", "no-root")
    return root


def _send(work: Work, export: Export, destination: Destination, began: float) -> None:
    """Send what is not confirmed; what is answered is in the ledger when this returns or raises."""
    ledger, files = work.adapter.ledger, _files(work, export, began)
    recorded = False

    def answered() -> None:
        nonlocal recorded
        if not recorded:
            exports.answered(ledger, export)
            recorded = True

    sending = client_of(destination, work.adapter.settings).send(files, answered=answered)
    with ReceiptBook(ledger, export) as book, closing(sending):
        for sent, receipt in enumerate(sending, start=1):
            book.add(receipt)
            if export.lease.lost.is_set():
                raise LeaseLost(f"another worker holds export {export.id}")
            if work.stopping.is_set() and sent < len(files):
                raise Stopped


# -- reports -------------------------------------------------------------------------------------


def _report(work: Work) -> TaskResult | None:
    """Deliver the report that is due first; None if none is due.

    A Results Service that does not answer holds one thread of a worker, and that one not for long.
    """
    limit = 2 * work.adapter.settings.services.results_service.request_seconds
    with work.reports.taken() as ours:
        report = remote_tasks.claim_report(work.adapter.ledger, limit) if ours else None
        return None if report is None else _deliver(work, report)


def _deliver(work: Work, report: Report) -> TaskResult:
    ledger, settings = work.adapter.ledger, work.adapter.settings
    service = settings.services.results_service
    facts = {"task": report.task}
    try:
        results_service(settings).report(report)
    except TemporaryError as error:
        work.reports.failed()
        log.warning("a report was not taken", task=report.task, problem=str(error))
        remote_tasks.not_taken(ledger, report, service)
        return TaskResult("", "unreported", TryFailed(f"not taken: {error}"), facts)
    except Exception as error:  # noqa: BLE001 - the rule is in adapter.ledger.attempts
        why = defeats.blame(work, stages.EXPORT, report.task, error)
        maximum = settings.workers.maximum_lease_expiries
        remote_tasks.not_taken(ledger, report, service, why, maximum)
        return TaskResult("", "unreported", TryFailed(f"{why.reason}: {why.message}"), facts)
    remote_tasks.taken(ledger, report)
    return TaskResult("", "reported", None, facts)
