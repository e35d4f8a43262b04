# SPDX-License-Identifier: Apache-2.0
"""Two hosts of one adapter on one machine: shared spool, Redis and PostgreSQL, all else apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapter import heartbeat
from adapter.ledger.schema import arrivals, exports, groups, jobs, task_files, tasks
from adapter.stages import STAGES
from adapter.verify import verify
from tests.support_postgresql import PostgreSQL
from tests.support_stack import Pacs, Stack, merged
from tests.support_stages import rows
from tests.support_waiting import eventually

#: Every role of a host, Redis apart: one receiver, and a worker for each stage.
ROLES = ("scp", *(f"worker:{stage}" for stage in STAGES))

COPY = {
    "name": "Copy",
    "command": ["sh", "-c", "sleep 0.2; cp {input}/* {output}"],
    "destinations": ["PACS"],
}


class Cluster:
    """Two hosts, each with every role, and a PACS.

    Parameters
    ----------
    folder : Path
        Where all of it is.
    url : str
        The ledger's.
    """

    def __init__(self, folder: Path, url: str | None, **settings: Any) -> None:
        self.pacs = Pacs(folder / "pacs")
        sections = {
            "database": {"url": url},
            "dicom": {"scp": {"processes": 2}},
            "storage": {"retentionSeconds": 0, "temporary": str(folder / "spool")},
            "workers": {"dueWorkPollSeconds": 1, "leaseSeconds": 4, "stopSeconds": 6},
            "services": {"platform": {"retryDelaySeconds": 1}},
        }
        sections = merged(sections, settings)
        self.one = Stack(folder / "one", {"copy": COPY}, **sections)
        self.one.add_destination("PACS", self.pacs.port)
        self.one.start("redis")
        self.two = self.one.join(folder / "two", **sections)
        self.hosts = {"one": self.one, "two": self.two}
        self.acknowledged: set[str] = set()

    @property
    def adapter(self) -> Any:
        """Spool and ledger, as the test sees them."""
        return self.one.adapter

    def start(self, *roles: str) -> None:
        """Start roles (all by default) on both hosts."""
        for stack in self.hosts.values():
            stack.launch(*(roles or ROLES))
        for stack in self.hosts.values():
            stack.await_ready(*(roles or ROLES))

    def configure(self, title: str) -> None:
        """Add an AE title, and wait until every receiver knows it."""
        version = self.one.configure(title, processor_settings={"pipeline-copy": "copy"})
        eventually(lambda: set(self._known()) == {version}, 20)

    def _known(self) -> list[int]:
        beats = heartbeat.read_all(self.adapter.spool)
        return [beat["configuration_version"] for beat in beats if beat["role"] == "scp"]

    def close(self) -> None:
        """End everything."""
        self.two.close()
        self.one.close()
        self.pacs.close()

    # -- what must be true in the end ---------------------------------------------------------

    def has_come_through(self) -> bool:
        """Return whether nothing waits anywhere and every group is reclaimed."""
        states = {group.state for group in rows(self.adapter, groups)}
        return states == {"reclaimed"} and not any(self.adapter.spool.list_incoming())

    def await_end(self, seconds: float) -> None:
        """Wait until everything has come through."""
        try:
            eventually(self.has_come_through, seconds)
        except AssertionError:
            found = {
                table.name: Counter(row.state for row in rows(self.adapter, table))
                for table in (arrivals, groups, jobs, exports)
            }
            raise AssertionError(f"still under way: {found}") from None

    def assert_each_once(self, acknowledged: set[str]) -> None:
        """Check that each instance is in one group, its job and its result, once.

        Parameters
        ----------
        acknowledged : set of str
            SOP Instance UIDs, in addition to those of earlier tests.
        """
        self.acknowledged |= acknowledged
        registered = rows(self.adapter, arrivals, arrivals.c.state == "registered")
        others = rows(self.adapter, arrivals, arrivals.c.state != "registered")
        assert Counter(row.sop_instance_uid for row in registered) == Counter(self.acknowledged)
        assert {(row.state, row.reason) for row in others} <= {("discarded", "duplicate")}
        of_group: dict[str, Counter[str]] = {}
        for row in registered:
            of_group.setdefault(row.group_id, Counter())[row.sop_instance_uid] += 1
        found = rows(self.adapter, jobs)
        assert sorted(job.group_id for job in found) == sorted(of_group)
        assert {(job.state, job.tries) for job in found} == {("succeeded", 0)}
        task_of = {task.id: task.job_id for task in rows(self.adapter, tasks)}
        results: dict[str, Counter[str]] = {}
        for file in rows(self.adapter, task_files):
            results.setdefault(task_of[file.task_id], Counter())[file.sop_instance_uid] += 1
        assert results == {job.id: of_group[job.group_id] for job in found}
        assert {export.state for export in rows(self.adapter, exports)} == {"succeeded"}
        assert len(self.pacs.files()) == len(self.acknowledged)
        spool = self.adapter.spool
        for folder in (spool.incoming, spool.instances, spool.results, spool.work):
            assert [path for path in folder.rglob("*") if path.is_file()] == []
        assert verify(self.adapter) == []


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, postgresql: PostgreSQL) -> Iterator[Cluster]:
    """Two hosts with all their roles, on PostgreSQL."""
    made = Cluster(tmp_path_factory.mktemp("cluster"), postgresql.create_database())
    try:
        made.start()
        made.configure("BRAIN")
        yield made
    finally:
        made.close()
