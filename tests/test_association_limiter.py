# SPDX-License-Identifier: Apache-2.0
"""The places for associations: whose idle association is ended when none is free."""

from __future__ import annotations

import os
import signal
import time

import pytest

from adapter.scp import association_limiter
from adapter.scp.association_limiter import AssociationLimiter
from tests.support_waiting import eventually


class Site:
    """A limiter, and the associations that have places of it, in this process."""

    def __init__(self, total, per_peer):
        self.limiter = AssociationLimiter(total, per_peer)
        self.ended = []

    def open(self, name, address, calling_ae="A", *, idle=True):
        """Open an association; tell whether there was a place for it."""
        places = []

        def end():
            self.ended.append(name)
            places[0].release()

        place = self.limiter.acquire(address, calling_ae, end)
        if place is None:
            return False
        places.append(place)
        if idle:
            place.idle()
        return True


@pytest.fixture
def site(monkeypatch):
    """Return a function that makes one; what is idle has been so for long enough."""
    monkeypatch.setattr(association_limiter, "IDLE_SECONDS", 0.0)
    made = []

    def make(total, per_peer):
        made.append(Site(total, per_peer))
        return made[-1]

    yield make
    for one in made:
        one.limiter.close()


GATEWAY, CT, MR = "192.0.2.1", "192.0.2.2", "2001:db8::3"


def test_the_longest_idle_of_a_peer_with_too_many_is_ended(site):
    """An address with more than its share of all places gives one to another address."""
    here = site(4, 4)
    assert all(here.open(name, GATEWAY) for name in "abcd")
    assert here.open("ct", CT)
    assert here.ended == ["a"]
    assert here.open("mr", MR)
    assert here.ended == ["a", "b"]


def test_nobody_with_a_fair_share_loses_one(site):
    """Where all peers have their share one more is rejected, as before."""
    here = site(4, 4)
    assert all(
        here.open(name, address) for name, address in zip("abcd", [CT, CT, MR, MR], strict=True)
    )
    assert not here.open("more", CT)
    assert not here.open("alone", MR)
    assert here.ended == []


def test_what_is_not_idle_is_never_ended(site, monkeypatch):
    """An association within a message, or silent only for a moment, keeps its place."""
    here = site(3, 3)
    assert all(here.open(name, GATEWAY, idle=False) for name in "abc")
    assert not here.open("ct", CT)
    monkeypatch.setattr(association_limiter, "IDLE_SECONDS", 5.0)
    there = site(3, 3)
    assert all(there.open(name, GATEWAY) for name in "abc")
    assert not there.open("ct", CT)
    assert here.ended == there.ended == []


def test_behind_a_gateway_the_ae_titles_share(site):
    """A stuck sender leaves its gateway's places to the other senders behind it."""
    here = site(25, 3)
    assert all(here.open(name, GATEWAY, "STUCK") for name in "abc")
    assert not here.open("again", GATEWAY, "STUCK")
    assert here.open("other", GATEWAY, "OTHER")
    assert here.ended == ["a"]


def test_of_an_address_with_too_many_the_worst_ae_title_loses(site):
    """The AE title with the most associations loses one, not its neighbours."""
    here = site(5, 5)
    assert here.open("good", GATEWAY, "GOOD")
    assert all(here.open(name, GATEWAY, "STUCK") for name in "abcd")
    assert here.open("ct", CT)
    assert here.ended == ["a"]


def test_an_association_of_another_process_is_ended(site):
    """The processes of a receiver share the places, and each ends its own associations."""
    here = site(2, 2)
    ready, asked = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            assert all(here.open(name, GATEWAY) for name in "ab")
            os.write(asked, b"x")
            while not here.ended:
                time.sleep(0.01)
                here.limiter.end_superfluous()
            signal.pause()  # the process lives on with its other place
        finally:
            os._exit(1)
    try:
        assert os.read(ready, 1) == b"x"
        assert here.open("ct", CT)
        assert here.ended == []
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(asked)
    # The kernel has freed the other one.
    eventually(lambda: here.open("mr", MR))
