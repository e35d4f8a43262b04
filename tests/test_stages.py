# SPDX-License-Identifier: Apache-2.0
"""Wake-ups: each reaches only its stage, and a broker that is down costs a moment."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapter.core import Adapter
from adapter.stages import (
    EXPORT,
    FULL_QUEUE,
    GROUPING,
    NOTIFICATION,
    RECLAMATION,
    STAGES,
    SUBMISSION,
    DueWorkPoll,
    StageQueues,
    due_stages,
    make_app,
)
from tests.support_stack import Stack
from tests.support_stages import IncomingAssociation, add_ae_title, make_instance

pytestmark = pytest.mark.every_ledger


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """Only our own Redis."""
    made = Stack(tmp_path / "data", {}).start("redis")
    yield made
    made.close()


@pytest.mark.parametrize("stage", STAGES)
def test_a_wake_up_reaches_its_stage_only(stack: Stack, stage: str) -> None:
    """A stage's wake-up lands in that stage's queue and in no other, also after FLUSHALL."""
    queues = StageQueues(make_app(stack.settings))
    stack.redis().flushall()

    assert queues.wake(stage)

    assert queues.lengths() == {other: int(other == stage) for other in STAGES}


def test_a_broker_that_is_away_costs_a_moment(adapter: Adapter) -> None:
    """Without Redis a wake-up is dropped within a second, and no exception is raised."""
    queues = StageQueues(make_app(adapter.settings))
    begin = time.monotonic()

    assert not queues.wake(NOTIFICATION)
    assert queues.lengths() is None
    assert time.monotonic() - begin < 2


def test_an_idle_adapter_has_nothing_due(adapter: Adapter) -> None:
    """Only the first sweep is due; nothing is woken while nothing waits."""
    assert due_stages(adapter) == [RECLAMATION]


def test_the_poll_wakes_for_due_work_and_floods_nothing(stack: Stack) -> None:
    """A file whose wake-up was lost wakes notification once, however many processes poll."""
    version = add_ae_title(stack.adapter)
    association = IncomingAssociation(stack.adapter, version)
    association.store(make_instance(), received_at=time.time() - 10)
    queues = StageQueues(make_app(stack.settings))
    polls = [DueWorkPoll(stack.adapter, queues) for _ in range(3)]

    assert [poll.poll() for poll in polls] == [[NOTIFICATION, RECLAMATION], [], []]

    assert queues.lengths([NOTIFICATION, GROUPING]) == {NOTIFICATION: 1, GROUPING: 0}


def test_wake_ups_without_workers_are_bounded(stack: Stack) -> None:
    """A stage without workers gets a bounded number of wake-ups, so Flower shows no more later."""
    queues = StageQueues(make_app(stack.settings))

    for _ in range(2 * FULL_QUEUE):
        assert queues.wake(SUBMISSION, "one", "two")
        assert queues.wake(EXPORT)

    waiting = queues.lengths([SUBMISSION, EXPORT])
    assert waiting == {SUBMISSION: FULL_QUEUE, EXPORT: FULL_QUEUE}
