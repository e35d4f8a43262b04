# SPDX-License-Identifier: Apache-2.0
"""Grouping: closes groups whose quiet time has passed, and creates their jobs with them.

A group closes when (a) its quiet time has passed and (b) nothing for its AE title that was received
before that moment still waits in incoming/.  Its maximum wait closes it regardless.

On a volume that shows new files late, (b) can only be told once everything that was there then is
seen: as many seconds after the quiet time, and after the group was opened, since a rebuild gives
files new names long after they were received.
"""

from __future__ import annotations

from typing import Any

from adapter.core import Adapter
from adapter.errors import ConfigurationError
from adapter.ledger import groups
from adapter.ledger.configuration import ae_title_version, versions_of_same_title
from adapter.ledger.groups import MAXIMUM_WAIT, QUIET
from adapter.ledger.leases import Lease
from adapter.log import get_logger
from adapter.processors.registry import create_processor
from adapter.stages import SUBMISSION
from workers.stage import TaskResult, Work

log = get_logger(__name__)

#: Seconds between looks for a job processor that is not installed any more.
PLUGIN_PAUSE = 30.0


def take(work: Work, first: str | None = None) -> TaskResult | None:
    """Look at a group that is due, `first` if it is, and close it; None if no group is due."""
    adapter = work.adapter
    claimed = groups.claim_due(adapter.ledger, adapter.settings.workers.lease_seconds, first)
    if claimed is None:
        return None
    lease, group = claimed
    created = close_or_hold(adapter, lease, group)
    if not created:
        return TaskResult(group.id, "waits")
    work.queues.wake(SUBMISSION, *created)
    return TaskResult(group.id, "closed", facts={"jobs": created}, more={"jobs": len(created)})


def close_or_hold(adapter: Adapter, lease: Lease, group: Any) -> list[str]:
    """Close a leased group if nothing holds it open, and return the jobs that it became."""
    ledger = adapter.ledger
    with ledger.read() as connection:
        ae_title = ae_title_version(connection, group.version)
        same_title = versions_of_same_title(connection, group.version)
    assert ae_title is not None, "groups.version refers to an AE title's version"
    now, lag = ledger.now(), adapter.settings.lag_seconds
    reason = MAXIMUM_WAIT if group.maximum_at <= now else QUIET
    unseen = max(group.due_at, group.opened_at) + lag - now
    if reason == QUIET and 0 < unseen <= lag:
        groups.hold_open(ledger, lease, group.id, unseen)
        return []
    if reason == QUIET and any(
        arrival.version in same_title and arrival.received_at <= group.due_at
        for arrival in adapter.spool.list_incoming()
    ):
        groups.hold_open(ledger, lease, group.id)
        return []
    try:
        processor = create_processor(ae_title)
    except ConfigurationError as error:  # its plug-in was taken away: the group waits for it
        log.error("a group cannot be closed", group=group.id, error=str(error))
        groups.hold_open(ledger, lease, group.id, PLUGIN_PAUSE)
        return []
    requests = [
        (request.pipeline, request.pipeline_id, request.priority, request.retry_delay)
        for request in processor.jobs()
    ]
    return groups.close(ledger, lease, group.id, requests, reason=reason)
