# SPDX-License-Identifier: Apache-2.0
"""Grouping: closes groups whose quiet time has passed, and creates their jobs with them.

A group closes when (a) its quiet time has passed and (b) nothing for its AE title that was received
before that moment still waits in incoming/.  Its maximum wait closes it regardless.  For (b) every
receiver that is alive has to have declared, in its heartbeat, that what it received until then is
visible (`adapter.scp.publishing`).

On a volume that shows new files late, (b) is known only when every file that was there at that
moment is seen: that many seconds after the quiet time, and after the group was opened, since a
rebuild gives files new names long after they were received.

A group whose job processor fails is parked at once; one whose job processor is not installed here
rests first (`adapter.ledger.attempts`).
"""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import Any

from adapter import heartbeat
from adapter.core import Adapter
from adapter.ledger import arrivals, attempts, groups
from adapter.ledger.configuration import ae_title_version, versions_of_same_title
from adapter.ledger.groups import MAXIMUM_WAIT, QUIET, Closing
from adapter.ledger.leases import Lease
from adapter.log import get_logger
from adapter.models import ArrivalState, GroupState
from adapter.processors.registry import create_processor
from adapter.stages import GROUPING, SUBMISSION
from workers import defeats
from workers.stage import Parked, TaskResult, Work

log = get_logger(__name__)

_OUTCOMES = {
    GroupState.OPEN: "waits",
    GroupState.CLOSED: "closed",
    GroupState.PARKED: "parked",
}

#: Seconds until a receiver's next heartbeat is looked at.
_WORD_SECONDS = heartbeat.PERIOD / 2

#: Arrivals that one look into the ledger asks for.
_LOOK = 500


def take(work: Work, first: str | None = None) -> TaskResult | None:
    """Look at a group that is due, `first` if it is, and close it; None if no group is due."""
    adapter = work.adapter
    ledger, workers = adapter.ledger, adapter.settings.workers
    claimed = groups.claim_due(ledger, workers.lease_seconds, first)
    if claimed is None:
        return None
    lease, group = claimed
    if why := attempts.killed(group.lease_expiries, workers.maximum_lease_expiries):
        defeats.log_and_count(work, GROUPING, group.id, why)
        return TaskResult(group.id, groups.park(ledger, lease, group, why), Parked(why.text))
    closing = Closing(GroupState.OPEN)
    count = partial(groups.defeat, ledger, lease, group, maximum=workers.maximum_lease_expiries)
    with defeats.counted(work, GROUPING, lease, group.id, count) as attempt:
        closing = close_or_hold(adapter, lease, group)
        attempt.outcome = _OUTCOMES[closing.state]
    more = {groups.PATIENT_CONFLICT: 1} if closing.patient_conflict else {}
    if closing.patient_conflict:
        log.warning("a study has instances of several patients", group=group.id)
    if closing.state == GroupState.PARKED:
        return TaskResult(group.id, attempt.outcome, Parked(groups.PATIENT_CONFLICT), more=more)
    if closing.state != GroupState.CLOSED:
        return TaskResult(group.id, attempt.outcome, attempt.failure)
    work.queues.wake(SUBMISSION, *closing.jobs)
    created = list(closing.jobs)
    more["jobs"] = len(created)
    return TaskResult(group.id, "closed", facts={"jobs": created}, more=more)


def close_or_hold(adapter: Adapter, lease: Lease, group: Any) -> Closing:
    """Close a leased group if nothing holds it open or up, and return what came of it.

    Raises
    ------
    ConfigurationError, ProcessorError
        If the AE title's job processor cannot be used.
    LeaseLost
        If another worker holds the group.
    """
    ledger = adapter.ledger
    with ledger.read() as connection:
        ae_title = ae_title_version(connection, group.version)
        same_title = versions_of_same_title(connection, group.version)
    assert ae_title is not None, "groups.version refers to an AE title's version"
    now, lag = ledger.now(), adapter.settings.lag_seconds
    reason = MAXIMUM_WAIT if group.maximum_at <= now else QUIET
    if reason == QUIET and group.state == GroupState.OPEN:
        unseen = max(group.due_at, group.opened_at) + lag - now
        if 0 < unseen <= lag:
            groups.hold_open(ledger, lease, group.id, unseen)
            return Closing(GroupState.OPEN)
        # In this order: what is visible by a receiver's word is listed after it.
        if not heartbeat.published(adapter.spool, group.due_at):
            groups.hold_open(ledger, lease, group.id, _WORD_SECONDS)
            return Closing(GroupState.OPEN)
        if _older_wait(adapter, same_title, group.due_at):
            groups.hold_open(ledger, lease, group.id)
            return Closing(GroupState.OPEN)
    requests = [
        (request.pipeline, request.pipeline_id, request.priority, request.retry_delay)
        for request in create_processor(ae_title).jobs()
    ]
    hold = ae_title.on_patient_conflict == "hold"
    return groups.close(ledger, lease, group.id, requests, reason=reason, hold_conflict=hold)


def _older_wait(adapter: Adapter, versions: set[int], moment: float) -> bool:
    """Tell whether an arrival of an AE title, received up to a moment, is not registered yet.

    A file whose row is settled may still be in incoming/: it was not moved yet, or cannot be.
    """
    older = (
        str(arrival)
        for arrival in adapter.spool.list_incoming()
        if arrival.version in versions and arrival.received_at <= moment
    )
    while look := list(islice(older, _LOOK)):
        known = arrivals.states(adapter.ledger, look)
        if any(known.get(a, ArrivalState.RECEIVED) == ArrivalState.RECEIVED for a in look):
            return True
    return False
