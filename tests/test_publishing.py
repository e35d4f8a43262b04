# SPDX-License-Identifier: Apache-2.0
"""A receiver that stalls between a receive time and the visible name splits no study."""

from __future__ import annotations

import json
import os
import socket
import time

import pytest

from adapter import heartbeat
from adapter.core import Adapter
from adapter.ledger.schema import groups
from adapter.models import ArrivalId
from adapter.scp.publishing import Publishing
from tests.support_scp import Peer, RealFile, add_fixture, incoming, running, wheel_file, with_scp
from tests.support_stages import IncomingAssociation, add_ae_title, make_instance, make_work, rows
from tests.support_waiting import eventually
from workers import grouping, notification
from workers.stage import take_all

CT = RealFile.read(wheel_file("CT_small.dcm"))


def test_the_time_and_its_note_are_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is received after a declaration has no earlier time, also if the clock is set back."""
    publishing = Publishing()
    declared = publishing.published_until()
    first, second = publishing.begin(), publishing.begin()
    assert declared <= first.received_at <= second.received_at
    assert publishing.published_until() == first.received_at
    first.visible()
    assert publishing.published_until() == second.received_at
    second.end()
    monkeypatch.setattr(time, "time", lambda: declared - 3600)
    assert publishing.published_until() >= second.received_at
    assert publishing.begin().received_at >= second.received_at


def test_a_group_closes_only_when_every_receiver_has_declared_its_quiet_time(
    adapter: Adapter,
) -> None:
    """One that is alive holds it open; one that has ended, or is silent for long, does not."""
    work = make_work(adapter)
    at = adapter.ledger.now() - 20
    IncomingAssociation(adapter, add_ae_title(adapter)).store(make_instance(), received_at=at)
    notification.run(work)
    work.headers.close()
    (group,) = rows(adapter, groups)
    moment = group.due_at

    def declares(until: float, **changes: object) -> bool:
        beat = {"role": "scp", "host": socket.gethostname(), "pid": os.getpid(), "at": time.time()}
        text = json.dumps({**beat, heartbeat.PUBLISHED_UNTIL: until, **changes})
        (adapter.spool.status / "scp-1.json").write_text(text)
        return heartbeat.published(adapter.spool, moment)

    assert declares(moment + 0.001)
    assert declares(moment - 1, pid=2**22 + 1)
    assert declares(moment - 1, at=time.time() - heartbeat.SILENCE_SECONDS)
    assert not declares(moment - 1, pid=2**22 + 1, host="another")
    assert not declares(moment)
    assert take_all(work, grouping.take) == {"waits": 1}
    assert declares(moment + 1)
    with adapter.ledger.write() as connection:
        connection.execute(groups.update().values(look_at=0))
    assert take_all(work, grouping.take) == {"closed": 1, "jobs": 1}


def test_a_name_that_took_too_long_is_withdrawn(
    adapter: Adapter, settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver that counted as gone meanwhile acknowledges nothing of that time."""
    add_fixture(adapter)
    with running(with_scp(settings)) as scp:
        with Peer(scp, [(CT.sop_class, [CT.syntax])]) as peer:
            with monkeypatch.context() as patch:
                patch.setattr(heartbeat, "SILENCE_SECONDS", 0.0)
                assert peer.store(CT.sop_class, CT.sop_instance, CT.data) == 0xA700
            assert incoming(adapter) == []
            assert peer.store(CT.sop_class, CT.sop_instance, CT.data) == 0x0000
        (path,) = incoming(adapter)
        received = ArrivalId.parse(path.stem).received_at
        eventually(lambda: heartbeat.published(adapter.spool, received))
