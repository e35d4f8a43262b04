# SPDX-License-Identifier: Apache-2.0
"""Reclamation: deletes the spool's files that nothing needs any more, in small batches.

Unwanted arrivals at once; a group's instances and results when all its jobs and exports have ended
well (or an operator discarded them) and their retention has passed.  Files first, rows after: what
a crash interrupts is deleted again.
"""

from __future__ import annotations

from typing import Any

from adapter.ledger import reclamation
from adapter.log import get_logger
from workers.stage import Work

log = get_logger(__name__)


def run(work: Work) -> dict[str, Any]:
    """Reclaim everything that is due."""
    counts = {"unwanted": _unwanted(work), "groups": _groups(work)}
    if reclamation.claim_housekeeping(
        work.adapter.ledger, work.adapter.settings.workers.housekeeping_seconds
    ):
        counts |= _housekeeping(work)
    return counts


def _unwanted(work: Work) -> int:
    adapter, count = work.adapter, 0
    while not work.stopping.is_set():
        ids = reclamation.unwanted(adapter.ledger, adapter.settings.lag_seconds)
        if not ids:
            break
        adapter.spool.delete_arrivals(ids)
        reclamation.mark_deleted(adapter.ledger, ids)
        count += len(ids)
    return count


def _groups(work: Work) -> int:
    adapter, count = work.adapter, 0
    while not work.stopping.is_set():
        claimed = reclamation.claim_group(
            adapter.ledger,
            adapter.settings.retention_seconds,
            adapter.settings.workers.lease_seconds,
        )
        if claimed is None:
            break
        lease, group = claimed
        for job in reclamation.jobs_of(adapter.ledger, group.id):
            adapter.spool.delete_job(job)
        while ids := reclamation.files_of(adapter.ledger, group.id):
            adapter.spool.delete_arrivals(ids)
            reclamation.mark_deleted(adapter.ledger, ids, lease)
        reclamation.finish_group(adapter.ledger, lease, group.id)
        count += 1
    return count


def _housekeeping(work: Work) -> dict[str, int]:
    """Sweep for what nobody owns; find files that lost their rows; forget old rows."""
    adapter = work.adapter
    storage = adapter.settings.storage
    now = adapter.ledger.now()
    stale = adapter.spool.delete_stale(now - storage.stale_seconds)
    known = reclamation.without_row(
        adapter.ledger,
        (str(a) for a in adapter.spool.list_instances() if a.received_at < now - 600),
    )
    for batch in known:
        adapter.spool.link_incoming(batch)
    # A run that was just beginning when its job was discarded may make its folder too late.
    for batch in reclamation.left_behind(adapter.ledger, adapter.spool.list_jobs()):
        for job in batch:
            adapter.spool.delete_job(job)
    rows = 0
    while not work.stopping.is_set():
        forgotten = reclamation.forget(adapter.ledger, storage.history_days * 86400)
        if not forgotten:
            break
        rows += forgotten
    return {"stale": stale, "forgotten": rows}
