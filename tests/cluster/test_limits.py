# SPDX-License-Identifier: Apache-2.0
"""Limits of one host, and of all together."""

from __future__ import annotations

from contextlib import ExitStack

from adapter.core import Adapter
from tests import support_wire as wire
from tests.support_scp import add_ae_title, add_source, running, with_scp


def test_each_receiver_has_its_own_association_limit(adapter: Adapter) -> None:
    """Two receivers of two associations take four; each rejects its third."""
    add_ae_title(adapter, "ADAPTER")
    add_source(adapter, "MODALITY")
    settings = with_scp(adapter.settings, maximum_number_of_associations=2)
    with running(settings) as one, running(settings) as two, ExitStack() as stack:
        for receiver in (one, two):
            callers = [stack.enter_context(wire.Caller(receiver.port)) for _ in range(3)]
            answers = [caller.associate() for caller in callers]
            assert [answer[:1] for answer in answers[:2]] == [b"\2"] * 2
            assert answers[2] == wire.reject(2, 3, 2)
