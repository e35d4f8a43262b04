# SPDX-License-Identifier: Apache-2.0
"""Acknowledged files and their rows.

A file in incoming/ needs no row: notification lists that folder.  A new file may still be invisible
on a volume that shows new files late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from adapter.core import Adapter
from adapter.ledger.arrivals import RETRIED
from adapter.ledger.housekeeping import without_row
from adapter.ledger.schema import arrivals, groups, now
from adapter.models import ArrivalState, GroupState
from adapter.verify.difference import Difference
from adapter.verify.listing import Listing
from adapter.verify.steps import GOING

_DEFECT = "report this as a defect"
_OWNER = "see that the adapter's user may rename the file; it is then moved by itself"
_RESTORE = "restore the file from a backup; it was acknowledged, so ask its sender for it otherwise"


def compare(adapter: Adapter, listing: Listing) -> Iterator[Difference]:
    """Yield the differences between arrivals' files and their rows."""
    unseen = now() - adapter.settings.lag_seconds
    with adapter.ledger.read() as connection:
        rows = {
            row.id: row
            for row in connection.execute(
                select(
                    arrivals.c.id,
                    arrivals.c.state,
                    arrivals.c.reason,
                    arrivals.c.size,
                    arrivals.c.group_id,
                    groups.c.state.label("group_state"),
                    (
                        func.coalesce(arrivals.c.registered_at, arrivals.c.received_at) > unseen
                    ).label("young"),
                )
                .select_from(arrivals.outerjoin(groups, arrivals.c.group_id == groups.c.id))
                .where(arrivals.c.deleted_at.is_(None))
            )
        }
    for row in rows.values():
        yield from _row(adapter, listing, row)
    yield from _files_without_rows(adapter, listing, rows)


def _row(adapter: Adapter, listing: Listing, row: Any) -> Iterator[Difference]:
    """Yield the differences of a row whose file should exist."""
    if row.state == ArrivalState.REGISTERED and row.group_id is None:
        problem = "it is registered but belongs to no group: no job will ever process it"
        yield Difference("arrival", row.id, problem, _DEFECT)
    if row.group_state == GroupState.RECLAIMED:
        yield Difference("arrival", row.id, "its group is reclaimed without it", _DEFECT)
    place: Callable[[str], Path]
    match row.state:
        case ArrivalState.RECEIVED:
            where, found, place = "incoming", listing.incoming, adapter.spool.incoming_path
        case ArrivalState.REGISTERED if row.group_state not in GOING:
            where, found, place = "instances", listing.instances, adapter.spool.instance_path
        case ArrivalState.QUARANTINED:
            where, found, place = "quarantine", listing.quarantine, adapter.spool.quarantine_path
        case _:
            return
    if row.id not in found and not place(row.id).exists():
        if row.young or (row.reason == RETRIED and row.id in listing.quarantine):
            return  # on its way there
        if row.state == ArrivalState.QUARANTINED and row.id in listing.incoming:
            problem = "it is quarantined, but its file cannot be moved from incoming/"
            yield Difference("arrival", row.id, problem, _OWNER)
            return
        yield Difference("arrival", row.id, f"its file is not in {where}/", _RESTORE)
    elif row.size is not None and found.get(row.id, row.size) != row.size:
        problem = f"its file has {found[row.id]} bytes instead of {row.size}"
        yield Difference("arrival", row.id, problem, _RESTORE)


def _files_without_rows(
    adapter: Adapter, listing: Listing, rows: dict[str, Any]
) -> Iterator[Difference]:
    """Yield files that have no row, or only a row that says that the file is deleted."""
    for folder, found in (("instances", listing.instances), ("quarantine", listing.quarantine)):
        lost = [arrival for arrival in found if arrival not in rows]
        unknown = {arrival for batch in without_row(adapter.ledger, lost) for arrival in batch}
        for arrival in lost:
            if arrival in listing.incoming:
                continue  # it is being registered
            if arrival not in unknown:
                problem = f"its file is in {folder}/ but the ledger says it was deleted"
                yield Difference("arrival", arrival, problem, "delete the file by hand")
            elif folder == "instances":
                yield Difference(
                    "arrival",
                    arrival,
                    "its file is in instances/ but the ledger does not know it",
                    "wait: reclamation's sweep (`housekeepingSeconds`) has it registered again",
                )
            else:
                yield Difference(
                    "arrival",
                    arrival,
                    "its file is in quarantine/ but the ledger does not know it",
                    "move the file to another place by hand; send it again if it is wanted",
                )
