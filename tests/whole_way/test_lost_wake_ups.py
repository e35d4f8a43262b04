# SPDX-License-Identifier: Apache-2.0
"""A wake-up that was lost is repeated by the due-work poll, within seconds.

Seen for a stage that works in batches from the spool, and for one that works on rows; that the
poll finds the due work of each stage is seen in ``tests/test_stages.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from adapter.ledger.schema import exports
from adapter.stages import STAGES
from tests.support_stack import Pacs, Stack, send, write_study
from tests.support_stages import rows
from tests.support_waiting import eventually

pytestmark = pytest.mark.needs("dcmtk")


@pytest.mark.parametrize("stage", ["notification", "export"])
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
    if stage == "notification":
        return len(list(stack.adapter.spool.list_incoming())) == 3
    return [export.state for export in rows(stack.adapter, exports)] == ["pending"]


def left(stack: Stack, stage: str) -> bool:
    """Return whether a stage has done its work."""
    if stage == "notification":
        return not list(stack.adapter.spool.list_incoming())
    return [export.state for export in rows(stack.adapter, exports)] == ["succeeded"]
