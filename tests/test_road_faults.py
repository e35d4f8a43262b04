# SPDX-License-Identifier: Apache-2.0
"""The road when things die: exactly one job per group and pipeline, whatever is lost in between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import generate_uid
from redis.exceptions import RedisError

from adapter.ledger.schema import arrivals, exports, groups, jobs
from adapter.road import STAGES
from adapter.verify import verify
from tests.support_road import eventually, rows
from tests.support_stack import Pacs, Stack, dcmtk, stored, write_study

pytestmark = dcmtk

#: Notes each of its runs, then copies its input.
PIPELINE = {
    "name": "Slow copy",
    "command": ["sh", "-c", 'date >> "{runs}"; sleep 1; cp {input}/* {output}'],
    "destinations": ["PACS"],
}


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[Pacs]:
    """A PACS that keeps what it is sent."""
    made = Pacs(tmp_path / "pacs")
    yield made
    made.close()


@pytest.fixture
def stack(tmp_path: Path, pacs: Pacs) -> Iterator[Stack]:
    """An adapter whose roles the test starts; one AE title, BRAIN, with one pipeline."""
    command = [part.replace("{runs}", str(tmp_path / "runs")) for part in PIPELINE["command"]]
    made = Stack(
        tmp_path / "data",
        {"slow": {**PIPELINE, "command": command}},
        storage={"retentionSeconds": 0},
    )
    made.add_destination("PACS", pacs.port)
    try:
        yield made
    finally:
        made.close()


def send(stack: Stack, *folders: Path) -> int:
    """Send folders in an association each, all at once, and return how many were stored."""
    return sum([stored(sender) for sender in [stack.storescu("BRAIN", f) for f in folders]])


def has_come_through(stack: Stack, pacs: Pacs, instances: int) -> Callable[[], bool]:
    """Return the question whether one group went all the way, once."""

    def answer() -> bool:
        found = rows(stack.adapter, exports)
        return [export.state for export in found] == ["succeeded"] and (
            len(pacs.files()) == instances
        )

    return answer


def assert_exactly_once(stack: Stack, instances: int) -> None:
    """Check that one group with every instance had one job, and that its files are reclaimed."""
    eventually(lambda: [g.state for g in rows(stack.adapter, groups)] == ["reclaimed"])
    (group,) = rows(stack.adapter, groups)
    assert group.instances == instances
    assert [job.state for job in rows(stack.adapter, jobs)] == ["succeeded"]
    assert {arrival.state for arrival in rows(stack.adapter, arrivals)} == {"registered"}
    spool = stack.adapter.spool
    for folder in (spool.incoming, spool.instances, spool.results, spool.work, spool.quarantine):
        assert [path for path in folder.rglob("*") if path.is_file()] == []
    assert verify(stack.adapter) == []


def test_a_stopped_notification_splits_nothing(stack: Stack, pacs: Pacs, tmp_path: Path) -> None:
    """500 instances over four associations, notification away beyond the timeout: one job."""
    others = "worker:" + ",".join(stage for stage in STAGES if stage != "notification")
    stack.start("redis", "scp", others, "worker:notification")
    stack.configure("BRAIN", processor_settings={"pipeline-slow": "slow"})
    study = generate_uid()
    folders = [tmp_path / "study" / str(number) for number in range(4)]
    for folder in folders:
        write_study(folder, 125, StudyInstanceUID=study)

    assert send(stack, *folders[:2]) == 250
    eventually(lambda: rows(stack.adapter, groups))
    stack.stop("worker:notification")
    assert send(stack, *folders[2:]) == 250
    before = stack.adapter.ledger.now()
    eventually(lambda: stack.adapter.ledger.now() > before + 7, 10)  # longer than the timeout
    assert [group.state for group in rows(stack.adapter, groups)] == ["open"]
    stack.start("worker:notification")

    eventually(has_come_through(stack, pacs, 500), 60)
    assert_exactly_once(stack, 500)


def test_an_emptied_redis_costs_seconds_only(stack: Stack, pacs: Pacs, tmp_path: Path) -> None:
    """FLUSHALL four times a second, through every stage: all goes through, once."""
    stack.start()
    stack.configure("BRAIN", processor_settings={"pipeline-slow": "slow"})
    write_study(tmp_path / "study", 40)
    done = threading.Event()
    flushed: list[Any] = []

    def flush() -> None:
        client = stack.redis()
        while not done.wait(0.25):
            flushed.append(client.flushall())

    thread = threading.Thread(target=flush)
    thread.start()
    try:
        assert send(stack, tmp_path / "study") == 40
        eventually(has_come_through(stack, pacs, 40), 60)
    finally:
        done.set()
        thread.join()
    assert len(flushed) > 20
    assert_exactly_once(stack, 40)


@pytest.mark.parametrize("stage", STAGES)
def test_a_lost_bell_is_rung_again_within_ten_seconds(
    stack: Stack, pacs: Pacs, tmp_path: Path, stage: str
) -> None:
    """Redis emptied while a stage is away: when it is back, it is rung within ten seconds."""
    others = "worker:" + ",".join(other for other in STAGES if other != stage)
    stack.start("redis", "scp", others)
    stack.configure("BRAIN", processor_settings={"pipeline-slow": "slow"})
    write_study(tmp_path / "study", 3)
    assert send(stack, tmp_path / "study") == 3
    eventually(lambda: reached(stack, stage), 30)
    stack.redis().flushall()

    stack.start(f"worker:{stage}")

    eventually(lambda: left(stack, stage), 10)


def reached(stack: Stack, stage: str) -> bool:
    """Tell whether there is work for a stage."""
    job = next(iter(rows(stack.adapter, jobs)), None)
    export = next(iter(rows(stack.adapter, exports)), None)
    group = next(iter(rows(stack.adapter, groups)), None)
    return {
        "notification": lambda: len(list(stack.adapter.spool.list_incoming())) == 3,
        "grouping": lambda: group is not None and group.due_at < stack.adapter.ledger.now(),
        "submission": lambda: job is not None and job.state == "queued",
        "pipeline": lambda: job is not None and job.state == "started",
        "export": lambda: export is not None and export.state == "pending",
        "reclamation": lambda: export is not None and export.state == "succeeded",
    }[stage]()


def left(stack: Stack, stage: str) -> bool:
    """Tell whether a stage has done its work."""
    job = next(iter(rows(stack.adapter, jobs)), None)
    export = next(iter(rows(stack.adapter, exports)), None)
    group = next(iter(rows(stack.adapter, groups)), None)
    return {
        "notification": lambda: not list(stack.adapter.spool.list_incoming()),
        "grouping": lambda: group.state != "open",
        "submission": lambda: job.state in {"started", "succeeded"},
        "pipeline": lambda: job.state == "succeeded",
        "export": lambda: export.state == "succeeded",
        "reclamation": lambda: group.state == "reclaimed",
    }[stage]()


def test_storing_needs_no_redis(stack: Stack, pacs: Pacs, tmp_path: Path) -> None:
    """Redis killed in mid-study and away for a while: nothing is refused, nothing is lost."""
    stack.start()
    stack.configure("BRAIN", processor_settings={"pipeline-slow": "slow"})
    study = generate_uid()
    folders = [tmp_path / "study" / str(number) for number in range(2)]
    for folder in folders:
        write_study(folder, 30, StudyInstanceUID=study)

    assert send(stack, folders[0]) == 30
    stack.kill("redis")
    assert send(stack, folders[1]) == 30
    with pytest.raises(RedisError):
        stack.redis().ping()
    stack.start("redis")

    eventually(has_come_through(stack, pacs, 60), 60)
    assert_exactly_once(stack, 60)


def test_killed_roles_lose_and_double_nothing(stack: Stack, pacs: Pacs, tmp_path: Path) -> None:
    """SCP, Redis and worker killed at each step of the road: one group, one job, one result."""
    stack.start()
    stack.configure("BRAIN", processor_settings={"pipeline-slow": "slow"})
    write_study(tmp_path / "study", 60)

    def restart(*roles: str) -> None:
        for role in roles:
            stack.kill(role)
        stack.start(*roles)

    assert send(stack, tmp_path / "study") == 60
    restart("worker", "scp")
    for state in ("queued", "started", "succeeded"):
        eventually(lambda state=state: any(j.state >= state for j in rows(stack.adapter, jobs)), 40)
        restart("worker", "redis")
    runs = tmp_path / "runs"
    eventually(has_come_through(stack, pacs, 60), 60)

    assert 1 <= len(runs.read_text().splitlines()) <= 4
    assert_exactly_once(stack, 60)
