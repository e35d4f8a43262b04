# SPDX-License-Identifier: Apache-2.0
"""Workers that get SIGTERM, or die, during their work: the other worker takes the work over."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapter.ledger import configuration
from adapter.ledger.schema import exports, jobs
from adapter.models import DicomDestination, EntityKind
from tests.support_exports import add_task
from tests.support_jobs import add_group, gone
from tests.support_peers import ScriptedPacs
from tests.support_postgresql import PostgreSQL
from tests.support_stack import Stack
from tests.support_stages import rows
from tests.support_waiting import eventually
from workers.clients.embedded_platform import metadata_path

pytestmark = pytest.mark.timeout(240)

#: The first run records its process and never ends; a second run ends soon.
COMMAND = "if mkdir {mark}; then echo $$ > {mark}/pid; sleep 1000; fi; cp {input}/* {output}"
#: Associations of a worker in all; a destination gets half of them, over all workers.
ASSOCIATIONS = 4


@pytest.fixture
def hosts(tmp_path: Path, postgresql: PostgreSQL) -> Iterator[tuple[Stack, Stack]]:
    """Two hosts of one adapter on PostgreSQL, and its Redis."""
    command = COMMAND.replace("{mark}", str(tmp_path / "mark"))
    sections: dict[str, Any] = {
        "database": {"url": postgresql.create_database()},
        "dicom": {"scu": {"maximumNumberOfAssociations": ASSOCIATIONS}},
        "storage": {"temporary": str(tmp_path / "spool")},
        "workers": {"stopSeconds": 2, "leaseSeconds": 5},
    }
    run = {"command": ["sh", "-c", command], "isolation": "none"}
    long = {"name": "Long", "export": False, **run}
    one = Stack(tmp_path / "one", {"one": long}, **sections)
    one.start("redis")
    two = one.join(tmp_path / "two", **sections)
    try:
        yield one, two
    finally:
        two.close()
        one.close()


def start_run(one: Stack, tmp_path: Path) -> int:
    """Let the first host begin a long run, and return the process id of its command."""
    (job,) = add_group(one.adapter, state="started")
    path = metadata_path(one.adapter.spool, job)
    path.parent.mkdir()
    path.write_text("{}")
    one.start("worker:pipeline")
    pid = tmp_path / "mark" / "pid"
    return int(eventually(lambda: pid.exists() and pid.read_text().strip(), 30))


def test_a_long_run_is_given_back_on_term(hosts: tuple[Stack, Stack], tmp_path: Path) -> None:
    """SIGTERM: after half of stopSeconds the run's processes are gone; the other worker runs it."""
    one, two = hosts
    child = start_run(one, tmp_path)
    two.start("worker:pipeline")
    assert [job.state for job in rows(two.adapter, jobs)] == ["started"]

    assert one.stop("worker:pipeline") == [0]

    assert gone(child)
    eventually(lambda: [job.state for job in rows(two.adapter, jobs)] == ["succeeded"], 30)
    (job,) = rows(two.adapter, jobs)
    assert (job.tries, job.lease_expiries) == (0, 0)


def test_a_run_whose_worker_is_killed_is_taken_over(
    hosts: tuple[Stack, Stack], tmp_path: Path
) -> None:
    """SIGKILL: the run's processes die with their worker; its lease runs out, and another runs."""
    one, two = hosts
    child = start_run(one, tmp_path)
    two.start("worker:pipeline")

    one.kill("worker:pipeline")

    eventually(lambda: gone(child), 10)
    eventually(lambda: [job.state for job in rows(two.adapter, jobs)] == ["succeeded"], 40)
    assert [job.tries for job in rows(two.adapter, jobs)] == [0]


def test_a_worker_stops_though_redis_is_away(hosts: tuple[Stack, Stack]) -> None:
    """TERM: a worker ends by itself, and well, also when its broker has gone before."""
    one, _ = hosts
    one.start("worker:export")
    one.kill("redis")
    eventually(lambda: "Connection to broker lost" in one.log("worker:export"), 30)
    time.sleep(2)  # until Celery waits for the broker, which it does not report

    assert one.stop("worker:export") == [0]


class Counting(ScriptedPacs):
    """A destination that is slow, and counts how many send to it at a time."""

    def __init__(self) -> None:
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()
        super().__init__(self._slowly, maximum_associations=50)

    def _slowly(self, _uid: str) -> int:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(0.15)  # what a slow destination takes for an instance
        with self._lock:
            self._now -= 1
        return 0x0000


def test_a_destination_gets_its_share_of_all_workers_together(hosts: tuple[Stack, Stack]) -> None:
    """Two workers of four associations each send two at a time to one destination, not four.

    The places of one that is killed are free again when its leases have run out.
    """
    one, two = hosts
    with Counting() as pacs:
        entity = DicomDestination(name="PACS", ae_title="PACS", host_ip="127.0.0.1", port=pacs.port)
        configuration.put(one.adapter.ledger, EntityKind.DESTINATION, entity, replace=False)
        one.launch("worker:export")
        two.launch("worker:export")
        one.await_ready("worker:export")
        two.await_ready("worker:export")
        sent = [uid for _ in range(8) for uid in add_task(one.adapter, 10)]
        eventually(lambda: len(pacs.sent) > 10, 30)
        one.kill("worker:export")

        eventually(lambda: {e.state for e in rows(two.adapter, exports)} == {"succeeded"}, 60)

    assert pacs.most == ASSOCIATIONS // 2
    assert set(pacs.sent) == set(sent)
    # Sent again is at most what was on its way to be confirmed when the worker died.
    assert sum(pacs.sent.values()) <= len(sent) + 2 * 16
