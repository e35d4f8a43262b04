# SPDX-License-Identifier: Apache-2.0
"""All stages when processes die: exactly one job for each group and pipeline."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydicom.uid import generate_uid
from redis.exceptions import RedisError

from adapter.embedded.roles import accepts
from adapter.job_output import STDERR, STDOUT
from adapter.ledger.schema import arrivals, exports, groups, jobs
from adapter.stages import STAGES
from adapter.verify import verify
from tests.support_stack import Pacs, Stack, send, write_study
from tests.support_stages import rows
from tests.support_waiting import eventually
from workers.clients.launcher import _descendants

pytestmark = pytest.mark.needs("dcmtk")


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
        left = {path.name for path in folder.rglob("*") if path.is_file()}
        assert left <= ({STDOUT, STDERR} if folder == spool.work else set())
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


def test_redis_that_is_away_and_emptied_costs_seconds_only(
    stack: Stack, pacs: Pacs, tmp_path: Path
) -> None:
    """Killed in mid-study: nothing is refused.  FLUSHALL four times a second: all goes through."""
    stack.start()
    stack.configure("BRAIN", processor_settings={"pipeline-slow": "slow"})
    study = generate_uid()
    folders = [tmp_path / "study" / str(number) for number in range(2)]
    for folder in folders:
        write_study(folder, 30, StudyInstanceUID=study)

    # If: there is no Redis for a while
    assert send(stack, folders[0]) == 30
    stack.kill("redis")
    assert send(stack, folders[1]) == 30
    with pytest.raises(RedisError):
        stack.redis().ping()
    stack.start("redis")

    # If: Redis forgets, through every stage
    done = threading.Event()
    flushed: list[Any] = []

    def flush() -> None:
        client = stack.redis()
        while not done.wait(0.25):
            flushed.append(client.flushall())

    thread = threading.Thread(target=flush)
    thread.start()
    try:
        eventually(has_come_through(stack, pacs, 60), 60)
    finally:
        done.set()
        thread.join()
    assert len(flushed) > 10
    assert_exactly_once(stack, 60)


def test_killed_roles_lose_and_double_nothing(stack: Stack, pacs: Pacs, tmp_path: Path) -> None:
    """SCP, Redis and worker killed at each step of the way: one group, one job, one result."""
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


def test_killed_children_lose_and_double_nothing(stack: Stack, pacs: Pacs, tmp_path: Path) -> None:
    """Receivers, header readers, a launcher and a command killed at work: one job, one result."""

    def kill(role: str, words: str) -> bool:
        """Kill the processes below a role whose command line has these words."""
        found = [pid for pid in _descendants(stack.pid(role)) if words in command_line(pid)]
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(found)

    stack.environment["DICOMADAPTER__DICOM__SCP__PROCESSES"] = "2"
    stack.start()
    settings = {"pipeline-slow": "slow", "timeout": "8", "jobRetryDelay": "100"}
    stack.configure("BRAIN", processor_settings=settings)
    write_study(tmp_path / "study", 200)

    # If: the receiver dies in mid-study, the modality sends once more, readers die meanwhile
    sender = stack.storescu("BRAIN", tmp_path / "study")
    eventually(lambda: any(stack.adapter.spool.list_incoming()))
    assert kill("scp", "")
    sender.communicate(timeout=60)
    again = stack.storescu("BRAIN", tmp_path / "study")
    eventually(lambda: kill("worker", "clients.header_child"))
    again.communicate(timeout=60)
    if again.returncode:  # no receiver was there again yet
        eventually(lambda: accepts("127.0.0.1", stack.port))
        assert send(stack, tmp_path / "study") == 200

    # If: what runs the pipeline dies, and then the pipeline
    runs = tmp_path / "runs"
    eventually(lambda: runs.exists() and runs.read_text(), 40)
    assert kill("worker", "launcher.py")
    eventually(lambda: len(runs.read_text().splitlines()) == 2, 20)
    eventually(lambda: kill("worker", f'date >> "{runs}"'), 10)

    # Then
    eventually(has_come_through(stack, pacs, 200), 60)
    eventually(lambda: [g.state for g in rows(stack.adapter, groups)] == ["reclaimed"])
    # The command counts as a try; what died of the launcher's death does not.
    assert [(job.state, job.tries) for job in rows(stack.adapter, jobs)] == [("succeeded", 1)]
    states = Counter(arrival.state for arrival in rows(stack.adapter, arrivals))
    assert states["registered"] == 200
    assert set(states) <= {"registered", "discarded"}
    assert verify(stack.adapter) == []


def command_line(pid: int) -> str:
    """Return a process's command line; nothing if it has gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
    return ""
