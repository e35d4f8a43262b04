# SPDX-License-Identifier: Apache-2.0
"""How the databases answer what is asked for every instance: by the index meant for it."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, Select, insert

from adapter.core import Adapter
from adapter.ledger import arrivals as verbs
from adapter.ledger import schema
from adapter.models import ArrivalState

pytestmark = pytest.mark.every_ledger

#: Enough rows for a scan to cost what a planner avoids.
ROWS = 20_000


def plan(connection: Connection, statement: Select[Any], **values: str) -> str:
    """Return the steps that the database takes to answer a statement, in its own words."""
    compiled = statement.compile(connection.engine)
    named = compiled.construct_params(values)
    parameters = tuple(named[name] for name in compiled.positiontup or ()) or named
    explain = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
    rows = connection.exec_driver_sql(f"{explain} {compiled}", parameters)
    return "\n".join(str(row[-1]) for row in rows)


def fill(adapter: Adapter) -> None:
    """Register many instances of one AE title, as a hospital does."""
    row = {
        "state": ArrivalState.REGISTERED,
        "version": 1,
        "association": "0123456789ab",
        "received_at": 1.0,
        "called_ae_title": "BRAIN",
    }
    values = [row | {"id": f"{n:06}", "sop_instance_uid": f"1.2.{n}"} for n in range(ROWS)]
    with adapter.ledger.write() as connection:
        connection.execute(insert(schema.arrivals), values)


@pytest.mark.parametrize("statistics", [False, True], ids=["no-statistics", "statistics"])
def test_the_same_instance_is_found_by_its_own_index(adapter: Adapter, statistics: bool) -> None:
    """Among many registered rows, the same instance is found by AE title and UID, not by a scan."""
    fill(adapter)
    if statistics:
        with adapter.ledger.write() as connection:
            connection.exec_driver_sql("ANALYZE")
        adapter.ledger.close()  # SQLite reads statistics when it opens the database

    with adapter.ledger.read() as connection:
        steps = plan(connection, verbs._SAME, called="BRAIN", uid="1.2.7")

    by_index = {
        "sqlite": "SEARCH arrivals USING INDEX ix_arrivals_same "
        "(called_ae_title=? AND sop_instance_uid=?)",
        "postgresql": "Index Scan using ix_arrivals_same on arrivals",
    }
    assert steps.startswith(by_index[connection.dialect.name]), steps
