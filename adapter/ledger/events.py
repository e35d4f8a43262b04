# SPDX-License-Identifier: Apache-2.0
"""Events, for a study's timeline.  Each is written in the transaction that it describes."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, insert

from adapter.ledger.schema import events, now


def record(
    connection: Connection,
    kind: str,
    *,
    association: str | None = None,
    group: str | None = None,
    job: str | None = None,
    export: str | None = None,
    at: float | None = None,
    **detail: Any,
) -> None:
    """Record one event; `detail` contains UIDs, AE titles, counts, sizes and states only."""
    connection.execute(
        insert(events).values(
            at=now() if at is None else at,
            kind=kind,
            association=association,
            group_id=group,
            job_id=job,
            export_id=export,
            detail=detail,
        )
    )
