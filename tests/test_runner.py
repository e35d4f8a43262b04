# SPDX-License-Identifier: Apache-2.0
"""Runs of a worker's stages: bounded for each stage, however it is started, and woken or not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import select

from adapter.core import Adapter
from adapter.embedded import broker
from adapter.embedded.roles import worker_command
from adapter.ledger import schema
from adapter.settings import Settings
from adapter.stages import (
    GROUPING,
    NOTIFICATION,
    PIPELINE,
    RECLAMATION,
    STAGES,
    SUBMISSION,
    StageQueues,
    concurrency,
    make_app,
    password_file,
)
from tests.support_stack import free_port
from tests.support_stages import IncomingAssociation, add_ae_title, make_instance, make_work
from tests.support_waiting import eventually
from workers import runner as runner_module
from workers.background import WorkerBackgroundTasks
from workers.metrics import WorkerMetrics
from workers.runner import BUSY, OwnDueWork, StageRunner
from workers.stage import Work

#: Runs Celery's own command line for each line of its input, up to where the worker would consume.
_PROGRAM = """
import json, sys
from adapter.ledger import engines
from celery.apps import worker
from celery.bin.celery import celery as command

def start(self):
    from workers import celery as module
    assert engines._most == self.concurrency + 2, "one for each run, and two for the rest"
    print(json.dumps([self.concurrency, module.runner._free]), flush=True)

worker.Worker.start = start
from workers import background
background.WorkerBackgroundTasks.start = lambda self: None
for line in sys.stdin:
    try:
        command.main(json.loads(line), standalone_mode=True, auto_envvar_prefix="CELERY")
    except SystemExit as end:
        assert not end.code, end.code
"""


def test_a_stages_concurrency_is_its_own_however_its_worker_is_started(adapter: Adapter) -> None:
    """`celery -A workers worker -Q S` and `dicom-adapter worker S`, S alone and mixed; -c N."""
    broker.secret(password_file(adapter.settings))
    by_celery = ["-A", "workers", "worker", "-Q"]
    bounds = concurrency(adapter.settings)
    lines = [[*by_celery, stage] for stage in STAGES]
    lines += [worker_command([stage], None, "one")[3:] for stage in STAGES]
    lines += [[*by_celery, ",".join(STAGES)], worker_command(STAGES, None, "all")[3:]]
    lines += [[*by_celery, PIPELINE, "-c", "3"], worker_command([PIPELINE], 3, "three")[3:]]

    ran = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        input="".join(f"{json.dumps(line)}\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, **adapter.settings.environment},
    )

    assert ran.returncode == 0, ran.stderr
    each = [[bounds[stage], {stage: bounds[stage]}] for stage in STAGES]
    together = [sum(bounds.values()), bounds]
    found = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("[")]
    assert found == [*each, *each, together, together, *[[3, {PIPELINE: 3}]] * 2]
    assert bounds[PIPELINE] == 1


def test_a_worker_of_several_stages_honours_each_ones_bound(
    adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pipeline runs: a wake-up for a second is dropped at once, and holds up no other stage."""
    begun, goes_on = threading.Event(), threading.Event()

    def take(_work: Work, _row: str | None) -> None:
        begun.set()
        assert goes_on.wait(20)

    monkeypatch.setitem(runner_module.TAKES, PIPELINE, take)
    runner = _runner(make_work(adapter), PIPELINE, GROUPING)
    first = threading.Thread(target=runner.run, args=(PIPELINE,))
    first.start()
    assert begun.wait(20)

    assert runner.run(PIPELINE) == BUSY
    assert runner.run(GROUPING) == {"outcome": "nothing is due"}

    goes_on.set()
    first.join()
    assert runner.is_free(PIPELINE)


def _runner(work: Work, *stages: str) -> StageRunner:
    runner = StageRunner(lambda: work, threading.Event(), WorkerMetrics())
    runner.limit(dict.fromkeys(stages, 1))
    return runner


# -- without a broker ------------------------------------------------------------------------------


@pytest.fixture(params=["refuses", "hangs"])
def away(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Settings]:
    """Settings whose Redis refuses connections, or takes them and never answers."""
    with ExitStack() as stack:
        port = free_port()
        if request.param == "hangs":
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            port = server.getsockname()[1]
        url = {"url": f"redis://127.0.0.1:{port}/0"}
        yield settings.model_copy(update={"broker": settings.broker.model_copy(update=url)})


def test_without_a_broker_a_worker_does_its_own_due_work(adapter: Adapter, away: Settings) -> None:
    """No wake-up ever comes: instances become a group and a job, within seconds of their due time.

    While Redis hangs each step of the way would otherwise wait for it.
    """
    version = add_ae_title(
        adapter,
        processor_settings={"pipeline-lung": "lung-1", "timeout": "5", "groupBy": "0020000D"},
    )
    arrivals = IncomingAssociation(adapter, version)
    for _ in range(3):
        arrivals.store(make_instance(StudyInstanceUID="1.2.3"), received_at=time.time() - 10)
    work = Work(adapter, StageQueues(make_app(away)))
    runner = _runner(work, NOTIFICATION, GROUPING, SUBMISSION)
    own_work = OwnDueWork(runner, [NOTIFICATION, GROUPING])
    tasks = WorkerBackgroundTasks(away, lambda: work, WorkerMetrics(), "test", own_work)
    began = time.monotonic()
    tasks.start()
    try:
        group = eventually(lambda: _closed(adapter))
    finally:
        tasks.stop()

    assert group.instances == 3
    assert time.monotonic() - began < 15
    work.headers.close()


def _closed(adapter: Adapter) -> object:
    with adapter.ledger.read() as connection:
        return connection.execute(
            select(schema.groups).where(schema.groups.c.state == "closed")
        ).first()


@pytest.mark.parametrize(
    ("answers", "polls"),
    [(False, runner_module.POLLS_BEFORE_OWN_RUN), (True, runner_module.POLLS_WITH_BROKER)],
)
def test_what_others_take_in_time_is_left_to_them(
    adapter: Adapter, *, answers: bool, polls: int
) -> None:
    """Only what is due again and again, while a run of the stage is free here, is taken unasked.

    A broker that answers gets more time.
    """
    ran = []
    runner = _runner(make_work(adapter), RECLAMATION)
    runner.run = ran.append  # type: ignore[method-assign]
    own = OwnDueWork(runner, [RECLAMATION])

    for _ in range(3):
        for _ in range(polls):
            own.found([RECLAMATION, GROUPING], answers)
        own.found([GROUPING], answers)
    with runner._taken(RECLAMATION):
        for _ in range(2 * polls):
            own.found([RECLAMATION], answers)
    own.stop(20)
    assert ran == []

    for _ in range(polls + 1):
        own.found([RECLAMATION], answers)
    own.stop(20)
    assert ran == [RECLAMATION]
