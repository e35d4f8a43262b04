# SPDX-License-Identifier: Apache-2.0
"""Bells: each reaches its stage and no other, and a broker that is away costs a moment at most."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapter.core import Adapter
from adapter.road import (
    EXPORT,
    FULL_QUEUE,
    GROUPING,
    NOTIFICATION,
    RECLAMATION,
    STAGES,
    SUBMISSION,
    Bells,
    Tick,
    due_stages,
    make_app,
)
from tests.support_road import Association, add_ae_title, make_instance
from tests.support_stack import Stack

pytestmark = pytest.mark.every_ledger


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A Redis of our own and nothing else."""
    made = Stack(tmp_path / "data", {}).start("redis")
    yield made
    made.close()


@pytest.mark.parametrize("stage", STAGES)
def test_a_bell_reaches_its_stage_only(stack: Stack, stage: str) -> None:
    """A stage's bell lands in that stage's queue and in no other, also after FLUSHALL."""
    bells = Bells(make_app(stack.settings))
    stack.redis().flushall()

    assert bells.ring(stage)

    assert bells.waiting() == {other: int(other == stage) for other in STAGES}


def test_a_broker_that_is_away_costs_a_moment(adapter: Adapter) -> None:
    """Without Redis a bell is given up within a second, and nothing is raised."""
    bells = Bells(make_app(adapter.settings))
    begin = time.monotonic()

    assert not bells.ring(NOTIFICATION)
    assert bells.waiting() is None
    assert time.monotonic() - begin < 2


def test_an_idle_adapter_has_nothing_due(adapter: Adapter) -> None:
    """Only the first sweep is due; nothing rings while nothing waits."""
    assert due_stages(adapter) == [RECLAMATION]


def test_a_tick_rings_what_nobody_holds_and_floods_nothing(stack: Stack) -> None:
    """A file whose bell was lost is rung for by a tick, once, however many tick."""
    version = add_ae_title(stack.adapter)
    association = Association(stack.adapter, version)
    association.store(make_instance(), received_at=time.time() - 10)
    bells = Bells(make_app(stack.settings))
    ticks = [Tick(stack.adapter, bells) for _ in range(3)]

    assert [tick.tick() for tick in ticks] == [[NOTIFICATION, RECLAMATION], [], []]

    assert bells.waiting([NOTIFICATION, GROUPING]) == {NOTIFICATION: 1, GROUPING: 0}


def test_bells_that_nobody_answers_are_bounded(stack: Stack) -> None:
    """A stage whose workers are away gets so many bells, and Flower no more of them later."""
    bells = Bells(make_app(stack.settings))

    for _ in range(2 * FULL_QUEUE):
        assert bells.ring(SUBMISSION, EXPORT)

    waiting = bells.waiting([SUBMISSION, EXPORT])
    assert waiting == {SUBMISSION: FULL_QUEUE, EXPORT: FULL_QUEUE}
