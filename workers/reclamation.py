# SPDX-License-Identifier: Apache-2.0
"""Reclamation: deletes the spool's files that nothing needs any more, in small batches.

Discarded arrivals at once; a group's instances and results when all its jobs and exports have ended
well (or an operator discarded them) and their retention has passed.  Files first, rows after: a
deletion that a crash interrupts is done again.  A file that cannot be deleted holds up no other:
its row is counted, rests, and is tried again (`adapter.ledger.attempts`).

It also moves quarantined files that an operator retries back to incoming/.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from adapter import job_output
from adapter.errors import NotYetVisible
from adapter.ledger import attempts, hashes, housekeeping, leases, reclamation
from adapter.ledger.attempts import Defeat
from adapter.ledger.engines import AWAY
from adapter.ledger.leases import Lease
from adapter.stages import NOTIFICATION, RECLAMATION
from workers import defeats
from workers.stage import Work


def run(work: Work) -> dict[str, Any]:
    """Reclaim everything that is due."""
    counts = Counter({"discarded": 0, "groups": 0})
    _retried(work, counts)
    _discarded(work, counts)
    _groups(work, counts)
    if housekeeping.claim_housekeeping(
        work.adapter.ledger, work.adapter.settings.workers.housekeeping_seconds
    ):
        counts.update(_housekeeping(work))
    return dict(counts)


def _retried(work: Work, counts: Counter[str]) -> None:
    """Move files that an operator retries back to incoming/."""
    ledger, spool = work.adapter.ledger, work.adapter.spool
    while not work.stopping.is_set():
        lease, rows = reclamation.claim_retried(ledger, work.adapter.settings.workers.lease_seconds)
        if not rows:
            break
        for row in rows:
            count = partial(reclamation.not_moved_back, ledger, lease, row)
            with defeats.counted(work, RECLAMATION, lease, row.id, count) as attempt:
                spool.settle_retried(row.id)
                reclamation.moved_back(ledger, lease, row.id)
                attempt.outcome = "retried"
            counts[attempt.outcome] += 1
        work.queues.wake(NOTIFICATION)


def _discarded(work: Work, counts: Counter[str]) -> None:
    """Delete the files of discarded arrivals."""
    adapter = work.adapter
    ledger, workers = adapter.ledger, adapter.settings.workers
    while not work.stopping.is_set():
        adapter.spool.check_whole()
        lease, rows = reclamation.claim_discarded(
            ledger, adapter.settings.lag_seconds, workers.lease_seconds
        )
        if not rows:
            break
        try:
            with leases.kept(ledger, lease):
                deleted, failed = _delete(work, rows)
                reclamation.discarded_deleted(ledger, lease, deleted)
                for row, why in failed:
                    counts[
                        reclamation.discarded_not_deleted(
                            ledger, lease, row, why, workers.maximum_lease_expiries
                        )
                    ] += 1
        except Exception:
            with suppress(*AWAY):
                leases.give_back(ledger, lease)
            raise
        counts["discarded"] += len(deleted)


def _delete(work: Work, rows: Sequence[Any]) -> tuple[list[str], list[tuple[Any, Defeat]]]:
    """Delete arrivals' files; return the ids of those that are gone, and why others are not."""
    deleted: list[str] = []
    failed: list[tuple[Any, Defeat]] = []
    refused = work.adapter.spool.delete_arrivals(row.id for row in rows)
    for row in rows:
        error = refused.get(row.id)
        if error is None:
            deleted.append(row.id)
            continue
        failed.append((row, defeats.blame(work, RECLAMATION, row.id, error, arrival=row.id)))
    return deleted, failed


def _groups(work: Work, counts: Counter[str]) -> None:
    """Delete the files of groups that nothing needs any more."""
    adapter = work.adapter
    ledger, workers = adapter.ledger, adapter.settings.workers
    maximum = workers.maximum_lease_expiries
    while not work.stopping.is_set():
        claimed = reclamation.claim_group(
            ledger, adapter.settings.retention_seconds, workers.lease_seconds
        )
        if claimed is None:
            break
        lease, group = claimed
        count = partial(reclamation.group_defeat, ledger, lease, group, maximum=maximum)
        why = attempts.killed(group.lease_expiries, maximum)
        if why and group.reason is None:  # else it is stuck for a reason that may pass
            defeats.log_and_count(work, RECLAMATION, group.id, why)
            counts[count(why)] += 1
            continue
        with defeats.counted(work, RECLAMATION, lease, group.id, count) as attempt:
            _reclaim(work, lease, group.id)
            attempt.outcome = "groups"
        counts[attempt.outcome] += 1


def _reclaim(work: Work, lease: Lease, group: str) -> None:
    """Delete a group's files, as many as can be, and record that they are gone.

    Raises
    ------
    OSError
        If some of them cannot be deleted.
    """
    ledger, spool = work.adapter.ledger, work.adapter.spool
    for job in reclamation.jobs_of(ledger, group):
        spool.delete_job(job)
    refused: OSError | None = None
    for ids in reclamation.files_of(ledger, group):
        kept = spool.delete_arrivals(ids)
        reclamation.mark_deleted(ledger, [a for a in ids if a not in kept], lease)
        refused = next(iter(kept.values()), refused)
    if refused is not None:
        raise refused
    reclamation.finish_group(ledger, lease, group)


def _housekeeping(work: Work) -> dict[str, int]:
    """Sweep for what nobody owns; find files that lost their rows; forget old rows."""
    adapter = work.adapter
    storage = adapter.settings.storage
    now = adapter.ledger.now()
    adapter.spool.check_whole()
    stale = adapter.spool.delete_stale(now - storage.stale_seconds)
    known = housekeeping.without_row(
        adapter.ledger,
        (str(a) for a in adapter.spool.list_instances() if a.received_at < now - 600),
    )
    for batch in known:
        try:
            adapter.spool.link_incoming(batch)
        except (OSError, NotYetVisible):
            for arrival in batch:
                with _sweeping(work, arrival, arrival):
                    adapter.spool.link_incoming([arrival])
    # A run that was just beginning when its job was discarded may make its folder too late.
    for batch in housekeeping.left_behind(adapter.ledger, adapter.spool.list_jobs()):
        for job in batch:
            with _sweeping(work, job):
                adapter.spool.delete_job(job)
    before = now - storage.job_output_days * 86400
    outputs = job_output.delete_old(adapter.spool.work, before, storage.job_output_mb * 1_000_000)
    if hashes.are_keys_to_be_hashed(adapter.ledger) or hashes.was_upgraded_lately(adapter.ledger):
        hashes.hash_plain_keys(adapter.ledger, adapter.spool.hash_key())
    rows = 0
    while not work.stopping.is_set():
        forgotten = housekeeping.forget(adapter.ledger, storage.history_days * 86400)
        if not forgotten:
            break
        rows += forgotten
    return {"stale": stale, "outputs": outputs, "forgotten": rows}


@contextmanager
def _sweeping(work: Work, name: str, arrival: str | None = None) -> Iterator[None]:
    """Let the sweep go on after a file that it cannot move or delete: the next one tries again."""
    try:
        yield
    except (OSError, NotYetVisible) as error:
        defeats.blame(work, RECLAMATION, name, error, arrival=arrival)
