# SPDX-License-Identifier: Apache-2.0
"""Each wake-up that was lost is repeated by the due-work poll, within seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapter.ledger.schema import exports, groups, jobs
from adapter.stages import STAGES
from tests.support_stack import Pacs, Stack, send, write_study
from tests.support_stages import rows
from tests.support_waiting import eventually

pytestmark = pytest.mark.needs("dcmtk")


@pytest.mark.parametrize("stage", STAGES)
def test_a_lost_wake_up_is_replaced_within_ten_seconds(
    stack: Stack, pacs: Pacs, tmp_path: Path, stage: str
) -> None:
    """Redis is emptied while a stage has no worker: a new worker is woken within ten seconds."""
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
    """Return whether there is work for a stage."""
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
    """Return whether a stage has done its work."""
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
