# SPDX-License-Identifier: Apache-2.0
"""What a worker could not help counts against no row: a ledger that is away, a suspended host."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from adapter.core import Adapter
from adapter.errors import LeaseLost
from adapter.ledger import Ledger, arrivals, leases, schema
from adapter.ledger.leases import stood_still
from adapter.models import ArrivalId
from adapter.stages import PIPELINE
from tests.support_ledger import add_ae_title, add_arrival, add_group, add_job, change_rows
from tests.support_stages import make_work, rows
from workers import defeats

pytestmark = pytest.mark.every_ledger


@pytest.fixture
def job(adapter: Adapter) -> str:
    return add_job(adapter, add_group(adapter, add_ae_title(adapter), state="closed"))


def claim(adapter: Adapter, table: Any = schema.jobs) -> leases.Lease:
    with adapter.ledger.write() as connection:
        lease, found = leases.claim(
            connection, table, table.c.id.is_not(None), order=[table.c.id], limit=9, seconds=30
        )
    assert found
    return lease


def let_expire(adapter: Adapter, table: Any = schema.jobs) -> None:
    change_rows(adapter, table, lease_until=1.0)


def counted(adapter: Adapter) -> tuple[int, str | None]:
    (row,) = rows(adapter, schema.jobs)
    return row.lease_expiries, row.lease_token


def test_a_lease_that_was_lost_without_fault_is_taken_back(adapter: Adapter, job: str) -> None:
    """The row's next holder keeps it; one that nobody has claimed yet is free, uncounted."""
    lost = claim(adapter)
    let_expire(adapter)
    holder = claim(adapter)
    assert counted(adapter) == (1, holder.token)

    leases.excuse(adapter.ledger, lost, job)
    assert counted(adapter) == (0, holder.token)
    leases.excuse(adapter.ledger, lost, job)
    assert counted(adapter) == (0, holder.token)

    let_expire(adapter)
    leases.excuse(adapter.ledger, holder, job)
    assert counted(adapter) == (0, None)


def test_a_worker_whose_ledger_was_away_takes_its_count_back(
    adapter: Adapter, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row cannot be given back, another worker claims it: once the ledger answers, no count."""
    work = make_work(adapter)
    lease = claim(adapter)

    def away(_ledger: Ledger) -> None:
        raise OperationalError("", None, Exception())

    def fail() -> None:
        with defeats.counted(work, PIPELINE, lease, job, lambda _why: "failed"):
            adapter.ledger.write()

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "write", away)
        with pytest.raises(OperationalError):
            fail()
        assert len(work.owed) == 1
    let_expire(adapter)
    holder = claim(adapter)

    work.settle_owed()

    assert counted(adapter) == (0, holder.token)
    assert work.owed == []


def test_a_lease_that_a_living_worker_just_lost_counts(adapter: Adapter, job: str) -> None:
    """Without an excuse it counts, as the death of a worker does; with one it does not."""
    for excused in (False, True):
        change_rows(adapter, schema.jobs, lease_token=None, lease_until=None, lease_expiries=0)
        lease = claim(adapter)
        with defeats.counted(make_work(adapter), PIPELINE, lease, job, lambda _why: "failed"):
            let_expire(adapter)
            holder = claim(adapter)
            if excused:
                lease.excused.set()
            raise LeaseLost("lost")
        assert counted(adapter) == (int(not excused), holder.token)


@pytest.mark.parametrize(
    ("passed", "used", "still"), [(31.0, 0.1, True), (31.0, 20.0, False), (10.0, 0.0, False)]
)
def test_a_suspended_process_uses_no_processor(passed: float, used: float, *, still: bool) -> None:
    """A row that keeps its worker busy for longer than a lease is no excuse."""
    assert stood_still((5.0, 1.0), (5.0 + passed, 1.0 + used), 30.0) is still


def test_the_attempts_of_arrivals_are_taken_back(adapter: Adapter) -> None:
    """An outage of the ledger in mid-batch brings no good file nearer to quarantine."""
    version = add_ae_title(adapter)
    ids = [add_arrival(adapter, version, n, state="received", study=None) for n in (1, 2, 3)]
    waiting = [ArrivalId.parse(one) for one in ids]
    lease, found = arrivals.lease_batch(adapter.ledger, waiting, limit=9, seconds=30)
    assert lease is not None
    assert len(found) == 3
    change_rows(adapter, schema.arrivals, schema.arrivals.c.id == ids[0], lease_until=1.0)
    holder, _ = arrivals.lease_batch(adapter.ledger, waiting[:1], limit=9, seconds=30)
    assert holder is not None

    arrivals.excuse(adapter.ledger, lease, ids)

    found = sorted(rows(adapter, schema.arrivals), key=lambda row: row.id)
    assert [row.attempts for row in found] == [1, 0, 0]
    assert [row.lease_token for row in found] == [holder.token, None, None]
