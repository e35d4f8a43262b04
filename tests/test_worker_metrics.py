# SPDX-License-Identifier: Apache-2.0
"""What a worker tells of itself, whatever is away; and that it starts working when that is back."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import workers
from adapter.core import open_spool
from adapter.embedded import broker
from adapter.embedded.roles import worker_command
from adapter.stages import STAGES
from tests.support_metrics import ask, scrape
from tests.support_stack import Stack, free_port
from tests.support_stages import IncomingAssociation, add_ae_title, make_instance
from tests.support_waiting import eventually
from workers.metrics import OTHER, OUTCOMES, WorkerMetrics

#: A worker that counts as dead sooner.
IMPATIENT = (
    "import sys; from adapter import heartbeat; heartbeat.DEAD_SECONDS = 2.5; "
    "from celery.__main__ import main; sys.argv[0] = 'celery'; main()"
)


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    (tmp_path / "ledger").mkdir()
    made = Stack(
        tmp_path / "data",
        {},
        metrics={"host": "127.0.0.1", "port": free_port()},
        database={"url": f"sqlite:///{tmp_path}/ledger/ledger.sqlite"},
    )
    yield made
    made.close()


@contextmanager
def worker(stack: Stack, *stages: str, impatient: bool = False) -> Iterator[subprocess.Popen]:
    """Run a worker, and wait until it answers for metrics; not until it works."""
    command = worker_command(stages or STAGES, 4, "test")
    if impatient:
        command = [sys.executable, "-c", IMPATIENT, *command[3:]]
    with (stack.settings.data / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **stack.settings.environment}, stdout=log, stderr=log
        )
    try:
        eventually(lambda: process.poll() is not None or _answers(stack), 40)
        yield process
    finally:
        process.terminate()
        process.wait(40)


def port(stack: Stack) -> int:
    assert stack.settings.metrics.port is not None
    return stack.settings.metrics.port


def _answers(stack: Stack) -> bool:
    try:
        return bool(ask(port(stack), "/live"))
    except OSError:
        return False


@contextmanager
def without_ledger(stack: Stack) -> Iterator[None]:
    """Take the ledger away and back, each in one step: a worker would make it anew meanwhile."""
    stack.adapter.close()
    folder = stack.settings.data.parent / "ledger"
    hidden = folder.rename(folder.with_name("hidden"))
    yield
    hidden.rename(folder)


def test_a_worker_lives_without_redis_and_ledger_and_works_when_they_are_back(
    stack: Stack,
) -> None:
    """Started with neither: live, not ready, and why; ready, and at work, when both are there."""
    broker.prepare(stack.settings)  # its password is known, as that of any server would be
    version = add_ae_title(stack.adapter)
    IncomingAssociation(stack.adapter, version).store(make_instance())
    with ExitStack() as stopped:
        with without_ledger(stack):
            stopped.enter_context(worker(stack))
            assert ask(port(stack), "/live") == (200, "live\n")
            status, reasons = ask(port(stack), "/ready")
            assert status == 503
            assert reasons.splitlines() == [
                "the broker is away: nothing is consumed",
                "the ledger has not been opened yet",
            ]
            age = scrape(port(stack)).value("dicom_adapter_heartbeat_age_seconds", role="worker")
            assert age < 5

        stack.start("redis")
        eventually(lambda: ask(port(stack), "/ready") == (200, "ready\n"), 40)
        eventually(lambda: registered(stack) == 1, 20)

        stack.kill("redis")
        eventually(lambda: ask(port(stack), "/ready")[0] == 503, 20)
        assert ask(port(stack), "/live")[0] == 200
        stack.start("redis")
        eventually(lambda: ask(port(stack), "/ready")[0] == 200, 40)


def registered(stack: Stack) -> float | None:
    return scrape(port(stack)).value(
        "dicom_adapter_work_total", stage="notification", outcome="registered"
    )


def test_a_worker_whose_heart_hangs_is_not_live(stack: Stack) -> None:
    """A heartbeat that cannot be written does not end: not live; live again when it goes on."""
    stack.start("redis")
    spool = open_spool(stack.settings)
    with worker(stack, "grouping", impatient=True) as process:
        eventually(lambda: ask(port(stack), "/ready")[0] == 200, 20)
        (beat,) = eventually(lambda: list(spool.status.glob(f"worker-*-{process.pid}.json")))
        part = beat.with_name(f".{beat.name}.part")
        eventually(lambda: _make_fifo(part))  # who opens it to write waits for a reader

        eventually(lambda: ask(port(stack), "/live")[0] == 503, 20)
        assert re.fullmatch(r"no heartbeat for \d+ s\n", ask(port(stack), "/live")[1])
        assert ask(port(stack), "/ready")[0] == 200

        part.open("rb").close()
        eventually(lambda: ask(port(stack), "/live")[0] == 200, 20)


def _make_fifo(path: Path) -> bool:
    try:
        os.mkfifo(path)
    except FileExistsError:  # just being written
        return False
    # If it was replaced at once, the beat had been opened before.
    time.sleep(0.1)
    return path.is_fifo()


def test_workers_tell_of_their_stages_each_on_its_own_port(stack: Stack) -> None:
    """Outcomes of the stages that are served begin at zero; a second worker needs another port."""
    stack.start("redis")
    with worker(stack, "grouping", "export"):
        found = scrape(port(stack))
        with worker(stack, "export") as second:
            assert second.wait(60) != 0

    for name in ("work_total", "run_seconds_count", "runs_cut_short_total"):
        assert found.labels(f"dicom_adapter_{name}", "stage") == {"grouping", "export"}
    outcomes = found.labels("dicom_adapter_work_total", "outcome")
    assert outcomes == {*OUTCOMES["grouping"], *OUTCOMES["export"], OTHER}
    log = (stack.settings.data / "worker.log").read_text()
    assert "DicomAdapter > metrics > port" in log


def test_an_outcome_that_nobody_knows_is_other() -> None:
    """Labels come from a fixed set."""
    metrics = WorkerMetrics()
    metrics.ran("pipeline", 0.5, {"CANARY^NAME": 2, "succeeded": 1})
    metrics.ran("pipeline", 0.5, None)

    samples = {
        (s.name.removeprefix("dicom_adapter_"), *s.labels.values()): s.value
        for family in metrics.registry.collect()
        for s in family.samples
    }
    assert samples["work_total", "pipeline", OTHER] == 2
    assert samples["work_total", "pipeline", "succeeded"] == 1
    assert samples["runs_cut_short_total", "pipeline"] == 1
    assert samples["run_seconds_count", "pipeline"] == 2
    assert not [key for key in samples if "CANARY^NAME" in key]


def test_every_outcome_of_a_run_of_the_code_is_known() -> None:
    """Whatever a pipeline's run may fail with has a label of its own."""
    code = "".join(path.read_text() for path in Path(workers.__file__).parent.rglob("*.py"))
    found = set(re.findall(r'Failure\(\s*"([a-z-]+)"', code))
    found |= set(re.findall(r'PermanentError\([^)]*"(no-output|invalid-output)"', code))

    assert len(found) > 4
    assert found - {"not-visible"} < {*OUTCOMES["pipeline"], *OUTCOMES["submission"]}
